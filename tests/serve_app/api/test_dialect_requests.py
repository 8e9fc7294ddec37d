"""Whatever JSON a client sends, a dialect makes a request of it or refuses it: nothing else is ever raised."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from deployments.engine.errors import InvalidRequest
from serve_app.api.a1111.options import A1111Options
from serve_app.api.a1111.request import A1111ImageToImage, A1111TextToImage
from serve_app.api.a1111.translation import Folders, translated
from serve_app.api.bodies import Form, parse_json
from serve_app.api.huggingface import HuggingFaceInputs, generation_of
from serve_app.api.openai.edits import OpenAIEditRequest, OpenAIVariationRequest
from serve_app.api.openai.request import EXTRA_FIELDS, OpenAIImageRequest
from serve_app.config.settings import LimitsSettings, Settings
from serve_app.errors import UnreadableRequest
from serve_app.schemas.validation import validated
from tests.serve_app.conftest import catalogue

SETTINGS = Settings.model_validate(catalogue())

TEXTS = st.sampled_from(
    ["", "x", "demo-sdxl", "Karras", "Euler a", "auto", "256x256", "None", "-1", "1e400", "nan", "\ud800"]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20) | TEXTS
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=4,
)


def bodies(*names: str) -> st.SearchStrategy[Any]:
    """Objects that mostly have the right keys, and anything else."""
    keys = st.sampled_from(names) | st.text(max_size=10)
    return st.dictionaries(keys, VALUES, max_size=4).map(lambda body: {"prompt": "x", "inputs": "x", **body}) | VALUES


@contextmanager
def may_be_refused() -> Iterator[None]:
    """With words that can be sent to the client, and that are no novel."""
    try:
        yield
    except InvalidRequest as refused:
        said = f"{refused.field}: {refused}"
    else:
        return
    assert len(said.encode()) < 1_000


def as_sent(body: Any) -> Any:
    """As it comes out of the front door; None where it doesn't get in. Infinity is sent as 1e999."""
    try:
        return parse_json(json.dumps(body).replace("Infinity", "1e999").encode(), LimitsSettings())
    except UnreadableRequest:
        return None


@given(bodies(*OpenAIImageRequest.model_fields, *EXTRA_FIELDS))
def test_openai(body: Any) -> None:
    with may_be_refused():
        validated(OpenAIImageRequest, as_sent(body)).generation()


FIELDS = st.sampled_from([*OpenAIEditRequest.model_fields, *OpenAIEditRequest.extra_fields])
NAMES = FIELDS | st.tuples(FIELDS, st.sampled_from(["[]", "[x]", "[switch_at]", "[", "[x][y]"])).map("".join)


@given(
    st.dictionaries(NAMES | st.text(max_size=10), TEXTS | st.sampled_from(["1", "true", "{}", "[", '{"x": 1}'])),
    st.sampled_from([OpenAIEditRequest, OpenAIVariationRequest]),
)
def test_openai_s_forms(texts: dict[str, str], form: type[OpenAIEditRequest]) -> None:
    sent = {name: text for name, text in texts.items() if text.isascii() and name.isprintable()}
    with may_be_refused():
        try:
            lists = {name: (text, text) for name, text in sent.items() if "[]" in name}
            plain = {name: text for name, text in sent.items() if name not in lists}
            form.parse_form(Form({"prompt": "x", **plain}, {}, lists), LimitsSettings()).generation_from(b"x", None, 1)
        except UnreadableRequest:
            return


@given(bodies(*A1111TextToImage.model_fields))
def test_a1111(body: Any) -> None:
    with may_be_refused():
        translated(validated(A1111TextToImage, as_sent(body)), SETTINGS, A1111Options(), None, Folders())


@given(bodies(*A1111ImageToImage.model_fields))
def test_a1111_from_an_image(body: Any) -> None:
    body = {**body, "init_images": ["x"]} if isinstance(body, dict) else body
    with may_be_refused():
        translated(validated(A1111ImageToImage, as_sent(body)), SETTINGS, A1111Options(), None, Folders())


@given(bodies(*A1111Options.model_fields))
def test_a1111_options(body: Any) -> None:
    with may_be_refused():
        model = validated(A1111Options, as_sent(body)).model(SETTINGS)
        assert model is None or model in SETTINGS.models


@given(
    bodies("inputs", "parameters"), bodies("num_inference_steps", "width", "seed", "scheduler", "refiner"), st.text()
)
def test_hugging_face(body: Any, parameters: Any, accept: str) -> None:
    if isinstance(body, dict):
        body = {**body, "parameters": parameters}
    with may_be_refused():
        generation_of(validated(HuggingFaceInputs, as_sent(body)), None, accept)
