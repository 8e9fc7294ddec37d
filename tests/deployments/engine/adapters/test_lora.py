"""LoRAs in the engine against weights that have them merged in, alone and among unlike lanes; no weight changes."""

import dataclasses
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.loaders.lora_conversion_utils import (
    _convert_non_diffusers_lora_to_diffusers,
    _maybe_map_sgm_blocks_to_diffusers,
)
from safetensors import safe_open

from deployments.engine.adapters.layer_names import unet_layers
from deployments.engine.adapters.lora import AdaptedModel
from deployments.engine.adapters.lora_file import LoraFiles
from deployments.engine.checkpoints.loader import load_text_encoders
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.config import EngineSettings, LoraSettings
from deployments.engine.engine import Engine
from deployments.engine.errors import InvalidRequest, LoraRefused, StateRefused
from deployments.engine.prompts.encoder import PromptEncoder
from deployments.engine.prompts.schedule import PromptText
from deployments.engine.prompts.syntax import Lora
from deployments.engine.types import Conditioning, DenoiseRequest, DenoiseResult, Progress, TextEncodingRequest
from tests.deployments.engine.conftest import Encode
from tests.deployments.engine.denoising.parity import assert_close
from tests.deployments.engine.listening import Listener, ask
from tests.ldm_export import export_ldm
from tests.loras import TEXT_LAYERS, UNET_LAYERS, Parts, merged, random_updates, write, write_kohya, write_peft
from tests.tiny_checkpoints import PUBLISHED_LAYERS, write_tiny_sd15, write_tiny_sdxl

RunTogether = Callable[[Engine, list[tuple[DenoiseRequest, Conditioning]]], list[DenoiseResult]]

ATTENTION = r"attn\d\.to_(q|k|v|out\.0)"


@pytest.fixture(scope="module")
def parts(sd15_pipeline: Any, sdxl_pipeline: Any) -> dict[str, Parts]:
    """What the LoRAs of the folder change, by name."""
    sd15, sdxl = sd15_pipeline, sdxl_pipeline
    return {
        "all": {
            "unet": random_updates(sd15.unet, UNET_LAYERS, seed=1),
            "text_encoder": random_updates(sd15.text_encoder, TEXT_LAYERS, seed=2),
        },
        "attention": {"unet": random_updates(sd15.unet, ATTENTION, seed=3, rank=1)},
        "text": {"text_encoder": random_updates(sd15.text_encoder, TEXT_LAYERS, seed=4)},
        "xl": {
            "unet": random_updates(sdxl.unet, UNET_LAYERS, seed=5),
            "text_encoder": random_updates(sdxl.text_encoder, TEXT_LAYERS, seed=6),
            "text_encoder_2": random_updates(sdxl.text_encoder_2, TEXT_LAYERS + "|text_projection", seed=7),
        },
    }


@pytest.fixture(scope="module")
def folder(parts: dict[str, Parts], tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("loras")
    for name, of_lora in parts.items():
        (write_peft if name == "attention" else write_kohya)(made / f"{name}.safetensors", of_lora)
    return made


@pytest.fixture(scope="module")
def engine(tiny_sd15: Path, tiny_sdxl: Path, folder: Path) -> Iterator[Engine]:
    catalogue = {
        "sd15": CheckpointSpec(family="sd15", source=str(tiny_sd15)),
        "sdxl": CheckpointSpec(family="sdxl", source=str(tiny_sdxl)),
    }

    settings = EngineSettings(device="cpu", cpu_threads=2, resident_checkpoints=2, reproducible_rows=8)
    engine = Engine(settings, catalogue, loras=LoraSettings(folder=str(folder)))
    engine.start()
    yield engine
    engine.stop()


def wearing(*loras: tuple[str, float], **changes: Any) -> DenoiseRequest:
    return ask(output="latents", reproducible=True, loras=tuple(Lora(*one) for one in loras), **changes)


def expected(pipeline: Any, unet: torch.nn.Module, request: DenoiseRequest, prompt: str) -> torch.Tensor:
    """diffusers' own latents with this UNet."""
    other = type(pipeline)(**{**pipeline.components, "unet": unet})
    other.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(request.seed)
    other.scheduler = pipeline.scheduler.from_config(pipeline.scheduler.config)
    latents: torch.Tensor = other(
        prompt,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance_scale,
        generator=generator,
        height=request.height,
        width=request.width,
        output_type="latent",
    ).images[0]
    return latents


WORN: list[tuple[tuple[str, float], ...]] = [
    (("all", 1.0),),
    (("attention", -1.5),),
    (("attention", 0.7), ("all", 0.5)),
    (("text", 1.0),),  # nothing for the UNet in it
    (),
]


def test_as_merged_weights_alone_and_in_one_batch(
    engine: Engine, run_together: RunTogether, parts: dict[str, Parts], sd15_pipeline: Any, encode_sd15: Encode
) -> None:
    requests = [
        wearing(*worn, lane_id=f"{number}", seed=number, sampler="pndm", guidance_scale=(5.0, 1.0)[number % 2])
        for number, worn in enumerate(WORN)
    ]
    wanted = {}
    for request, worn in zip(requests, WORN, strict=True):
        changes = [(parts[name]["unet"], weight) for name, weight in worn if "unet" in parts[name]]
        unet = merged(sd15_pipeline.unet, *changes)
        wanted[request.lane_id] = expected(sd15_pipeline, unet, request, "a red cat")
    plain = expected(sd15_pipeline, sd15_pipeline.unet, requests[0], "a red cat")
    assert (plain - wanted["0"]).abs().max() > 0.1  # it makes a difference
    text, unguided = encode_sd15("a red cat"), encode_sd15("a red cat", None)
    work = [(request, text if request.guidance_scale > 1 else unguided) for request in requests]
    alone = [run_together(engine, [item])[0] for item in work]
    together = run_together(engine, work)
    assert_close(alone + together, wanted)
    for one, other in zip(alone, together, strict=True):
        assert one.latents is not None
        assert other.latents is not None
        assert one.latents.tobytes() == other.latents.tobytes()
    assert together[0].lora_hashes.keys() == {"all"}
    assert together[4].lora_hashes == {}


def test_weights_and_neighbours_are_bitwise_what_they_were(
    engine: Engine, run_together: RunTogether, encode_sd15: Encode
) -> None:
    text = encode_sd15("a cat")
    request = wearing(seed=3, sampler="dpmpp_2m_sde")
    before = run_together(engine, [(request, text)])[0]
    engine.preload("sd15").result()
    loaded = [engine._loop.residency["sd15"].weights]
    weights = [{name: tensor.clone() for name, tensor in one.unet.state_dict().items()} for one in loaded]
    versions = [tensor._version for one in loaded for tensor in one.unet.parameters()]
    worn = wearing(("all", 2.0), lane_id="worn")
    wrong = wearing(("xl", 1.0), lane_id="wrong")
    beside = Listener(), Listener(), Listener()
    for one, listener in zip((worn, request, wrong), beside, strict=True):
        engine.submit(one, text, listener)
    assert isinstance(beside[0].outcome(), DenoiseResult)
    refused = beside[2].outcome()
    assert isinstance(refused, LoraRefused)
    assert "'xl' is for another kind of model" in refused.message
    after = run_together(engine, [(request, text)])[0]
    for result in (beside[1].outcome(), after):
        assert isinstance(result, DenoiseResult)
        assert result.latents is not None
        assert before.latents is not None
        assert result.latents.tobytes() == before.latents.tobytes()
    for one, of_unet in zip(loaded, weights, strict=True):
        for name, tensor in one.unet.state_dict().items():
            assert torch.equal(tensor, of_unet[name])
        assert not any(module._forward_hooks for module in one.unet.modules())
    assert [tensor._version for one in loaded for tensor in one.unet.parameters()] == versions


def test_rows_that_threads_share(
    engine: Engine, run_together: RunTogether, parts: dict[str, Parts], sd15_pipeline: Any, encode_sd15: Encode
) -> None:
    """Eight rows on two threads: a lane of two rows behind one of one is cut between them."""
    guided, unguided = encode_sd15("a cat"), encode_sd15("a cat", None)
    work = [
        (wearing(lane_id="single", guidance_scale=1.0), unguided),
        (wearing(("attention", 1.0), lane_id="a", seed=1), guided),
        (wearing(("all", 1.0), lane_id="cut", seed=2, sampler="pndm"), guided),
        (wearing(lane_id="b", seed=3), guided),
    ]
    result = run_together(engine, work)[2]
    unet = merged(sd15_pipeline.unet, (parts["all"]["unet"], 1.0))
    assert_close([result], {"cut": expected(sd15_pipeline, unet, work[2][0], "a cat")})
    alone = run_together(engine, [work[2]])[0]
    assert result.latents is not None
    assert alone.latents is not None
    assert result.latents.tobytes() == alone.latents.tobytes()


def test_sdxl_with_both_text_encoders(
    engine: Engine,
    run_together: RunTogether,
    parts: dict[str, Parts],
    sdxl_pipeline: Any,
    tiny_sdxl: Path,
    folder: Path,
) -> None:
    changed = parts["xl"]
    pipeline = StableDiffusionXLPipeline(
        **{
            **sdxl_pipeline.components,
            **{name: merged(getattr(sdxl_pipeline, name), (updates, 0.8)) for name, updates in changed.items()},
        },
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    encoder = prompt_encoder("sdxl", tiny_sdxl, folder)
    texts = [PromptText("sdxl", text, loras=encoder_loras(folder, ("xl", 0.8))) for text in ("a cat", "a dog")]
    conditioning = Conditioning(*encoder.encode(texts))
    request = wearing(("xl", 0.8), checkpoint="sdxl", sampler="euler", guidance_scale=3.0)
    wanted = pipeline(
        "a cat",
        negative_prompt="a dog",
        num_inference_steps=request.steps,
        guidance_scale=request.guidance_scale,
        generator=torch.Generator().manual_seed(request.seed),
        height=64,
        width=64,
        output_type="latent",
    ).images[0]
    assert_close(run_together(engine, [(request, conditioning)]), {request.lane_id: wanted})


def prompt_encoder(family: Any, source: Path, folder: Path) -> PromptEncoder:
    encoders = load_text_encoders(CheckpointSpec(family=family, source=str(source)), torch.device("cpu"), torch.float32)
    return PromptEncoder({family: encoders}, batch=4, loras=LoraFiles(LoraSettings(folder=str(folder))))


def encoder_loras(folder: Path, *loras: tuple[str, float]) -> Any:
    return LoraFiles(LoraSettings(folder=str(folder))).of_text([Lora(*one) for one in loras])


def test_texts_with_and_without_share_a_batch(
    parts: dict[str, Parts], sd15_pipeline: StableDiffusionPipeline, tiny_sd15: Path, folder: Path
) -> None:
    worn = [(), (("all", 1.0),), (("text", -0.5), ("all", 0.5)), (("attention", 1.0),)]
    encoder = prompt_encoder("sd15", tiny_sd15, folder)
    texts = [PromptText("sd15", "a cat", loras=encoder_loras(folder, *loras)) for loras in worn]
    assert texts[0] == texts[3]  # it has nothing for texts
    found = encoder.encode(texts)
    assert encoder.forwards == 1
    plain = prompt_encoder("sd15", tiny_sd15, folder).encode(texts[:1])[0]
    assert found[0].hidden_states.tobytes() == plain.hidden_states.tobytes()
    for loras, embedding in zip(worn, found, strict=True):
        changes = [(parts[name]["text_encoder"], weight) for name, weight in loras if "text_encoder" in parts[name]]
        model = merged(sd15_pipeline.text_encoder, *changes)
        pipeline = StableDiffusionPipeline(
            **{**sd15_pipeline.components, "text_encoder": model}, requires_safety_checker=False
        )
        wanted = pipeline.encode_prompt("a cat", "cpu", 1, False)[0][0].detach().numpy()
        np.testing.assert_allclose(embedding.hidden_states, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
    with pytest.raises(LoraRefused, match="'xl' is for another kind of model"):
        encoder.encode([PromptText("sd15", "a cat", loras=encoder_loras(folder, ("xl", 1.0)))])
    changed = [one._replace(hash="0" * 64) for one in encoder_loras(folder, ("all", 1.0))]
    with pytest.raises(LoraRefused, match="changed"):
        encoder.encode([PromptText("sd15", "a dog", loras=tuple(changed))])


def test_texts_of_regions_have_their_own(folder: Path) -> None:
    files = LoraFiles(LoraSettings(folder=str(folder)))
    everything, text, nothing = Lora("all", 1.0), Lora("text", -0.5), Lora("attention", 1.0)
    request = TextEncodingRequest("sd15", "a", "", regions=("b", "c", "d"), loras=(everything,))
    assert files.of_regions(request) == []  # all have the request's
    own = dataclasses.replace(request, region_loras=((text, nothing), (), None))
    assert files.of_regions(own) == [files.of_text([text]), (), files.of_text([everything])]
    with pytest.raises(InvalidRequest, match="no LoRA named 'nothing'"):
        files.of_regions(dataclasses.replace(request, region_loras=((Lora("nothing", 1.0),),)))


def test_a_lane_goes_on_only_with_the_same_loras(
    engine: Engine, run_together: RunTogether, encode_sd15: Encode
) -> None:
    text = encode_sd15("a cat")
    request = wearing(("all", 1.0), state_every=3)
    listener = Listener()
    engine.submit(request, text, listener)
    whole = listener.outcome()
    state = next(item.state for item in listener.items if isinstance(item, Progress) and item.state is not None)
    resumed = run_together(engine, [(dataclasses.replace(request, resume=state), text)])[0]
    assert isinstance(whole, DenoiseResult)
    assert whole.latents is not None
    assert resumed.latents is not None
    assert resumed.latents.tobytes() == whole.latents.tobytes()
    for loras in ((), (("all", 0.9),), (("attention", 1.0),)):
        with pytest.raises(StateRefused, match="another loras"):
            run_together(engine, [(dataclasses.replace(wearing(*loras), resume=state), text)])


def test_a_lora_that_is_not_there_fails_its_lane_alone(
    engine: Engine, run_together: RunTogether, encode_sd15: Encode
) -> None:
    text = encode_sd15("a cat")
    with pytest.raises(InvalidRequest, match="no LoRA named 'nothing'"):
        run_together(engine, [(wearing(("nothing", 1.0)), text)])


def test_the_device_forgets_what_the_files_forget(folder: Path, sd15_pipeline: Any, sdxl_pipeline: Any) -> None:
    files = LoraFiles(LoraSettings(folder=str(folder), resident_mib=0))
    model = AdaptedModel(sd15_pipeline.unet, "unet", torch.device("cpu"))
    file = files.read("attention")
    adapter = model.adapter(file, 1.0)
    again = model.adapter(file, 0.5)
    assert adapter is not None
    assert again is not None
    assert again.updates is adapter.updates
    assert model.adapter(files.read("text"), 1.0) is None
    del file
    gc.collect()
    assert not model._on_device
    with pytest.raises(LoraRefused, match=r"has no layer|weight of shape"):
        AdaptedModel(sdxl_pipeline.unet, "unet", torch.device("cpu")).adapter(files.read("attention"), 1.0)


def test_a_linear_layer_s_update_may_be_written_as_a_kernel(tmp_path: Path, sd15_pipeline: Any) -> None:
    name = "mid_block.attentions.0.proj_in"  # a 1x1 convolution here
    weight = sd15_pipeline.unet.get_submodule(name).weight
    down, up = torch.randn(2, weight.shape[1]), torch.randn(weight.shape[0], 2)
    linear = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    q = sd15_pipeline.unet.get_submodule(linear).weight
    tensors = {
        f"unet.{name}.lora_A.weight": down,
        f"unet.{name}.lora_B.weight": up,
        f"unet.{linear}.lora_A.weight": torch.randn(2, q.shape[1], 1, 1),
        f"unet.{linear}.lora_B.weight": torch.randn(q.shape[0], 2, 1, 1),
    }
    write(tmp_path / "swapped.safetensors", tensors)
    files = LoraFiles(LoraSettings(folder=str(tmp_path)))
    adapter = AdaptedModel(sd15_pipeline.unet, "unet", torch.device("cpu")).adapter(files.read("swapped"), 1.0)
    assert adapter is not None
    ranks = {
        layer.weight.ndim - of.ndim
        for layer, update in adapter.updates.items()
        for of in update.deltas[0].delta.tensors
    }
    assert ranks == {0}
    doubled = {**tensors, "lora_unet_middle_block_1_proj_in.lora_down.weight": down}
    doubled["lora_unet_middle_block_1_proj_in.lora_up.weight"] = up
    write(tmp_path / "doubled.safetensors", doubled)
    with pytest.raises(LoraRefused, match="changes the same layer as"):
        AdaptedModel(sd15_pipeline.unet, "unet", torch.device("cpu")).adapter(files.read("doubled"), 1.0)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_layers_have_the_original_code_s_names_too(family: str, tmp_path: Path) -> None:
    """Against the exporter of whole checkpoints, and for SDXL against diffusers' reader of kohya's files."""
    write_tiny = write_tiny_sd15 if family == "sd15" else write_tiny_sdxl
    source = write_tiny(tmp_path / "published", layers=PUBLISHED_LAYERS)
    unet = UNet2DConditionModel.from_pretrained(source / "unet", dtype=torch.float32)
    layers = unet_layers(unet)
    by_name = dict(unet.named_modules())
    exported = export_ldm(source, tmp_path / "ldm.safetensors")
    with safe_open(exported, framework="pt") as file:
        prefix = "model.diffusion_model."
        names = [key for key in file.keys() if key.startswith(prefix) and key.endswith(".weight")]  # noqa: SIM118
        found = 0
        for key in names:
            layer = layers.get(key.removeprefix(prefix).removesuffix(".weight").replace(".", "_"))
            if layer is not None:
                found += 1
                assert torch.equal(file.get_tensor(key), layer.weight)
    assert found == len(set(layers.values()))
    if family == "sdxl":
        original = [name for name in layers if name.startswith(("input_blocks", "middle", "output_blocks"))]
        attention = [name for name in original if "attn" in name]
        for name in attention:
            keys = {f"lora_unet_{name}.lora_{way}.weight": torch.zeros(1) for way in ("down", "up")}
            keys = _maybe_map_sgm_blocks_to_diffusers(keys, unet.config)
            (read, _) = _convert_non_diffusers_lora_to_diffusers(keys)
            module = next(iter(read)).removeprefix("unet.").replace(".processor", "").split("_lora")[0]
            module = module.replace("to_out", "to_out.0")
            assert by_name[module] is layers[name]
