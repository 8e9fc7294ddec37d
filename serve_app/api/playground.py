"""GET /: the playground, a page that asks for images. Its files are those of serve_app/ui, as they are.

They are read once, at the start, so no request's path ever reaches the disk. A browser asks whether its copy is still
good (by the hash of the content, which is the same on every router) before it uses it again. The page may load and call
nothing but this service, and may put no text into itself as markup.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

from fastapi import APIRouter, Depends, Request, Response

from serve_app.api.errors import unknown_route
from serve_app.auth.route_scopes import PUBLIC

_PAGE = "index.html"

_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    media_type: str
    etag: str


def _read() -> Mapping[str, _File]:
    found = {}
    for entry in files("serve_app").joinpath("ui").iterdir():
        media_type = _MEDIA_TYPES.get("." + entry.name.rpartition(".")[2])
        if media_type is not None:
            content = entry.read_bytes()
            found[entry.name] = _File(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
    return found


_FILES = _read()

routes = APIRouter(include_in_schema=False, dependencies=[Depends(PUBLIC)])


@routes.get("/")
async def page(request: Request) -> Response:
    """The page."""
    response = _answer(_FILES[_PAGE], request)
    response.headers["Content-Security-Policy"] = _POLICY
    return response


@routes.get("/ui/{name}")
async def file(name: str, request: Request) -> Response:
    """A file that it loads."""
    if name not in _FILES or name == _PAGE:
        raise unknown_route(request.url.path)
    return _answer(_FILES[name], request)


def _answer(file: _File, request: Request) -> Response:
    headers = {"ETag": file.etag, "Cache-Control": "no-cache"}
    held = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if file.etag in held:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)
