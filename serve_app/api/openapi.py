"""The OpenAPI document: what FastAPI can't see of the routes. They read their bodies by themselves (read_json), and
every error has its dialect's form, not FastAPI's own. What they may be asked is in document_examples.py.
"""

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from serve_app.api.a1111.routes import A1111_BODIES
from serve_app.api.error_formats import ERROR_SCHEMAS, schema_for
from serve_app.api.huggingface import HuggingFaceInputs
from serve_app.api.native.routes import request_schemas
from serve_app.api.openai.edits import OpenAIEditRequest, OpenAIVariationRequest
from serve_app.api.openai.request import OpenAIImageRequest
from serve_app.api.openapi_examples import PARAMETER_EXAMPLES, example_of

_BODIES: tuple[type[BaseModel], ...] = (
    OpenAIImageRequest,
    OpenAIEditRequest,
    OpenAIVariationRequest,
    *A1111_BODIES,
    HuggingFaceInputs,
)

# statuses of errors as the document groups them -> what they mean
_ERRORS = {"4XX": "The request was refused.", "5XX": "It can't be served, or its job failed."}


def described(generated: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """FastAPI's own generator of the document, completed."""

    def openapi() -> dict[str, Any]:
        document = generated()
        schemas = document["components"]["schemas"]
        schemas |= request_schemas()
        schemas |= {body.__name__: body.model_json_schema() for body in _BODIES}
        schemas |= ERROR_SCHEMAS
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        for path, calls in document["paths"].items():
            form = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema_for(path)}"}}}
            for call in calls.values():
                for kind, content in call.get("requestBody", {}).get("content", {}).items():
                    content["example"] = example_of(path, kind)
                for parameter in call.get("parameters", ()):
                    if parameter["name"] in PARAMETER_EXAMPLES:
                        parameter["example"] = PARAMETER_EXAMPLES[parameter["name"]]
                call["responses"].pop("422", None)
                call["responses"] |= {
                    status: {"description": meaning, "content": form} for status, meaning in _ERRORS.items()
                }
        return document

    return openapi
