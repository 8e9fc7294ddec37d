"""The first safety layer: patterns of the settings that no prompt may match.

The patterns run on RE2, whose time is linear in the text: one short prompt can keep a backtracking engine busy for
minutes. Lookaround and backreferences, which can't be linear, are refused at start.
"""

import re
import unicodedata
from collections.abc import Sequence

import re2

from serve_app.errors import PromptRefused

# memory of one compiled pattern and of its run; a pattern too large for it is refused at start
_MAX_PATTERN_MEMORY = 8 << 20


class PromptFilter:
    """Refuses prompts that match one of the patterns.

    Case, compatibility forms (full-width letters, ligatures: NFKC) and invisible characters make no difference.
    Raises ValueError at construction for a pattern that RE2 can't compile, naming its index.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        options = re2.Options()
        options.case_sensitive = False
        options.log_errors = False
        options.max_mem = _MAX_PATTERN_MEMORY
        self._patterns = []
        for index, pattern in enumerate(patterns):
            try:
                self._patterns.append(re2.compile(_fold_pattern(pattern), options))
            except re2.error as error:
                detail = error.args[0].decode(errors="replace") if error.args else "?"
                raise ValueError(f"prompt_patterns.{index}: {pattern!r} can't be used: {detail}") from None

    def check(self, text: str) -> None:
        """Raise PromptRefused if a pattern matches, without saying which one."""
        folded = fold(text)
        if any(pattern.search(folded) for pattern in self._patterns):
            raise PromptRefused("the prompt is not allowed here", "prompt")


def fold(text: str) -> str:
    """The text as it is matched: NFKC, case folded, without invisible (format) characters."""
    visible = "".join(char for char in text if unicodedata.category(char) != "Cf")
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", visible).casefold())


def _fold_pattern(pattern: str) -> str:
    r"""The pattern with letters beyond ASCII folded; ASCII stays, as RE2 ignores its case and \W isn't \w."""

    def folded(match: re.Match[str]) -> str:
        letter = fold(match[0])
        return letter if letter.isalnum() else match[0]

    return re.sub(r"[^\x00-\x7f]", folded, unicodedata.normalize("NFC", pattern))
