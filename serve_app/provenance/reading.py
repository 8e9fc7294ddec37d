"""Reads and checks the Content Credentials of an image file. It takes tens of milliseconds: call it in a thread."""

import io
import json
from collections.abc import Mapping
from typing import Any, Literal

import c2pa
from pydantic import BaseModel, Field

from serve_app.provenance.content import GENERATION, INSTANCE
from serve_app.provenance.library import reading_context

State = Literal["trusted", "valid", "invalid", "elsewhere"]

_MOST_INGREDIENTS = 100
_MOST_PROBLEMS = 20
_MOST_CHARS = 500

# a certificate of nobody's authority: that is what "valid" says in place of "trusted"
_UNTRUSTED = "signingCredential.untrusted"
_TIME_TRUSTED = "timeStamp.trusted"


class Problem(BaseModel):
    """Something that is wrong with credentials; `code` is C2PA's."""

    code: str
    explanation: str


class Signature(BaseModel):
    """Who signed, and when."""

    name: str | None = Field(description="The certificate's common name.")
    organisation: str | None
    algorithm: str | None
    time: str | None = Field(description="By a time-stamping authority; null without one.")
    time_trusted: bool = Field(default=False, description="Whether this service trusts that authority.")


class Action(BaseModel):
    """Something that was done."""

    action: str = Field(description="C2PA's name, such as c2pa.created.")
    digital_source_type: str | None
    software: str | None


class Ingredient(BaseModel):
    """A picture that was used."""

    relationship: str = Field(description="parentOf: the image begins with it; inputTo: it steers the image.")
    title: str | None
    sha256: str | None = Field(description="Of its file, as far as the credentials name it.")
    state: Literal["valid", "invalid", "unsigned"] = Field(description="Of its own credentials when it was used.")
    signature: Signature | None


class Credentials(BaseModel):
    """The newest credentials in a file."""

    state: State = Field(
        description="trusted: the file is as it was signed, by somebody whom this service trusts. valid: as it was "
        "signed, by somebody unknown. invalid: changed since, or never good. elsewhere: the file names an address that "
        "has them, which isn't asked."
    )
    signature: Signature | None
    actions: list[Action]
    ingredients: list[Ingredient]
    job_id: str | None = Field(description="Of the Darkroom job that drew it, as far as they name one.")
    generation: dict[str, Any] | None = Field(description="Models by name and SHA-256, as Darkroom writes them.")
    problems: list[Problem]


def read_credentials(data: bytes, content_type: str, anchors: str = "") -> Credentials | None:
    """The credentials of a file; None where it has none.

    Args:
        data: PNG, JPEG or WebP.
        content_type: its MIME type.
        anchors: certificates of the authorities that are trusted, PEM.
    """
    try:
        with reading_context(anchors) as context:
            reader = c2pa.Reader.try_create(content_type, io.BytesIO(data), context=context)
            if reader is None:
                return None
            with reader:
                document = json.loads(reader.json())
    except c2pa.C2paError as error:
        return _unreadable(error)
    return _credentials(document)


def _unreadable(error: c2pa.C2paError) -> Credentials:
    # the library has one class for both
    state: State = "elsewhere" if str(error).startswith("Remote") else "invalid"
    problem = Problem(code="unreadable", explanation=str(error)[:_MOST_CHARS])
    return Credentials(
        state=state, signature=None, actions=[], ingredients=[], job_id=None, generation=None, problems=[problem]
    )


def _credentials(document: Mapping[str, Any]) -> Credentials:
    """From the library's report."""
    manifests = document.get("manifests", {})
    active = manifests.get(document.get("active_manifest"), {})
    results = document.get("validation_results", {})
    state: State = "invalid"
    if document.get("validation_state") in ("Trusted", "Valid"):
        state = "trusted" if document["validation_state"] == "Trusted" else "valid"
    generation = _assertion(active, GENERATION)
    job_id = generation.get("job")
    actions = _assertion(active, "c2pa.actions").get("actions", [])
    return Credentials(
        state=state,
        signature=_signature(active, time_trusted=_TIME_TRUSTED in _codes(results.get("activeManifest", {}))),
        actions=[_action(action) for action in actions[:_MOST_INGREDIENTS]],
        ingredients=[_ingredient(one, manifests) for one in active.get("ingredients", [])[:_MOST_INGREDIENTS]],
        job_id=job_id if isinstance(job_id, str) else None,
        generation={name: value for name, value in generation.items() if name != "job"} or None,
        problems=_problems(results.get("activeManifest", {})),
    )


def _assertion(manifest: Mapping[str, Any], label: str) -> dict[str, Any]:
    """The data of the first assertion of a label, whichever its version; empty without one."""
    for assertion in manifest.get("assertions", []):
        named = assertion.get("label", "")
        if named == label or named.startswith((f"{label}.v", f"{label}__")):
            data = assertion.get("data")
            return data if isinstance(data, dict) else {}
    return {}


def _signature(manifest: Mapping[str, Any], *, time_trusted: bool) -> Signature | None:
    info = manifest.get("signature_info")
    if not isinstance(info, dict):
        return None
    name, organisation, algorithm, time = (_text(info.get(key)) for key in ("common_name", "issuer", "alg", "time"))
    return Signature(name=name, organisation=organisation, algorithm=algorithm, time=time, time_trusted=time_trusted)


def _codes(results: Mapping[str, Any]) -> set[str]:
    """C2PA's codes of what was found in order."""
    return {str(success.get("code")) for success in results.get("success", [])}


def _action(action: Mapping[str, Any]) -> Action:
    software = action.get("softwareAgent")
    if isinstance(software, dict):
        software = " ".join(str(software[part]) for part in ("name", "version") if part in software)
    return Action(
        action=str(action.get("action"))[:_MOST_CHARS],
        digital_source_type=_text(action.get("digitalSourceType")),
        software=_text(software),
    )


def _ingredient(ingredient: Mapping[str, Any], manifests: Mapping[str, Any]) -> Ingredient:
    instance = _text(ingredient.get("instance_id")) or ""
    active = ingredient.get("active_manifest")
    results = ingredient.get("validation_results", {}).get("activeManifest", {})
    failures = results.get("failure", [])
    state: Literal["valid", "invalid", "unsigned"] = "unsigned"
    if active is not None:
        state = "invalid" if any(failure.get("code") != _UNTRUSTED for failure in failures) else "valid"
    return Ingredient(
        relationship=str(ingredient.get("relationship"))[:_MOST_CHARS],
        title=_text(ingredient.get("title")),
        sha256=instance.removeprefix(INSTANCE) if instance.startswith(INSTANCE) else None,
        state=state,
        signature=_signature(manifests.get(str(active), {}), time_trusted=_TIME_TRUSTED in _codes(results)),
    )


def _problems(results: Mapping[str, Any]) -> list[Problem]:
    return [
        Problem(code=str(failure.get("code")), explanation=str(failure.get("explanation"))[:_MOST_CHARS])
        for failure in results.get("failure", [])[:_MOST_PROBLEMS]
    ]


def _text(value: Any) -> str | None:
    return None if value is None else str(value)[:_MOST_CHARS]
