"""GET /docs: Swagger UI, with all of its files served here, so that it works offline and nobody else sees its readers.

The files are those of the package fastapi-offline. The page's own script is allowed by its hash; nothing else may be
loaded from elsewhere.
"""

import base64
import hashlib
import re

from fastapi import APIRouter, Depends, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

from serve_app.auth.route_scopes import PUBLIC

_FILES = "/docs-files"

_INLINE_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


routes = APIRouter(include_in_schema=False)
routes.mount(_FILES, StaticFiles(packages=[("fastapi_offline", "static")]), name="docs-files")


@routes.get("/docs", dependencies=[Depends(PUBLIC)])
async def docs(request: Request) -> HTMLResponse:
    """The page, which loads the files."""
    root = str(request.scope.get("root_path", "")).rstrip("/")
    page = get_swagger_ui_html(
        openapi_url=f"{root}{request.app.openapi_url}",
        title=f"{request.app.title}: the interface",
        swagger_js_url=f"{root}{_FILES}/swagger-ui-bundle.js",
        swagger_css_url=f"{root}{_FILES}/swagger-ui.css",
        swagger_favicon_url=f"{root}{_FILES}/favicon.png",
        swagger_ui_parameters={"validatorUrl": None},  # it would send the address of the document to swagger.io
    )
    page.headers["Content-Security-Policy"] = _policy(bytes(page.body).decode())
    return page


def _policy(page: str) -> str:
    """Content-Security-Policy of the page: files and calls of this service only, inline scripts by their hashes."""
    hashes = [hashlib.sha256(script.encode()).digest() for script in _INLINE_SCRIPT.findall(page)]
    scripts = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in hashes)
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src 'self' {scripts}",
            "style-src 'self' 'unsafe-inline'",  # Swagger UI sets styles from its script
            "img-src 'self' data: blob:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
