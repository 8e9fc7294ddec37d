"""A detail is what a user of diffusers would do by hand: crop, inpaint at a higher size, paste."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import StableDiffusionInpaintPipeline, StableDiffusionPipeline
from PIL import Image, ImageFilter

from deployments.engine.engine import Engine
from deployments.engine.types import DenoiseRequest, DenoiseResult, Detection
from serve_app.config.settings import Settings
from serve_app.images.details import frames_of
from serve_app.planning.plan import Plan, plan_generation
from serve_app.planning.resolve import resolve
from serve_app.schemas.generation_request import GenerationRequest
from serve_app.schemas.validation import validated
from tests.deployments.engine.conftest import MakeEngine, Work
from tests.deployments.engine.denoising.parity import assert_close, encode, reference, seeded

PICTURE = np.random.default_rng(1).integers(0, 256, (96, 128, 3), np.uint8)
FOUND = Detection("face", 0.9, 40, 30, 72, 66)
SIDE = 64
DETAIL: dict[str, Any] = {
    "detector": "faces", "dilation": 0, "blur": 0, "padding": 10, "strength": 0.6, "steps": 8, "sampler": "euler",
    "guidance_scale": 4.0, "max_count": 1,
}  # fmt: skip


def planned(tiny_sd15: Path, folder: Path, **detail: Any) -> Plan:
    limits = {side: {"min": 64, "max": 128} for side in ("width", "height")}
    model = {"family": "sd15", "source": str(tiny_sd15), "limits": {**limits, "steps": {"min": 1, "max": 50}}}
    model["defaults"] = {"width": SIDE, "height": SIDE}
    settings = Settings.model_validate(
        {"models": {"sd15": model}, "default_model": "sd15", "detectors": {"folder": str(folder)}}
    )
    request = {"prompt": "x", "width": 128, "height": 96, "details": [{**DETAIL, **detail}]}
    return plan_generation(resolve(validated(GenerationRequest, request), settings, drawn_seed=5).generation, settings)


@pytest.mark.parametrize("fields", [{}, {"sampler": "dpmpp_2m", "strength": 1.0}, {"sampler": "ddim", "blur": 2}])
def test_crop_inpaint_and_paste_by_hand(
    fields: dict[str, Any],
    make_engine: MakeEngine,
    run_together: Callable[[Engine, list[Work]], list[DenoiseResult]],
    sd15_pipeline: StableDiffusionPipeline,
    tiny_sd15: Path,
    tmp_path: Path,
) -> None:
    plan = planned(tiny_sd15, tmp_path, **fields)
    (detail,) = plan.operation.details
    (frame,) = frames_of((FOUND,), detail, (128, 96))
    cut = frame.cut(PICTURE)
    stage = plan.stages[1]
    lane = plan.lane(stage, lane_id="detail", seed=11, image=cut.image, mask=cut.mask)

    mask = np.zeros(PICTURE.shape[:2], np.uint8)
    mask[FOUND.top : FOUND.bottom, FOUND.left : FOUND.right] = 255
    soft = Image.fromarray(mask)
    if detail.blur:
        soft = soft.filter(ImageFilter.GaussianBlur(detail.blur))
    box = soft.getbbox()
    assert box is not None
    left, top, right, bottom = box[0] - 10, box[1] - 10, box[2] + 10, box[3] + 10
    wider = (bottom - top) - (right - left)
    left, right = left - wider // 2, left - wider // 2 + (bottom - top)
    crop = (left, top, right, bottom)
    assert frame.box == crop
    whole = Image.fromarray(PICTURE)
    image = whole.crop(crop).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    masked = soft.crop(crop).resize((SIDE, SIDE), Image.Resampling.BILINEAR)

    pipe = StableDiffusionInpaintPipeline(**sd15_pipeline.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    by_hand = reference(
        pipe, lane, seeded(lane), image=image, mask_image=masked, strength=detail.strength, height=SIDE, width=SIDE
    )
    text = encode(sd15_pipeline, lane)
    engine = make_engine()
    as_latents = dataclasses.replace(lane, output="latents")
    (result,) = run_together(engine, [(as_latents, text)])
    assert_close([result], {"detail": by_hand})

    (drawn,) = run_together(engine, [(lane, text)])
    others: list[DenoiseRequest] = [
        dataclasses.replace(lane, lane_id=f"other {seed}", seed=seed, image=None, mask=None, strength=None)
        for seed in (3, 4)
    ]
    again, *_ = run_together(
        engine, [(dataclasses.replace(one, reproducible=True), encode(sd15_pipeline, one)) for one in (lane, *others)]
    )
    assert drawn.image is not None
    assert again.image is not None
    assert np.abs(drawn.image.astype(int) - again.image).max() <= 1
    composed = whole.copy()
    pasted = Image.fromarray(drawn.image).resize((right - left, bottom - top), Image.Resampling.LANCZOS)
    composed.paste(pasted, crop, soft.crop(crop))
    ours = PICTURE.copy()
    cut.put_back(drawn, ours)
    assert (ours == np.asarray(composed)).all()
    untouched = np.asarray(soft) == 0
    assert (ours[untouched] == PICTURE[untouched]).all()
    assert (ours[~untouched] != PICTURE[~untouched]).any()
