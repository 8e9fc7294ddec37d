"""The VAE's way in and out: in tiles, in its own type, and by a tiny decoder in its place."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline

from deployments.engine.checkpoints.loader import load_denoiser
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.engine import Engine
from deployments.engine.errors import CheckpointError, NumericalFailure
from deployments.engine.types import Conditioning, DenoiseRequest, DenoiseResult
from deployments.engine.vae.autoencoder import Vae
from deployments.engine.vae.tiny_decoder import load_tiny_decoder
from tests.deployments.engine.listening import ask

Encode = Callable[..., Conditioning]
MakeEngine = Callable[..., Engine]
RunTogether = Callable[[Engine, list[tuple[DenoiseRequest, Conditioning]]], list[DenoiseResult]]
CPU = torch.device("cpu")
DEMO = CheckpointSpec(family="sd15", source="package:demo_models/demo-sd15")


@pytest.fixture(scope="module")
def taesd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TAESD's structure with few channels."""
    folder = tmp_path_factory.mktemp("taesd")
    torch.manual_seed(0)
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    ).save_pretrained(folder)
    return folder


def similarity(one: np.ndarray, other: np.ndarray) -> float:
    """dB of the signal to the difference."""
    return float(10 * np.log10(255**2 / np.square(one.astype(float) - other.astype(float)).mean()))


def test_a_picture_in_tiles_is_alike(sd15_pipeline: StableDiffusionPipeline) -> None:
    weights = load_denoiser(DEMO, CPU, torch.float32)
    colours = torch.rand(3, 12, 20, generator=torch.Generator().manual_seed(0)).repeat_interleave(16, 1)
    picture = (colours.repeat_interleave(16, 2) * 255).byte().permute(1, 2, 0).numpy()
    whole, tiled = Vae.of(weights), Vae.of(weights, lambda cells: cells > 256, tile=128)
    latents = whole.encode(picture, torch.Generator().manual_seed(0))
    (wanted,) = whole.decode(latents[None])
    in_tiles = tiled.encode(picture, torch.Generator().manual_seed(0))
    assert not torch.equal(in_tiles, latents)
    (found,) = tiled.decode(latents[None])
    assert isinstance(wanted, np.ndarray)
    assert isinstance(found, np.ndarray)
    assert wanted.shape == found.shape == picture.shape
    assert 25 < similarity(found, wanted) < 100
    assert ((in_tiles - latents).std() / latents.std()).item() < 0.3
    small = latents[None, :, :16, :16]
    assert np.array_equal(tiled.decode(small)[0], whole.decode(small)[0])


def test_a_vae_has_a_type_of_its_own(make_engine: MakeEngine, run_together: RunTogether, encode_sd15: Encode) -> None:
    lanes = [(ask("a"), encode_sd15("a"))]
    wanted = run_together(make_engine(), lanes)[0].image
    engine = make_engine(vae={"dtype": "bfloat16"})
    found = run_together(engine, lanes)[0].image
    weights = engine._loop.residency["sd15"].weights
    assert (weights.vae.dtype, weights.unet.dtype) == (torch.bfloat16, torch.float32)
    assert found is not None
    assert wanted is not None
    assert 30 < similarity(found, wanted) < 100


def test_a_decode_in_float32_leaves_the_weights_where_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = load_denoiser(DEMO, CPU, torch.bfloat16)
    vae = Vae.of(weights)
    before = [(of.data_ptr(), of.dtype, of.clone()) for of in weights.vae.parameters()]
    seen: list[torch.dtype] = []
    weights.vae.post_quant_conv.register_forward_pre_hook(lambda _, given: seen.append(given[0].dtype))

    def unmoved() -> bool:
        now = [(of.data_ptr(), of.dtype, of) for of in weights.vae.parameters()]
        return all(
            here[:2] == there[:2] and torch.equal(here[2], there[2]) for here, there in zip(before, now, strict=True)
        )

    (failure,) = vae.decode(torch.full((1, 4, 8, 8), torch.nan))
    assert isinstance(failure, NumericalFailure)
    assert seen == [torch.bfloat16, torch.float32]
    assert unmoved()
    widen, calls = torch.Tensor.float, iter(range(100))

    def scarce(tensor: torch.Tensor) -> torch.Tensor:
        if next(calls) == 9:
            raise torch.OutOfMemoryError("no room")
        return widen(tensor)

    monkeypatch.setattr(torch.Tensor, "float", scarce)
    with pytest.raises(torch.OutOfMemoryError):
        vae.decode(torch.full((1, 4, 8, 8), torch.nan))
    assert unmoved()


def test_a_tiny_decoder_decodes_in_the_vaes_place(
    taesd: Path, make_engine: MakeEngine, run_together: RunTogether, encode_sd15: Encode
) -> None:
    text = encode_sd15("a")
    lanes = [(ask("latents", output="latents"), text), (ask("image"), text)]
    latents, drawn = run_together(make_engine(vae={"tiny": str(taesd)}), lanes)
    tiny = AutoencoderTiny.from_pretrained(taesd, dtype=torch.float32)
    assert latents.latents is not None
    with torch.no_grad():
        wanted = tiny.decode(torch.from_numpy(latents.latents)[None].clone()).sample[0]
    pixels = (wanted / 2 + 0.5).clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
    assert drawn.image is not None
    assert drawn.image.shape == (64, 64, 3)
    assert np.abs(drawn.image.astype(int) - pixels).max() <= 1


def test_a_tiny_decoder_is_a_folder_of_one(taesd: Path, tiny_sd15: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: expected a AutoencoderTiny, found 'AutoencoderKL'"):
        load_tiny_decoder(str(tiny_sd15 / "vae"), CPU, torch.float32)
    with pytest.raises(CheckpointError, match=r"expected the folder of an AutoencoderTiny"):
        load_tiny_decoder(str(taesd / "diffusion_pytorch_model.safetensors"), CPU, torch.float32)
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    ).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="enlarges 8 times, found 4 and 4 times"):
        load_tiny_decoder(str(tmp_path), CPU, torch.float32)


def test_a_stage_whose_tiny_decoder_is_missing_loads_nothing(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine = make_engine(vae={"tiny": str(tmp_path)})
    with pytest.raises(CheckpointError, match=r"config\.json"):
        engine.preload("sd15").result()
