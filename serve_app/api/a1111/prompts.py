"""Prompts of AUTOMATIC1111's requests, as it reads them before its prompt syntax: styles, comments, tags."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from deployments.engine.errors import InvalidRequest
from deployments.engine.prompts.syntax import Tag, named_loras, tags_of, without_comments, without_tags
from serve_app.config.settings import PromptStyle
from serve_app.schemas.validation import shown


class PromptReader(NamedTuple):
    """Reads a request's prompts.

    Attributes:
        styles: those that the request names, in its order.
        comments: whether a "#" begins one.
        loras: names of those that are there.
        strict: whether LoRAs that aren't are left to be refused.
    """

    styles: Sequence[PromptStyle]
    comments: bool
    loras: Collection[str]
    strict: bool

    def prompt(self, text: str, warnings: list[str]) -> str:
        """A prompt as it is drawn. `warnings` gets what A1111 would do otherwise, or does without a word."""
        for style in self.styles:
            text = style.around_prompt(text)
        text = without_comments(text) if self.comments else text
        gone = {} if self.strict else {tag: why for tag in tags_of(text) if tag.names_lora and (why := self._why(tag))}
        warnings += gone.values()
        warnings += [_useless(tag) for tag in tags_of(text) if not tag.names_lora]
        return without_tags(text, lambda tag: tag in gone) if gone else text

    def negative(self, text: str, warnings: list[str]) -> str:
        """The same of a negative prompt, in which tags are text, as in A1111."""
        for style in self.styles:
            text = style.around_negative(text)
        text = without_comments(text) if self.comments else text
        if self.strict:
            return text
        for tag in dict.fromkeys(tag for tag in tags_of(text) if tag.names_lora):
            warnings.append(f"{shown(str(tag))} is text in a negative prompt: a LoRA's tag belongs into the prompt")
            text = text.replace(str(tag), f"\\{tag}")
        return text

    def _why(self, tag: Tag) -> str | None:
        """Why a LoRA can't be used; None if it can."""
        try:
            [lora] = named_loras(str(tag))
        except InvalidRequest as error:
            return f"{error.message}: it is left out"
        return None if lora.name in self.loras else f"there is no LoRA {shown(lora.name)}: it is left out"


def styles_of(names: Sequence[str], known: Mapping[str, PromptStyle], warnings: list[str]) -> list[PromptStyle]:
    """The styles of these names; one that isn't there is left out, as in A1111, and named in the `warnings`."""
    wanted = [name for name in names if name not in ("", "None")]
    warnings += [f"there is no style {shown(name)}: it is left out" for name in wanted if name not in known]
    return [known[name] for name in wanted if name in known]


def _useless(tag: Tag) -> str:
    hint = ", write <lora:…>" if tag.word.lower() == "lora" else ""
    return f"{shown(str(tag))} has no effect here{hint}"
