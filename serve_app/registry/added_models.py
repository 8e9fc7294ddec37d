"""Models that are added and removed at run time.

A new model's files are checked, then an entry of the registry names it, and a job draws its first image: through the
ordinary dispatch, on one replica, which loads it for that. The job's end makes the model ready, or failed. What comes
from the hub is looked up before there is an entry, and downloaded and checked before there is a job. A removed
model takes no more requests; when its last job has ended the stages forget it, and its entry goes. Each of these steps
is taken by whichever router comes first, so that none is lost with a router.
"""

import asyncio
import itertools
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from deployments.config import stage_of
from deployments.engine.adapters.lora_folder import LoraFolder
from deployments.engine.checkpoints.files import is_hub_id, is_safetensors
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.errors import CheckpointError, DarkroomError, InvalidRequest, LoraRefused
from serve_app.config.hub_checkpoints import cache_folder
from serve_app.config.models import ModelSettings
from serve_app.config.settings import Settings
from serve_app.config.weights_check import incomplete_folders, missing_sources, unjudged_models, wrong_files
from serve_app.errors import StoreUnavailable, UnknownEntry, UnknownJob
from serve_app.jobs.db.store import JobStore
from serve_app.jobs.job import Job
from serve_app.jobs.states import JobState
from serve_app.observability.logs import get_logger
from serve_app.registry.entries import AdditionState, Author, Content, Entries, EntryKind
from serve_app.registry.hub_download import download, look_up
from serve_app.registry.live_settings import LiveSettings
from serve_app.registry.overlay import validated_section
from serve_app.schemas.validation import shown

log = get_logger(__name__)

_SERVICE = Author("", None)

# a router writes the job of a new model right after its entry: if it isn't there by then, that router has died
_JOB_S = 30.0

# the settings that name files
_PATHS = ("source", "vae", "config")

# files that a diffusers folder may have
_MOST_FILES = 10_000

# downloads of one router at once
_DOWNLOADS = 2

# draws the first image of the model of a name as a job of a new id, for whoever added it
FirstDraw = Callable[[str, str, Author], Awaitable[Job]]


class AddedModels:
    """The models that were added. Belongs to one event loop.

    Args:
        settings: of the configuration file.
        live: those with the models as they are now.
        store: the jobs.
        loras: the folder of LoRAs.
        retain: lets a denoising stage, by its key in the settings, and the text encoder forget every checkpoint that
            came with requests but those that it is given.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        live: LiveSettings,
        store: JobStore,
        loras: LoraFolder,
        retain: Callable[[str, Sequence[str]], Awaitable[None]],
    ) -> None:
        self._settings = settings
        self._live = live
        self._store = store
        self._loras = loras
        self._retain = retain
        self._since: dict[str, tuple[Content, float]] = {}
        self._downloads: dict[str, tuple[Content, asyncio.Task[None]]] = {}
        self._turns = asyncio.Semaphore(_DOWNLOADS)
        self._draw: FirstDraw | None = None
        self._loop: asyncio.Task[None] | None = None

    def start(self, draw: FirstDraw) -> None:
        """Begin to take the steps that are due."""
        self._draw = draw
        self._loop = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        """End."""
        tasks = [task for _, task in self._downloads.values()] + ([] if self._loop is None else [self._loop])
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def check(self) -> None:
        """Raise what ended the loop, if it has ended."""
        if self._loop is not None and self._loop.done() and not self._loop.cancelled():
            self._loop.result()

    async def _follow(self) -> None:
        away = False
        while True:
            try:
                await self.settle()
                away = False
            except StoreUnavailable as error:
                if not away:
                    log.warning("added models wait: the job database is away", cause=repr(error.__cause__))
                away = True
            await asyncio.sleep(self._settings.registry.poll_s)

    async def add(
        self, name: str, fields: Mapping[str, Any], author: Author, draw: Callable[[str, str], Awaitable[Job]]
    ) -> None:
        """Begin to add a model.

        Args:
            name: of it.
            fields: as a model's in the configuration file, `source` among them.
            author: whoever adds it.
            draw: draws the first image of the model of a name as a job of a new id.

        Raises:
            InvalidRequest: there is such a model, its files can't be used, or it can't be so.
            DarkroomError: its first image can't be drawn; the entry says so.
            StoreUnavailable: nothing was added, or it will fail.
        """
        settings, comes_from_hub = await asyncio.to_thread(self._checked, name, fields)
        content: dict[str, Any] = {"settings": settings, "job": self._store.new_id()}
        if comes_from_hub:
            commit, size = await self._looked_up(validated_section(ModelSettings, settings).checkpoint())
            settings["revision"] = commit  # what the repository has later is another model
            of_download = {"bytes": size, "tenant": author.tenant, "key_id": author.key_id}
            content |= {"state": AdditionState.DOWNLOADING.value, **of_download}
        else:
            content |= {"state": AdditionState.ADDING.value}

        def added(entries: Entries) -> Content:
            present = entries.checkpoints.get(name)
            if present is not None and present["state"] != AdditionState.FAILED:
                raise InvalidRequest(f"there is a model {shown(name)} already ({present['state']})", "name")
            return content

        await self._live.change(EntryKind.CHECKPOINT, name, added, author)
        if content["state"] == AdditionState.ADDING:
            await self._draw_first(name, content, lambda: draw(name, content["job"]))

    async def _draw_first(self, name: str, content: Content, draw: Callable[[], Awaitable[Job]]) -> None:
        """Let the first image of a model be drawn. Raises DarkroomError: it can't be."""
        try:
            await draw()
        except DarkroomError as error:
            if not isinstance(error, StoreUnavailable):  # (there may be a job all the same)
                await self._become(name, content, {"state": AdditionState.FAILED.value, "problem": str(error)})
            raise

    async def remove(self, name: str, author: Author) -> str | None:
        """Begin to remove a model that was added.

        Returns:
            The job that draws its first image, if it may still run: it is to be cancelled.

        Raises:
            UnknownEntry: no such model was added.
            InvalidRequest: an alias means it.
            StoreUnavailable: nothing was changed.
        """
        job: str | None = None

        def removed(entries: Entries) -> Content | None:
            nonlocal job
            content = entries.checkpoints.get(name)
            if content is None:
                where = "it is in the configuration file" if name in self._settings.models else "there is none"
                raise UnknownEntry(f"no model {ascii(name)[:66]} was added at run time: {where}")
            alias = next((alias for alias, of in entries.aliases.items() if of.get("model") == name), None)
            if alias is not None:
                raise InvalidRequest(f"the alias {shown(alias)} means it: remove that first")
            if (EntryKind.CHECKPOINT, name) in self._live.problems:
                return None  # (nobody can draw with it)
            job = content["job"] if content["state"] == AdditionState.ADDING else None
            return {**content, "state": AdditionState.REMOVING.value}

        await self._live.change(EntryKind.CHECKPOINT, name, removed, author)
        return job

    async def settle(self) -> None:
        """Take the steps that are due. Raises StoreUnavailable."""
        checkpoints = self._live.entries.checkpoints
        now = time.monotonic()
        self._since = {
            name: seen if (seen := self._since.get(name)) is not None and seen[0] == content else (content, now)
            for name, content in checkpoints.items()
        }
        await self._settle_downloads(checkpoints)
        for name, (content, since) in self._since.items():
            match content["state"]:
                case AdditionState.ADDING if (EntryKind.CHECKPOINT, name) not in self._live.problems:
                    await self._look_at_job(name, content, now - since)
                case AdditionState.REMOVING:
                    await self._end_removal(name, content, now - since)

    async def _settle_downloads(self, checkpoints: Mapping[str, Content]) -> None:
        """Begin and end downloads. Each router has its own, as nodes may have caches of their own; the first counts."""
        for name, (content, task) in list(self._downloads.items()):
            present = checkpoints.get(name)
            ended = AdditionState.FAILED, AdditionState.REMOVING
            if present is None or present["job"] != content["job"] or present["state"] in ended:
                task.cancel()
                await asyncio.wait([task])
            if task.done():
                del self._downloads[name]
                if not task.cancelled():
                    task.result()  # (after an outage of the database it begins anew)
        for name, content in checkpoints.items():
            usable = (EntryKind.CHECKPOINT, name) not in self._live.problems
            if content["state"] == AdditionState.DOWNLOADING and usable and name not in self._downloads:
                self._downloads[name] = content, asyncio.create_task(self._download(name, content))

    async def _download(self, name: str, content: Content) -> None:
        """Download a model's files and check them; then its first image is drawn. Raises StoreUnavailable."""
        model = self._live.settings.models[name]
        try:
            async with self._turns:
                folder = await download(model.checkpoint())
            await asyncio.to_thread(self._check_files, name, model.model_copy(update={"source": str(folder)}))
        except (CheckpointError, InvalidRequest) as error:
            await self._become(name, content, {"state": AdditionState.FAILED.value, "problem": str(error)})
            return
        adding = {**content, "state": AdditionState.ADDING.value}
        if self._draw is None or not await self._become(name, content, adding):
            return
        draw, author = self._draw, Author(content["tenant"], content["key_id"])
        try:
            await self._draw_first(name, adding, lambda: draw(name, content["job"], author))
        except StoreUnavailable:
            raise
        except DarkroomError as error:
            log.warning("the first image of a model can't be drawn", name=name, reason=str(error))

    async def _look_at_job(self, name: str, content: Content, waited_s: float) -> None:
        """A model whose first image has been drawn is ready."""
        try:
            job = await self._store.get(content["job"])
        except UnknownJob:
            if waited_s > _JOB_S:
                problem = "the router that added it ended too early: add it again"
                await self._become(name, content, {"state": AdditionState.FAILED.value, "problem": problem})
            return
        if job.state in (JobState.COMPLETE, JobState.BLOCKED):  # (of what is withheld the model is no less there)
            await self._become(name, content, {"state": AdditionState.READY.value})
        elif job.state.terminal:
            problem = job.error_message or f"its first image was {job.state.value}"
            await self._release(name)
            await self._become(name, content, {"state": AdditionState.FAILED.value, "problem": problem})

    async def _end_removal(self, name: str, content: Content, waited_s: float) -> None:
        """A removed model goes, with what was changed of it, when its last job has ended, and every router knows."""
        if waited_s < 2 * self._settings.registry.poll_s or name in await self._store.unfinished_by_model():
            return
        await self._release(name)
        for kind in (EntryKind.MODEL, EntryKind.CHECKPOINT):
            await self._live.change(kind, name, partial(_none_unless_changed, kind, name, content), _SERVICE)
        log.info("a model was removed", name=name)

    async def _become(self, name: str, content: Content, changes: Content) -> bool:
        """Another state; False if somebody was quicker."""
        first = False

        def changed(entries: Entries) -> Content | None:
            nonlocal first
            present = entries.checkpoints.get(name)
            first = present == content
            return {**content, **changes} if first else present

        await self._live.change(EntryKind.CHECKPOINT, name, changed, _SERVICE)
        log.info("a model was added", name=name, state=changes["state"], problem=changes.get("problem"))
        return first

    async def _release(self, leaving: str) -> None:
        """Let the stages forget a model; and any other that isn't here."""
        models = self._live.settings.models
        if leaving not in models:
            return
        staying = [
            models[name].name_in_stages(name)
            for name, content in self._live.entries.checkpoints.items()
            if name in models and name != leaving and content["state"] != AdditionState.FAILED
        ]
        await self._retain(stage_of(models[leaving].family), staying)

    def _checked(self, name: str, fields: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
        """The fields of a model whose files can be used here, as its entry keeps them. Raises InvalidRequest.

        Returns:
            The fields, and whether the files come from the hub: then nothing is known of them yet.
        """
        present = self._live.settings
        if name in present.models and name not in self._live.entries.checkpoints:
            raise InvalidRequest(f"{shown(name)} is a model of the configuration file", "name")
        roots = [Path(folder).expanduser().resolve() for folder in self._settings.registry.folders]
        comes_from_hub = self._comes_from_hub(roots, fields["source"])
        named = [field for field in _PATHS if fields.get(field) is not None]
        if comes_from_hub:
            named.remove("source")
        kept = {**fields, **{field: str(_within(roots, fields[field], field)) for field in named}}
        model = validated_section(ModelSettings, kept)
        self._check_settings(name, model)
        if not comes_from_hub:
            self._check_files(name, model)
        return {**kept, "family": model.family}, comes_from_hub

    def _comes_from_hub(self, roots: Sequence[Path], source: str) -> bool:
        """Whether a source is a repository of the hub. Raises InvalidRequest for one that isn't allowed."""
        if not is_hub_id(source) or any((root / source).exists() for root in roots):
            return False
        if any(fnmatchcase(source, pattern) for pattern in self._settings.registry.repositories):
            return True
        raise InvalidRequest(
            f"source is {shown(source)}: there is no such file or folder in registry.folders, and "
            "registry.repositories allows no such repository of the hub",
            "source",
        )

    async def _looked_up(self, spec: CheckpointSpec) -> tuple[str, int]:
        """The commit of a repository, and bytes of what is needed of it. Raises InvalidRequest, StoreUnavailable."""
        try:
            files = await look_up(spec)
        except CheckpointError as error:
            raise InvalidRequest(str(error), "source") from None
        if not any(is_safetensors(Path(file.name)) for file in files):
            raise InvalidRequest(
                f"{spec.source} has no safetensors weights where a {spec.family} model in diffusers' form has them; "
                "pickles are never loaded",
                "source",
            )
        size, most = sum(file.bytes for file in files), self._settings.registry.max_download_bytes
        if size > most:
            raise InvalidRequest(
                f"{spec.source} has {size} bytes of what is needed, at most {most} are downloaded "
                "(registry.max_download_bytes)",
                "source",
            )
        missing = sum(file.bytes for file in files if not file.cached)
        if shutil.disk_usage(cache_folder()).free < missing + self._settings.registry.min_free_bytes:
            raise StoreUnavailable("the disk of Hugging Face's cache has no room for the model")
        return files[0].commit, size

    def _check_settings(self, name: str, model: ModelSettings) -> None:
        """Raise InvalidRequest unless there can be such a model here, whatever its files are."""
        if model.refines:
            raise InvalidRequest("a refiner draws nothing by itself: name it in the configuration file", "family")
        if stage_of(model.family) not in {stage_of(one.family) for one in self._settings.models.values()}:
            raise InvalidRequest(
                f"no stage for models of family {model.family} was started: the configuration file has none", "family"
            )
        if unjudged_models(self._alone(name, model)):
            raise InvalidRequest(
                "the default classifier knows the demo models' images alone: name one in the configuration file's "
                "safety.classifier",
            )
        for lora in model.loras:
            try:
                self._loras.find(lora.name)
            except LoraRefused as error:
                raise InvalidRequest(error.message, "loras") from None

    def _check_files(self, name: str, model: ModelSettings) -> None:
        """Raise InvalidRequest unless a model's files can be used."""
        alone = self._alone(name, model)
        for findings in (missing_sources(alone), wrong_files(alone), incomplete_folders(alone)):
            for keys, reason in findings:
                raise InvalidRequest(reason, ".".join(keys[2:]))

    def _alone(self, name: str, model: ModelSettings) -> Settings:
        return self._live.settings.model_copy(update={"models": {name: model}})


def _none_unless_changed(kind: EntryKind, name: str, content: Content, entries: Entries) -> Content | None:
    """No entry of a kind, unless that of the checkpoint is another one by now."""
    return None if entries.checkpoints.get(name) == content else entries.of(kind).get(name)


def _within(roots: Sequence[Path], named: object, field: str) -> Path:
    """The file or folder that is named, by its path or within one of the roots, links followed.

    Raises InvalidRequest unless it, and all that it holds, lies in them.
    """
    if not roots:
        raise InvalidRequest("models are added from folders that the settings name, and they name none", field)
    if not isinstance(named, str):
        raise InvalidRequest(f"{field} must be a path", field)
    outside = InvalidRequest(
        f"{field} is {shown(named)}, which is in none of the folders that models may be added from", field
    )
    try:
        inside = [one for root in roots if _is_within(roots, one := (root / named).resolve())]
        path = next((one for one in inside if one.exists()), None)
        if path is None:
            if inside:
                raise InvalidRequest(f"{field} is {shown(named)}: there is no such file or folder", field)
            raise outside
        held = list(itertools.islice(path.rglob("*"), _MOST_FILES + 1)) if path.is_dir() else []
        if len(held) > _MOST_FILES:
            raise InvalidRequest(f"{field} is {shown(named)}, a folder of more than {_MOST_FILES} files", field)
        if not all(_is_within(roots, one.resolve()) for one in held if one.is_symlink()):
            raise outside
    except (OSError, ValueError, RuntimeError):  # a name that no file can have, or links in a circle
        raise outside from None
    return path


def _is_within(roots: Sequence[Path], path: Path) -> bool:
    return any(path.is_relative_to(root) for root in roots)
