"""Lanes with five kinds of LyCORIS' adapters and none in one forward, resumed, swapped, offloaded and quantised."""

import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.config import EngineSettings, LoraSettings, MemoryPolicy
from deployments.engine.engine import Engine
from deployments.engine.families.family import FamilyName
from deployments.engine.prompts.schedule import PromptText
from deployments.engine.types import Conditioning, DenoiseRequest, DenoiseResult, Progress
from tests.deployments.engine.adapters.test_lora import encoder_loras, expected, prompt_encoder, wearing
from tests.deployments.engine.checkpoints.checkpoint_loading import change_unet
from tests.deployments.engine.conftest import Encode
from tests.deployments.engine.denoising.parity import assert_close
from tests.deployments.engine.listening import Listener
from tests.loras import TEXT_LAYERS, UNET_LAYERS
from tests.lycoris_files import KINDS, merged, modules, write_lycoris

RunTogether = Callable[[Engine, list[tuple[DenoiseRequest, Conditioning]]], list[DenoiseResult]]
FILES = {
    "loha": "LoHa",
    "lokr": "LoKr, both decomposed",
    "dora": "DoRA of a LoKr",
    "ia3": "(IA)3 on inputs",
    "full": "full",
    "locon": "LoCon, Tucker",
}
WORN: list[tuple[tuple[str, float], ...]] = [
    (("loha", 1.0),),
    (("lokr", -0.7),),
    (),
    (("dora", 0.8),),
    (("ia3", 1.5),),
    (("full", 0.3),),
    (("locon", 1.0), ("dora", 0.5)),
]


@pytest.fixture(scope="module")
def parts(sd15_pipeline: Any) -> dict[str, dict[str, Any]]:
    """What the files change, by name."""
    unet, encoder = sd15_pipeline.unet, sd15_pipeline.text_encoder
    made = {name: {"unet": modules(unet, UNET_LAYERS, KINDS[kind], seed=5)} for name, kind in FILES.items()}
    made["dora"]["text_encoder"] = modules(encoder, TEXT_LAYERS, KINDS["DoRA of a LoHa"], seed=6)
    return made


@pytest.fixture(scope="module")
def folder(parts: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("lycoris")
    for name, of in parts.items():
        write_lycoris(made / f"{name}.safetensors", of)
    return made


@contextmanager
def started(folder: Path, catalogue: dict[str, Path], family: FamilyName = "sd15", **settings: Any) -> Iterator[Engine]:
    chosen = {"device": "cpu", "cpu_threads": 1, "reproducible_rows": 8} | settings
    specs = {name: CheckpointSpec(family=family, source=str(source)) for name, source in catalogue.items()}
    engine = Engine(EngineSettings.model_validate(chosen), specs, loras=LoraSettings(folder=str(folder)))
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


@pytest.fixture(scope="module")
def engine(tiny_sd15: Path, folder: Path) -> Iterator[Engine]:
    with started(folder, {"sd15": tiny_sd15}, cpu_threads=2, reproducible_rows=16, max_rows=16) as one:
        yield one


def latents(result: DenoiseResult) -> bytes:
    assert result.latents is not None
    return result.latents.tobytes()


def digest(unet: torch.nn.Module) -> str:
    tensors = unet.state_dict().items()
    return hashlib.sha256(b"".join(name.encode() + of.numpy().tobytes() for name, of in tensors)).hexdigest()


def test_five_kinds_and_none_in_one_forward(
    engine: Engine, run_together: RunTogether, parts: dict[str, Any], sd15_pipeline: Any, encode_sd15: Encode
) -> None:
    text = encode_sd15("a red cat")
    requests = [
        wearing(*worn, lane_id=f"{number}", seed=number, steps=3, sampler="pndm") for number, worn in enumerate(WORN)
    ]
    engine.preload("sd15").result()
    unet = engine._loop.residency["sd15"].weights.unet
    before = digest(unet)
    together = run_together(engine, [(request, text) for request in requests])
    wanted = {}
    for request, worn in zip(requests, WORN, strict=True):
        changed = merged(sd15_pipeline.unet, *((parts[name]["unet"], weight) for name, weight in worn))
        wanted[request.lane_id] = expected(sd15_pipeline, changed, request, "a red cat")
    assert_close(together, wanted)
    assert (wanted["0"] - wanted["2"]).abs().max() > 0.01  # one that makes a difference
    assert digest(unet) == before
    others = [dataclasses.replace(request, loras=()) for request in requests]
    among = [*others[:2], requests[2], *others[3:]]
    assert latents(together[2]) == latents(run_together(engine, [(request, text) for request in among])[2])
    for number in (1, 3):
        assert latents(together[number]) == latents(run_together(engine, [(requests[number], text)])[0])


def test_sdxl_s_unet_wears_every_kind_in_one_forward(
    tiny_sdxl: Path, run_together: RunTogether, sdxl_pipeline: Any, encode_sdxl: Encode, tmp_path: Path
) -> None:
    unet = sdxl_pipeline.unet
    parts = {name: modules(unet, UNET_LAYERS, KINDS[kind], seed=7) for name, kind in FILES.items()}
    for name, of in parts.items():
        write_lycoris(tmp_path / f"{name}.safetensors", {"unet": of})
    text = encode_sdxl("a red cat")
    requests = {
        name: wearing(
            *([(name, 0.8)] if name in parts else []),
            checkpoint="sdxl",
            lane_id=name,
            seed=number,
            steps=2,
            guidance_scale=1.0,
            sampler="euler",
        )
        for number, name in enumerate((*parts, "plain"))
    }
    with started(tmp_path, {"sdxl": tiny_sdxl}, "sdxl", reproducible_rows=16, max_rows=16) as engine:
        together = run_together(engine, [(request, text) for request in requests.values()])
    wanted = {
        name: expected(sdxl_pipeline, merged(unet, (parts[name], 0.8)) if name in parts else unet, request, "a red cat")
        for name, request in requests.items()
    }
    assert_close(together, wanted)


@pytest.mark.parametrize("name", ["lokr", "dora"])
def test_a_lane_goes_on_in_mid_denoise(
    name: str, engine: Engine, run_together: RunTogether, encode_sd15: Encode
) -> None:
    text, listener = encode_sd15("a cat"), Listener()
    request = wearing((name, 0.6), state_every=2)
    engine.submit(request, text, listener)
    whole = listener.outcome()
    assert isinstance(whole, DenoiseResult)
    assert whole.lora_hashes.keys() == {name}
    state = next(item.state for item in listener.items if isinstance(item, Progress) and item.state is not None)
    resumed = run_together(engine, [(dataclasses.replace(request, resume=state), text)])[0]
    assert latents(resumed) == latents(whole)


def test_a_swap_brings_the_other_checkpoint_s_norms(
    folder: Path,
    tiny_sd15: Path,
    run_together: RunTogether,
    parts: dict[str, Any],
    encode_sd15: Encode,
    tmp_path: Path,
    sd15_pipeline: Any,
) -> None:
    """DoRA's factors follow from a checkpoint's own weights, which another takes the place of in the same UNet."""
    other = shutil.copytree(tiny_sd15, tmp_path / "other")
    change_unet(other, lambda tensors: [tensor.mul_(1.05) for tensor in tensors.values()])
    pipeline = StableDiffusionPipeline.from_pretrained(other, safety_checker=None, requires_safety_checker=False)
    text = encode_sd15("a cat")
    with started(folder, {"sd15": tiny_sd15, "other": other}, resident_checkpoints=1) as engine:
        for name, of in (("sd15", sd15_pipeline), ("other", pipeline), ("sd15", sd15_pipeline)):
            request = wearing(("dora", 1.0), checkpoint=name, steps=2, sampler="pndm")
            unet = merged(of.unet, (parts["dora"]["unet"], 1.0))
            assert_close(
                run_together(engine, [(request, text)]), {request.lane_id: expected(of, unet, request, "a cat")}
            )


@pytest.mark.parametrize("policy", ["model_offload", "group_offload", "sequential_offload"])
def test_offloaded_they_have_the_same_bits(
    policy: MemoryPolicy, folder: Path, tiny_sd15: Path, run_together: RunTogether, encode_sd15: Encode
) -> None:
    text = encode_sd15("a cat")
    work = [(wearing((name, 0.9), lane_id=name, steps=2), text) for name in ("dora", "ia3", "loha", "lokr")]
    found = {}
    for memory in ("resident", policy):
        with started(folder, {"sd15": tiny_sd15}, memory=memory) as engine:
            found[memory] = [latents(result) for result in run_together(engine, work)]
    assert found[policy] == found["resident"]


def test_quantised_they_add_nearly_the_same(
    folder: Path, tiny_sd15: Path, run_together: RunTogether, encode_sd15: Encode
) -> None:
    text = encode_sd15("a cat")
    worn: list[tuple[tuple[str, float], ...]] = [(), (("dora", 1.0),), (("ia3", 1.0),), (("lokr", 1.0),)]
    work = [(wearing(*loras, lane_id=f"{number}", steps=2), text) for number, loras in enumerate(worn)]
    found = []
    for quantize in ("none", "int8"):
        with started(folder, {"sd15": tiny_sd15}, quantize=quantize) as engine:
            results = run_together(engine, work)
            found.append([result.latents for result in results if result.latents is not None])
    plain, *changed = found[0]
    for whole, quantised in zip(changed, found[1][1:], strict=True):
        assert np.abs(quantised - whole).mean() < 0.1 * np.abs(whole - plain).mean()


def test_texts_with_a_decomposed_text_encoder(
    parts: dict[str, Any], sd15_pipeline: Any, tiny_sd15: Path, folder: Path
) -> None:
    texts = [PromptText("sd15", "a cat", loras=encoder_loras(folder, *of)) for of in ((), (("dora", 0.7),))]
    plain, found = prompt_encoder("sd15", tiny_sd15, folder).encode(texts)
    for strength, embedding in ((0.0, plain), (0.7, found)):
        encoder = merged(sd15_pipeline.text_encoder, (parts["dora"]["text_encoder"], strength))
        pipeline = StableDiffusionPipeline(
            **{**sd15_pipeline.components, "text_encoder": encoder}, requires_safety_checker=False
        )
        wanted = pipeline.encode_prompt("a cat", "cpu", 1, False)[0][0].detach().numpy()
        np.testing.assert_allclose(embedding.hidden_states, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
    assert np.abs(found.hidden_states - plain.hidden_states).max() > 0.01
    assert not encoder_loras(folder, ("loha", 1.0))  # nothing of texts in it
