"""What one request of the A1111 dialect draws or enlarges, as jobs of its caller's."""

import asyncio
import base64
import secrets
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request, Response
from pydantic_core import to_json

from deployments.engine.errors import InvalidRequest
from deployments.engine.types import Pixels
from serve_app.api.a1111.dynamic_prompts import script_of, vary
from serve_app.api.a1111.extras import EXTRAS_UPSCALERS, A1111ExtraImage, A1111ExtraImages
from serve_app.api.a1111.options import A1111Options, kept_options
from serve_app.api.a1111.request import NATIVE_NAMES, A1111ImageToImage, A1111TextToImage
from serve_app.api.a1111.result import result_of
from serve_app.api.a1111.sd_upscale import SdUpscale, TileGrid, with_infotext
from serve_app.api.a1111.sessions import CallerSession
from serve_app.api.a1111.translation import Folders, translated
from serve_app.api.errors import fields_named
from serve_app.api.outcome import ShownImage, completed, ended, error_of, files_of, leave, shown_images
from serve_app.api.service import RequestOrigin, Service
from serve_app.auth.caller import Caller
from serve_app.image_store.store import ImageName
from serve_app.images.decode import decoded, drawn_mask, picture_size, read_picture
from serve_app.images.infotext import infotext_of
from serve_app.images.stored_pictures import read_kept
from serve_app.jobs.job import Job
from serve_app.jobs.states import JobState
from serve_app.planning.resolve import DRAWN_SEEDS
from serve_app.planning.sizes import Size
from serve_app.provenance.content import generation_of
from serve_app.provenance.ingredients import UsedPicture
from serve_app.schemas.digital_source_type import COMPOSITE
from serve_app.schemas.manifest import Manifest
from serve_app.schemas.upscale_request import UpscaleRequest
from serve_app.schemas.validation import shown, validated

# of an upscale that extras ask for -> A1111's fields
_EXTRAS_NAMES = {"upscaler": "upscaler_1", "width": "upscaling_resize", "height": "upscaling_resize"}


async def known_folders(service: Service) -> Folders:
    """What a request may name."""
    return await asyncio.to_thread(
        lambda: Folders(
            service.loras.names(), service.upscalers.names(), service.detectors.names(), service.vaes.names()
        )
    )


@dataclass(frozen=True, slots=True)
class A1111Drawing:
    """Draws and enlarges for one request.

    Attributes:
        service: that draws.
        session: the caller's, which its interrupt ends the jobs of.
        caller: who asks.
        request: whose client may hang up.
        upscaler_hashes: of the models that enlarged a picture, by their names.
    """

    service: Service
    session: CallerSession
    caller: Caller
    request: Request
    upscaler_hashes: dict[str, str] = field(default_factory=dict)

    async def _accepted(self, body: A1111TextToImage) -> tuple[Job, tuple[str, ...]]:
        """The request's job, and what is to be said of it."""
        session = self.session
        settings = self.service.settings_for(self.caller)
        options = validated(A1111Options, {**session.options, **(body.override_settings or {})})
        if isinstance(body, A1111ImageToImage) and body.mask is not None and len(body.init_images) == 1:
            async with self.service.pictures.acquire(0):
                mask = await asyncio.to_thread(_mask_of, body, body.mask, self._max_pixels)
            body = body.model_copy(update={"mask": mask})
        model = session.chosen_model(settings)
        folders = await known_folders(self.service)
        generation, warnings = await asyncio.to_thread(translated, body, settings, options, model, folders)
        with fields_named(NATIVE_NAMES):
            job, _ = await self.service.accept(generation, RequestOrigin(self.caller), blank_prompt=True)
        if body.override_settings_restore_afterwards is False:
            session.model = options.model(settings) or session.model
            session.options |= kept_options(body.override_settings or {}, folders.vaes)
        return job, warnings

    @property
    def _max_pixels(self) -> int:
        return self.service.settings.limits.max_image_pixels

    async def drawn(self, body: A1111TextToImage, repeated: Any) -> Response:
        """Draw, and answer with the images; `repeated` of the body."""
        script = script_of(body.alwayson_scripts)
        if script is not None and body.images > 1 and self._prompts_vary(body):
            self._check_count(body.images, "batch_size")
            bodies = _apart(body, [{}] * body.images, one_seed=script.use_fixed_seed)
            return await self._answer_of_several(bodies, body, repeated)
        job, warnings = await self._accepted(body)
        with self.session.working(job, body.force_task_id):
            job = await ended(self.service, job, self.request)
        images = _images_of(job)
        files = [] if body.send_images is False else await files_of(self.service, images)
        return _answer_of(job, repeated, images, files, warnings)

    async def drawn_over_each(self, body: A1111ImageToImage, repeated: Any) -> Response:
        """The same of several pictures: a job for each of them."""
        self._check_count(len(body.init_images) * (body.n_iter or 1), "n_iter")
        pictures = body.init_images * (body.n_iter or 1)
        return await self._answer_of_several(_over_each(body, pictures), body, repeated)

    def _check_count(self, count: int, field: str) -> None:
        most = self.service.settings.limits.max_n
        if count > most:
            raise InvalidRequest(f"{shown(count)} images are asked for, at most {most}", field)

    def _prompts_vary(self, body: A1111TextToImage) -> bool:
        """Whether the images of a request with variants may have unlike prompts: not those of one seed's variations."""
        if body.subseed_strength:
            return False
        known = self.service.settings.a1111.styles
        styles = (known[name] for name in body.styles if name in known)
        texts = (text for style in styles for text in (style.prompt, style.negative_prompt))
        return vary((body.prompt, body.negative_prompt, body.hr_prompt, body.hr_negative_prompt, *texts))

    async def _answer_of_several(
        self, bodies: Sequence[A1111TextToImage], body: A1111TextToImage, repeated: Any
    ) -> Response:
        """Draw requests for an image each, and answer with the images; `repeated` of the body that they are of."""
        jobs, warnings = await self._drawn_together(bodies)
        images = _images_of_all(jobs)
        files = [] if body.send_images is False else await files_of(self.service, images)
        return _answer_of(jobs[0], repeated, images, files, warnings)

    async def drawn_in_tiles(self, body: A1111ImageToImage, repeated: Any) -> Response:
        """The same of the script SD upscale: a job for each tile of the enlarged picture."""
        models = await asyncio.to_thread(self.service.upscalers.names)
        script = SdUpscale.of(body.script_args, (*EXTRAS_UPSCALERS, *models), models)
        if len(body.init_images) != 1 or body.images != 1:
            field = "init_images" if body.images == 1 else "batch_size"
            raise InvalidRequest("SD upscale takes one image and makes one of it", field)
        with fields_named(NATIVE_NAMES):
            picture = await self._enlarged_for(script, body.init_images[0])
        defaults = self.service.settings_for(self.caller).models[self.service.settings.default_model].defaults
        tile = Size(body.width or defaults.width, body.height or defaults.height)
        grid = TileGrid.of(Size(picture.shape[1], picture.shape[0]), tile, script.overlap)
        own = {"mask": None, "script_name": None, "width": grid.tile.width, "height": grid.tile.height}
        parts = await asyncio.to_thread(grid.parts, picture)
        jobs, said = await self._drawn_together(_over_each(body.model_copy(update=own), parts))
        drawn_tiles = [_images_of(job) for job in jobs]
        first, warnings = drawn_tiles[0], (*said, *([] if script.warning is None else [script.warning]))
        if not all(drawn_tiles):  # interrupted
            return _answer_of(jobs[0], repeated, [], [], warnings)
        files = [await self.service.images.read(images[0].name) for images in drawn_tiles]
        drawn = await asyncio.to_thread(self._put_together, grid, files, jobs[0].id, infotext_of(first[0].manifest))
        used = [UsedPicture("init_images", body.init_images[0], began_with=True)]
        generation = {"jobs": [job.id for job in jobs], **self._upscalers(), **self._models(first[0].manifest)}
        file = await self.service.credited(drawn, used, COMPOSITE, generation)
        return _answer_of(jobs[0], repeated, first, [] if body.send_images is False else [file], warnings)

    def _upscalers(self) -> dict[str, Any]:
        """What the credentials say of models that enlarged a picture."""
        named = [{"name": name, "sha256": sha256} for name, sha256 in self.upscaler_hashes.items()]
        return {"upscalers": named} if named else {}

    def _models(self, manifest: Manifest) -> dict[str, Any]:
        """What the credentials say of an image's models."""
        c2pa = self.service.settings.provenance.c2pa
        return generation_of(manifest, prompt=c2pa is not None and c2pa.prompt)

    def _put_together(self, grid: TileGrid, files: Sequence[bytes], job_id: str, infotext: str) -> bytes:
        """The file of a picture of these tiles. It gets a mark of its own, over what is left of the tiles'."""
        pixels = grid.combined([read_kept(file) for file in files])
        watermark = self.service.watermark
        return with_infotext(pixels if watermark is None else watermark.mark(pixels, job_id), infotext)

    async def _drawn_together(self, bodies: Sequence[A1111TextToImage]) -> tuple[list[Job], tuple[str, ...]]:
        """A job for each of several requests for one image; as they ended, and what is to be said."""
        jobs: list[Job] = []
        said: list[str] = []
        async with AsyncExitStack() as working:
            for number, body in enumerate(bodies):
                job, warnings = await self._accepted(body)
                said += warnings
                jobs.append(job)
                working.enter_context(self.session.working(job, body.force_task_id))
                working.callback(_leave_unfinished, self.service, jobs, number)
            for number, job in enumerate(jobs):
                jobs[number] = await ended(self.service, job, self.request)
        return jobs, tuple(dict.fromkeys(said))

    async def _enlarged_for(self, script: SdUpscale, image: str) -> Pixels:
        """The picture that SD upscale draws over. Raises InvalidRequest."""
        size = script.size(Size(*await asyncio.to_thread(picture_size, "image", image, self._max_pixels)))
        if size.width * size.height > self._max_pixels:
            raise InvalidRequest(
                f"script_args: {size} has more than {self._max_pixels} pixels",
                "script_args",
            )
        if script.model is not None:
            return await self.enlarged_by(script.model, image, size)
        async with self.service.pictures.acquire(0):
            return await asyncio.to_thread(
                lambda: script.resized(read_picture("image", image, self._max_pixels).pixels, size)
            )

    async def enlarged(self, body: A1111ExtraImage | A1111ExtraImages) -> tuple[list[str], list[str]]:
        """The images of extras, enlarged, in base64, with their credentials; and what is to be said."""
        models = await asyncio.to_thread(self.service.upscalers.names)
        known, warnings = body.with_known(models, strict=self.service.settings.a1111.strict)
        results = await known.enlarged(self._max_pixels, self.enlarged_by, self.service.pictures)
        if isinstance(results, str):
            results = [results]
        images = [known.image] if isinstance(known, A1111ExtraImage) else [one.data for one in known.images]
        files = []
        for image, result in zip(images, results, strict=True):
            used = [UsedPicture("image", image, began_with=True)]
            file = await self.service.credited(base64.b64decode(result), used, known.source_type, self._upscalers())
            files.append(base64.b64encode(file).decode())
        return files, warnings

    async def enlarged_by(self, model: str, image: str, size: Size) -> Pixels:
        """A picture that a job of the caller's enlarges, which its interrupt ends."""
        upscale = UpscaleRequest(image=image, upscaler=model, width=size.width, height=size.height, output_format="png")
        with fields_named(_EXTRAS_NAMES):
            job, _ = await self.service.accept_upscale(upscale, RequestOrigin(self.caller))
        with self.session.working(job, None):
            job = await completed(self.service, job, self.request)
        record = (job.result or {})["images"][0]
        self.upscaler_hashes[model] = record["manifest"]["hash"]
        name = ImageName.parse(record["name"])
        return await asyncio.to_thread(read_kept, await self.service.images.read(name))


def _apart(
    body: A1111TextToImage, changes: Sequence[Mapping[str, Any]], *, one_seed: bool = False
) -> list[A1111TextToImage]:
    """A request for an image for each of several changes, with one seed after the other, or with one for all."""
    seed = secrets.randbelow(DRAWN_SEEDS) if body.seed in (None, -1) else body.seed or 0
    return [
        body.model_copy(update={"seed": seed if one_seed else seed + number, "batch_size": 1, "n_iter": 1, **change})
        for number, change in enumerate(changes)
    ]


def _over_each(body: A1111ImageToImage, pictures: Sequence[str]) -> list[A1111TextToImage]:
    """The same for each of several pictures."""
    return _apart(body, [{"init_images": [picture]} for picture in pictures])


def _answer_of(
    job: Job, repeated: Any, images: list[ShownImage], files: list[bytes], warnings: Sequence[str]
) -> Response:
    # a number beyond all ranges may be among the request's other keys
    content = to_json(result_of(job, repeated, images, files, warnings), inf_nan_mode="null")
    return Response(content, media_type="application/json")


def _images_of(job: Job) -> list[ShownImage]:
    """The images of an ended job, none if it was interrupted. Raises the error that it ended with."""
    error = error_of(job)
    if error is not None and job.state is not JobState.CANCELLED:
        raise error
    return shown_images(job)


def _images_of_all(jobs: Sequence[Job]) -> list[ShownImage]:
    """The images of several ended jobs. Raises the error of one that failed, or of one withheld if no image is left."""
    for job in jobs:
        if job.state is not JobState.BLOCKED:
            _images_of(job)
    images = [image for job in jobs for image in shown_images(job)]
    for job in jobs if not images else ():
        _images_of(job)
    return images


def _leave_unfinished(service: Service, jobs: Sequence[Job], number: int) -> None:
    """Cancel one of several jobs, if their request ends before it does."""
    if not jobs[number].state.terminal:
        leave(service, jobs[number].id)


def _mask_of(body: A1111ImageToImage, mask: str, max_pixels: int) -> str:
    """A request's mask as a native one: of the image's size, white where it is painted.

    Radii that differ across and down are done with here, as a native request has one. Raises InvalidRequest.
    """
    with fields_named(NATIVE_NAMES):
        size = picture_size("image", body.init_images[0], max_pixels)
    blur = (0, 0) if body.blurs_evenly else body.mask_blurs
    return base64.b64encode(drawn_mask("mask", decoded("mask", mask), size, max_pixels, blur)).decode()
