"""The FastAPI application with the routes of every dialect."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI

from serve_app.api import docs_page, health, huggingface, playground
from serve_app.api.a1111 import controlnet, lists
from serve_app.api.a1111 import routes as a1111
from serve_app.api.errors import add_error_handlers
from serve_app.api.middleware import RequestMiddleware
from serve_app.api.native import admin, batches, usage, verify, weights
from serve_app.api.native import routes as native
from serve_app.api.openai import batches as openai_batches
from serve_app.api.openai import files as openai_files
from serve_app.api.openai import routes as openai
from serve_app.api.openapi import complete_openapi
from serve_app.api.service import Service
from serve_app.api.shared import Shared, StageStates
from serve_app.api.sse import OpenStreams
from serve_app.auth.guard import Guard
from serve_app.auth.route_scopes import check_routes

# in the order of the document
ROUTERS = (
    native.routes,
    batches.routes,
    usage.routes,
    verify.routes,
    admin.routes,
    weights.routes,
    health.routes,
    openai.routes,
    openai.other_paths,
    openai_files.routes,
    openai_batches.routes,
    a1111.routes,
    lists.routes,
    controlnet.routes,
    huggingface.routes,
    playground.routes,
    docs_page.routes,
)

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def build_application(
    service: Service, stage_states: StageStates, *, lifespan: Lifespan, adds_request_id: bool
) -> FastAPI:
    """The application that serves all dialects.

    Args:
        service: that the routes call.
        stage_states: returns each stage's state.
        lifespan: opens and closes the service's parts.
        adds_request_id: see RequestMiddleware.

    Raises:
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
        # include_router would analyse every route once more for each application; each router has its prefix and tags
        routes=[route for router in ROUTERS for route in router.routes],
    )
    Shared(service, stage_states, OpenStreams(service.settings.limits.max_event_streams)).give_to(app)
    access = service.settings.access
    app.add_middleware(
        Guard,
        settings=access,
        keys=service.keys,
        rates=service.rates,
        count_refusal=service.store.usage.refused,
    )
    app.add_middleware(
        RequestMiddleware,
        metrics=service.metrics,
        limits=service.settings.limits,
        adds_request_id=adds_request_id,
    )
    add_error_handlers(app, service.metrics, service.retry_after_s)
    complete_openapi(app, keyed=access.keyed)
    check_routes(app)
    return app


def _version() -> str:
    try:
        return version("darkroom")
    except PackageNotFoundError:  # run from a source tree that isn't installed
        return "0"
