"""Embeddings are those of diffusers, whatever else is encoded at the time."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline

from deployments.engine.checkpoint_spec import CheckpointSpec, Family
from deployments.engine.checkpoints import TextEncoder, TextEncoders, load_text_encoders
from deployments.engine.errors import InvalidRequest, UnknownCheckpoint
from deployments.engine.prompts import PromptEncoder

CPU = torch.device("cpu")
DEMO_MODELS = Path(__file__).parents[3] / "demo_models"
TEXTS = [
    "a large red circle and a small yellow square on a blue background",
    "",
    "Ein größer Baum, 日本 🙂 (red:1.3) it's 42!",
    "a cat, " * 60,  # longer than 77 tokens
]
PIPELINES: dict[Family, Any] = {
    "sd15": StableDiffusionPipeline,
    "sdxl": StableDiffusionXLPipeline,
    "sdxl-refiner": StableDiffusionXLImg2ImgPipeline,
}


def _load(family: Family, folder: Path, loaded: dict[str, TextEncoder] | None = None) -> TextEncoders:
    return load_text_encoders(CheckpointSpec(family=family, source=str(folder)), CPU, torch.float32, loaded)


@pytest.fixture(scope="module")
def encoders(tiny_sd15: Path, tiny_sdxl: Path, tiny_sdxl_refiner: Path) -> dict[str, TextEncoders]:
    loaded: dict[str, TextEncoder] = {}
    return {
        "sd15": _load("sd15", tiny_sd15, loaded),
        "sdxl": _load("sdxl", tiny_sdxl, loaded),
        "sdxl-refiner": _load("sdxl-refiner", tiny_sdxl_refiner, loaded),
    }


@torch.inference_mode()
def _diffusers(family: Family, folder: Path, text: str, clip_skip: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Hidden states and pooled embedding by the pipeline's own encode_prompt."""
    pipeline = PIPELINES[family].from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    skip = {"clip_skip": clip_skip} if clip_skip else {}
    if family == "sd15" and not hasattr(pipeline.text_encoder, "text_model"):
        # diffusers 0.42 looks for the level that transformers 5.6 took out when it applies clip_skip
        object.__setattr__(pipeline.text_encoder, "text_model", pipeline.text_encoder)
    outputs = pipeline.encode_prompt(
        text, device=CPU, num_images_per_prompt=1, do_classifier_free_guidance=False, **skip
    )
    return outputs[0][0], None if family == "sd15" else outputs[2][0]


def _assert_as_diffusers(encoder: PromptEncoder, family: Family, folder: Path, clip_skip: int) -> None:
    embeddings = encoder.encode([(family, text, clip_skip) for text in TEXTS])
    for text, embedding in zip(TEXTS, embeddings, strict=True):
        hidden, pooled = _diffusers(family, folder, text, clip_skip)
        assert embedding.hidden_states.dtype == np.float32
        assert embedding.hidden_states.flags.c_contiguous
        np.testing.assert_allclose(embedding.hidden_states, hidden.numpy(), rtol=0, atol=1e-6 * hidden.abs().max())
        assert (embedding.pooled is None) == (pooled is None)
        if embedding.pooled is not None and pooled is not None:
            np.testing.assert_allclose(embedding.pooled, pooled.numpy(), rtol=0, atol=1e-6 * pooled.abs().max())
        assert embedding.empty == (text == "")


@pytest.mark.parametrize("clip_skip", [0, 1, 2])
@pytest.mark.parametrize("family", ["sd15", "sdxl", "sdxl-refiner"])
def test_as_diffusers(
    family: Family, clip_skip: int, encoders: dict[str, TextEncoders], request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(f"tiny_{family.replace('-', '_')}")
    _assert_as_diffusers(PromptEncoder(encoders, batch=3), family, folder, clip_skip)


@pytest.mark.parametrize(
    ("family", "name"), [("sd15", "demo-sd15"), ("sdxl", "demo-sdxl"), ("sdxl-refiner", "demo-sdxl-refiner")]
)
def test_demo_models_as_diffusers(family: Family, name: str) -> None:
    folder = DEMO_MODELS / name
    _assert_as_diffusers(PromptEncoder({family: _load(family, folder)}, batch=4), family, folder, clip_skip=0)


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sdxl-refiner"])
def test_company_changes_no_bit(family: Family, encoders: dict[str, TextEncoders]) -> None:
    together = PromptEncoder(encoders, batch=4).encode([(family, text, 0) for text in TEXTS])
    for text, embedding in zip(TEXTS, together, strict=True):
        alone = PromptEncoder(encoders, batch=4).encode([(family, text, 0)])[0]
        assert np.array_equal(alone.hidden_states, embedding.hidden_states)
        if alone.pooled is not None and embedding.pooled is not None:
            assert np.array_equal(alone.pooled, embedding.pooled)


def test_mixed_checkpoints_and_layers_come_back_in_order(encoders: dict[str, TextEncoders]) -> None:
    wanted = [
        (family, text, skip) for skip in (0, 1) for text in TEXTS[:2] for family in ("sd15", "sdxl", "sdxl-refiner")
    ]
    encoder = PromptEncoder(encoders, batch=4)
    for one, embedding in zip(wanted, encoder.encode(wanted), strict=True):
        assert np.array_equal(embedding.hidden_states, PromptEncoder(encoders, batch=4).encode([one])[0].hidden_states)


def test_refiner_takes_the_last_channels_of_the_base(encoders: dict[str, TextEncoders]) -> None:
    base, refiner = PromptEncoder(encoders, batch=2).encode([("sdxl", "a cat", 0), ("sdxl-refiner", "a cat", 0)])
    channels = refiner.hidden_states.shape[1]
    assert np.array_equal(base.hidden_states[:, -channels:], refiner.hidden_states)
    assert base.pooled is not None
    assert np.array_equal(base.pooled, refiner.pooled)


def test_encoders_of_equal_weights_are_loaded_once(tiny_sdxl: Path, tiny_sdxl_refiner: Path) -> None:
    loaded: dict[str, TextEncoder] = {}
    base = _load("sdxl", tiny_sdxl, loaded)
    refiner = _load("sdxl-refiner", tiny_sdxl_refiner, loaded)
    again = _load("sdxl", tiny_sdxl, loaded)
    assert refiner.encoders[0] is base.encoders[1]
    assert again.hash == base.hash
    assert len(loaded) == 2


def test_checkpoints_of_equal_encoders_share_the_cache(encoders: dict[str, TextEncoders]) -> None:
    encoder = PromptEncoder({"one": encoders["sd15"], "other": encoders["sd15"]}, batch=2)
    first = encoder.encode([("one", "a cat", 0)])[0]
    second = encoder.encode([("other", "a cat", 0)])[0]
    assert second is first
    assert not first.hidden_states.flags.writeable
    assert (encoder.stats.texts, encoder.stats.cache_hits, encoder.stats.batches) == (2, 1, 1)


def test_cache_is_bounded_and_forgets_the_least_recently_used(encoders: dict[str, TextEncoders]) -> None:
    encoder = PromptEncoder(encoders, batch=2, cache_entries=2)
    encoder.encode([("sd15", "a", 0), ("sd15", "b", 0)])
    encoder.encode([("sd15", "a", 0), ("sd15", "c", 0)])  # "b" leaves
    assert encoder.stats.cache_hits == 1
    encoder.encode([("sd15", "a", 0)])
    assert encoder.stats.cache_hits == 2
    encoder.encode([("sd15", "b", 0)])
    assert encoder.stats.cache_hits == 2


def test_the_same_text_twice_in_a_batch_is_encoded_once(encoders: dict[str, TextEncoders]) -> None:
    encoder = PromptEncoder(encoders, batch=1, cache_entries=0)
    one, other = encoder.encode([("sd15", "a cat", 0), ("sd15", "a cat", 0)])
    assert one is other
    assert encoder.stats.batches == 1


def test_unknown_checkpoint(encoders: dict[str, TextEncoders]) -> None:
    with pytest.raises(UnknownCheckpoint, match="'dall-e'"):
        PromptEncoder(encoders, batch=2).encode([("dall-e", "a cat", 0)])


@pytest.mark.parametrize(("family", "most"), [("sd15", 3), ("sdxl", 2)])
def test_clip_skip_has_to_leave_a_layer(family: Family, most: int, encoders: dict[str, TextEncoders]) -> None:
    encoder = PromptEncoder(encoders, batch=2)
    encoder.encode([(family, "a cat", most)])
    with pytest.raises(InvalidRequest, match=f"takes 0 to {most}"):
        encoder.encode([(family, "a cat", most + 1)])
    with pytest.raises(InvalidRequest):
        encoder.encode([(family, "a cat", -1)])
