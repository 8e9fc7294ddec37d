"""The FastAPI application with the routes of every dialect."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI

from serve_app.api.a1111.controlnet import a1111_controlnet_routes
from serve_app.api.a1111.lists import a1111_list_routes
from serve_app.api.a1111.routes import a1111_routes
from serve_app.api.docs_page import add_docs_page
from serve_app.api.errors import add_error_handlers
from serve_app.api.health import Stages, health_routes
from serve_app.api.huggingface import huggingface_routes
from serve_app.api.middleware import RequestMiddleware
from serve_app.api.native.routes import native_routes
from serve_app.api.native.usage import usage_routes
from serve_app.api.native.verify import verify_routes
from serve_app.api.openai.routes import openai_routes
from serve_app.api.openapi import complete_openapi
from serve_app.api.playground import add_playground
from serve_app.api.service import Service
from serve_app.auth.guard import Guard
from serve_app.auth.key_file import KeyRing
from serve_app.auth.route_scopes import check_routes

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def build_application(service: Service, stages: Stages, *, lifespan: Lifespan, adds_request_id: bool) -> FastAPI:
    """The application that serves all dialects.

    Args:
        service: that the routes call.
        stages: returns each stage's state.
        lifespan: opens and closes the service's parts.
        adds_request_id: see RequestMiddleware.

    Raises:
        BadKeys: the settings name API keys that can't be read.
        RuntimeError: a route doesn't declare its Access.
    """
    app = FastAPI(
        title="Darkroom",
        version=_version(),
        description="A Stable Diffusion server that batches at the level of denoising steps.",
        redirect_slashes=False,
        docs_url=None,  # docs_page.py has its own
        redoc_url=None,
        lifespan=lifespan,
    )
    access = service.settings.access
    app.add_middleware(
        Guard,
        settings=access,
        keys=KeyRing(access) if access.keyed else None,
        count_refusal=service.store.usage.refused,
    )
    app.add_middleware(
        RequestMiddleware,
        metrics=service.metrics,
        limits=service.settings.limits,
        adds_request_id=adds_request_id,
    )
    add_error_handlers(app, service.metrics, service.retry_after_s)
    app.include_router(native_routes(service))
    app.include_router(usage_routes(service))
    app.include_router(verify_routes(service))
    app.include_router(health_routes(service.store, service.images, service.signer, stages))
    app.include_router(openai_routes(service))
    app.include_router(a1111_routes(service))
    app.include_router(a1111_list_routes(service))
    app.include_router(a1111_controlnet_routes(service))
    app.include_router(huggingface_routes(service))
    add_docs_page(app)
    add_playground(app)
    complete_openapi(app, keyed=access.keyed)
    check_routes(app)
    return app


def _version() -> str:
    try:
        return version("darkroom")
    except PackageNotFoundError:  # run from a source tree that isn't installed
        return "0"
