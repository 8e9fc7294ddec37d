"""Files of weights that are uploaded and removed while the service runs, for keys with the scope admin.

GET    /admin/weights
PUT    /admin/weights/{folder}/{name}       the file's bytes, as they are
DELETE /admin/weights/{folder}/{name}
"""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import BaseModel, Field

from serve_app.api.bodies import FILE_SCHEMA, RequestBody, body_parts
from serve_app.api.native.admin import author_of
from serve_app.api.service import Service
from serve_app.api.shared import CurrentService
from serve_app.auth.route_scopes import Admin
from serve_app.errors import UnreadableRequest
from serve_app.registry.weight_files import WeightFile

_BYTES = "application/octet-stream"


class WeightFileView(BaseModel):
    """A file of weights, or a diffusers folder."""

    name: str
    bytes: int
    sha256: str | None = Field(description="Of an uploaded file; null where it isn't known.")


class WeightList(BaseModel):
    """What the folders of weights offer, by the settings' names for them."""

    folders: dict[str, list[WeightFileView]]


class WeightsBody(RequestBody):
    """A body that its route reads while it comes; the value is its length."""

    model = WeightFileView

    @property
    def content(self) -> dict[str, Any]:
        return {_BYTES: {"schema": FILE_SCHEMA, "example": "the bytes of a .safetensors file"}}

    async def __call__(self, request: Request, service: CurrentService) -> int:
        request.state.max_body_bytes = service.settings.registry.max_upload_bytes
        length = request.headers.get("content-length", "")
        if not length.isascii() or not length.isdigit():
            raise UnreadableRequest("the request must say how long the file is: Content-Length")
        return int(length)


_Folder = Annotated[str, Path(max_length=32, examples=["loras"])]
_Name = Annotated[str, Path(max_length=128, examples=["night"])]

routes = APIRouter(prefix="/admin/weights")


@routes.get("")
async def weights(caller: Admin, service: CurrentService) -> WeightList:
    """The files of weights that requests may name, by folder."""
    return await _list(service)


@routes.put("/{folder}/{name}")
async def upload(
    caller: Admin,
    folder: _Folder,
    name: _Name,
    length: Annotated[int, Depends(WeightsBody())],
    service: CurrentService,
    request: Request,
    replace: Annotated[bool, Query(examples=[False], description="Take another file's place.")] = False,
) -> WeightFileView:
    """Put a safetensors file into a folder. Requests may name it from then on."""
    parts = body_parts(request)
    file = await service.weights.upload(folder, name, length, parts, author_of(caller), replaces=replace)
    return _view(file)


@routes.delete("/{folder}/{name}")
async def remove(caller: Admin, folder: _Folder, name: _Name, service: CurrentService) -> WeightList:
    """Take a file out of a folder; the answer lists the others."""
    await service.weights.remove(folder, name, author_of(caller))
    return await _list(service)


async def _list(service: Service) -> WeightList:
    found = await service.weights.files()
    return WeightList(folders={folder: [_view(file) for file in files] for folder, files in found.items()})


def _view(file: WeightFile) -> WeightFileView:
    return WeightFileView(name=file.name, bytes=file.bytes, sha256=file.sha256)
