"""Changes of models at run time, for keys with the scope admin.

GET    /admin/models
POST   /admin/models                  adds one
DELETE /admin/models/{model}          removes one that was added
PATCH  /admin/models/{model}          its defaults, limits, tenants, and whether it serves
PUT    /admin/aliases/{alias}
DELETE /admin/aliases/{alias}
GET    /admin/changes                 who has changed what
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from serve_app.api.bodies import JsonBody
from serve_app.api.service import Service
from serve_app.api.shared import CurrentService
from serve_app.auth.caller import Caller
from serve_app.auth.route_scopes import Admin
from serve_app.config.hub_checkpoints import bytes_in_cache
from serve_app.config.models import ModelAlias, ModelDefaults, ModelLimits, ModelName
from serve_app.errors import UnknownJob
from serve_app.registry.entries import AdditionState, Author, Change, Content, EntryKind


class ModelPatch(BaseModel):
    """What is to be changed of a model; null is the configuration file's value again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    defaults: dict[str, Any] | None = Field(default=None, description="Some of its defaults.")
    limits: dict[str, Any] | None = Field(default=None, description="Some of its limits, each as a whole.")
    tenants: tuple[str, ...] | None = Field(default=None, max_length=1_000, description="Who may use it.")
    serving: bool | None = Field(default=None, description="Whether requests may name it.")


class NewModel(BaseModel):
    """A model to add: its name, and what a model of the configuration file may have."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: ModelName
    source: str = Field(
        min_length=1,
        max_length=4_096,
        description="A diffusers folder or a .safetensors file in one of registry.folders: its path, or that in one. "
        "Or a repository of the Hugging Face hub that registry.repositories allows.",
    )


class DownloadView(BaseModel):
    """How far the download of a model's files from the hub is."""

    bytes: int
    downloaded_bytes: int = Field(description="Of these, on the node of the router that answers.")


class AdditionView(BaseModel):
    """How far a model is that was added."""

    state: AdditionState
    source: str
    revision: str | None = Field(description="The commit of a repository of the hub.")
    download: DownloadView | None = Field(description="While its files are downloaded.")
    job_id: str = Field(
        description="Of the job that draws its first image, with its progress as events; there when the files are."
    )
    problem: str | None = Field(description="Why it couldn't be added.")


class AdminModelView(BaseModel):
    """A model as it is now."""

    name: str
    family: str
    serving: bool
    added: AdditionView | None = Field(description="Of a model that the configuration file hasn't.")
    unfinished: int = Field(description="Accepted jobs that haven't ended; a model that doesn't serve drains them.")
    tenants: tuple[str, ...] | None
    defaults: ModelDefaults
    limits: ModelLimits
    changed: dict[str, Any] = Field(description="What was set at run time.")


class AliasView(BaseModel):
    """An alias."""

    name: str
    model: str
    sha256: str | None
    changed: bool = Field(description="Whether it was set at run time.")


class IdleEntryView(BaseModel):
    """What was set at run time, and has no effect any more."""

    kind: EntryKind
    name: str
    content: dict[str, Any]
    problem: str


class AdminModelList(BaseModel):
    """The models and aliases as they are now."""

    version: int = Field(description="The number of changes so far.")
    models: list[AdminModelView]
    aliases: list[AliasView]
    without_effect: list[IdleEntryView]


class ChangeView(BaseModel):
    """A change: the entry's content before and after; null where there was or is none."""

    version: int
    at: str
    tenant: str
    key_id: str | None
    kind: EntryKind
    name: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None


class ChangeList(BaseModel):
    """Changes, newest first."""

    changes: list[ChangeView]
    next_cursor: int | None


_Model = Annotated[str, Path(max_length=64, examples=["demo-sd15"])]
_Alias = Annotated[ModelName, Path(examples=["realistic"])]
_NEW = JsonBody(NewModel, {"name": "portraits", "source": "portraits.safetensors", "defaults": {"steps": 30}})
_PATCH = JsonBody(ModelPatch, {"defaults": {"steps": 20}, "limits": {"steps": {"min": 10, "max": 30}}})
_ALIAS = JsonBody(ModelAlias, {"model": "demo-sd15"})

routes = APIRouter(prefix="/admin")


@routes.get("/models")
async def models(caller: Admin, service: CurrentService) -> AdminModelList:
    """All models with their present defaults, limits and tenants, also those that don't serve, and the aliases."""
    return await _list(service)


@routes.post("/models", status_code=202)
async def add_model(caller: Admin, new: Annotated[NewModel, Depends(_NEW)], service: CurrentService) -> AdminModelList:
    """Add a model. Requests may name it when its first image has been drawn, by a job of the caller's."""
    await service.added.add(
        new.name,
        new.model_dump(exclude={"name"}),
        author_of(caller),
        lambda name, job_id: service.draw_first(name, job_id, caller),
    )
    return await _list(service)


@routes.delete("/models/{model}", status_code=202)
async def remove_model(caller: Admin, model: _Model, service: CurrentService) -> AdminModelList:
    """Remove a model that was added. It takes no more requests, and goes when its last job has ended."""
    job_id = await service.added.remove(model, author_of(caller))
    if job_id is not None:
        with suppress(UnknownJob):  # (its router died before it was stored)
            await service.cancel(job_id)
    return await _list(service)


@routes.patch("/models/{model}")
async def change_model(
    caller: Admin, model: _Model, patch: Annotated[ModelPatch, Depends(_PATCH)], service: CurrentService
) -> AdminModelList:
    """Change some of a model's defaults and limits, its tenants, or whether it serves."""
    await service.live.change_model(model, patch.model_dump(mode="json", exclude_unset=True), author_of(caller))
    return await _list(service)


@routes.put("/aliases/{alias}")
async def set_alias(
    caller: Admin, alias: _Alias, content: Annotated[ModelAlias, Depends(_ALIAS)], service: CurrentService
) -> AdminModelList:
    """Let an alias mean a model, if asked for with one hash of its weights alone."""
    await service.live.set_alias(alias, content.model_dump(mode="json", exclude_none=True), author_of(caller))
    return await _list(service)


@routes.delete("/aliases/{alias}")
async def remove_alias(caller: Admin, alias: _Alias, service: CurrentService) -> AdminModelList:
    """Forget an alias that was set at run time."""
    await service.live.remove_alias(alias, author_of(caller))
    return await _list(service)


@routes.get("/changes")
async def changes(
    caller: Admin,
    service: CurrentService,
    limit: Annotated[int, Query(ge=1, le=1_000, examples=[20])] = 100,
    before: Annotated[int | None, Query(ge=1, le=2**31 - 1, examples=[7], description="The cursor of a page.")] = None,
) -> ChangeList:
    """The changes of models, newest first."""
    page = await service.store.registry.changes(limit=limit + 1, before=before)
    more = len(page) > limit
    return ChangeList(
        changes=[_change(change) for change in page[:limit]], next_cursor=page[limit - 1].version if more else None
    )


def author_of(caller: Caller) -> Author:
    """Who changes something by a request."""
    return Author(caller.tenant, None if caller.key is None else caller.key.id)


async def _list(service: Service) -> AdminModelList:
    unfinished = await service.store.unfinished_by_model()
    live = service.live
    downloads = await asyncio.to_thread(_downloads, live.entries.checkpoints)
    return AdminModelList(
        version=live.version,
        models=[
            AdminModelView(
                name=name,
                family=model.family,
                serving=model.serves,
                added=_addition(live.entries.checkpoints.get(name), downloads.get(name)),
                unfinished=unfinished.get(name, 0),
                tenants=model.tenants,
                defaults=model.defaults,
                limits=model.limits,
                changed=dict(live.entries.models.get(name, {})),
            )
            for name, model in live.settings.models.items()
        ],
        aliases=[
            AliasView(name=name, model=alias.model, sha256=alias.sha256, changed=name in live.entries.aliases)
            for name, alias in live.settings.aliases.items()
        ],
        without_effect=[
            IdleEntryView(kind=kind, name=name, content=dict(live.entries.of(kind)[name]), problem=problem)
            for (kind, name), problem in live.problems.items()
        ],
    )


def _downloads(checkpoints: Mapping[str, Content]) -> Mapping[str, DownloadView]:
    return {
        name: DownloadView(
            bytes=content["bytes"],
            downloaded_bytes=min(
                content["bytes"], bytes_in_cache(content["settings"]["source"], content["settings"]["revision"])
            ),
        )
        for name, content in checkpoints.items()
        if content["state"] == AdditionState.DOWNLOADING
    }


def _addition(content: Content | None, download: DownloadView | None) -> AdditionView | None:
    if content is None:
        return None
    return AdditionView(
        state=content["state"],
        source=content["settings"]["source"],
        revision=content["settings"].get("revision"),
        download=download,
        job_id=content["job"],
        problem=content.get("problem"),
    )


def _change(change: Change) -> ChangeView:
    return ChangeView(
        version=change.version,
        at=change.at.isoformat(),
        tenant=change.author.tenant,
        key_id=change.author.key_id,
        kind=change.kind,
        name=change.name,
        before=None if change.before is None else dict(change.before),
        after=None if change.after is None else dict(change.after),
    )
