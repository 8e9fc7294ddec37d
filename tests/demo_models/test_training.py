"""Every stage trains, and an interrupted run ends with the same weights as one that was not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from transformers import ViTForImageClassification

from demo_models import detector, image_encoder, ip_adapter, nsfw, path, text_encoders, vae, workshop
from demo_models.package import (
    package,
    package_controlnet,
    package_detector,
    package_ip_adapter,
    package_lora,
    share_parts,
)
from demo_models.restore import restore
from demo_models.workshop import Workshop
from deployments.engine.conditioning.image_encoder import ImageEncoder
from deployments.engine.conditioning.ip_adapter_files import IpAdapterFolder
from deployments.engine.detection.folder import DetectorFolder


@pytest.fixture(scope="module", autouse=True)
def _small_batches() -> Iterator[None]:
    """Nothing here is about how well it trains; all latents of these tests are of 128 x 128 pixels."""
    small = {"batch_pixels": 2 * 128 * 128, "small_batch": 2}
    with pytest.MonkeyPatch.context() as patch:
        for courses in ("COURSES", "CONTROLNET_COURSES"):
            smaller = {name: replace(course, **small) for name, course in getattr(workshop, courses).items()}
            patch.setattr(workshop, courses, smaller)
        patch.setattr(workshop, "LORA_COURSE", replace(workshop.LORA_COURSE, **small))
        patch.setattr(workshop, "SCALING_PICTURES", 2)
        patch.setattr(workshop, "IP_ADAPTER_COURSE", replace(workshop.IP_ADAPTER_COURSE, **small))
        patch.setattr(image_encoder, "BATCH", 2)
        patch.setattr(image_encoder, "READ", 2)
        patch.setattr(vae, "BATCH", 2)
        patch.setattr(nsfw, "BATCH", 4)
        patch.setattr(detector, "BATCH", 2)
        patch.setattr(detector, "MOSAICS", 1)
        patch.setattr(text_encoders, "BATCH", 4)
        yield


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """A folder in which every stage has taken two steps."""
    made = Workshop(tmp_path_factory.mktemp("training"), steps=2, count=2)
    workshop.make_tokenizers(made)
    workshop.train_text_encoders(made)
    workshop.teach_unknown_words(made)
    workshop.train_vae(made)
    for style in ("plain", "outline", "stripes"):
        workshop.write_latents(made, style, [128])
    for name in workshop.COURSES:
        workshop.train_unet(made, name)
    workshop.write_nsfw_pairs(made)
    for name in workshop.CLASSIFIER_RUNS:
        workshop.train_classifier(made, name)
    workshop.train_lora(made)
    for name in workshop.CONTROLNET_COURSES:
        workshop.train_controlnet(made, name)
    workshop.train_detector(made)
    workshop.train_image_encoder(made)
    workshop.train_ip_adapter(made)
    return made


def test_every_stage_leaves_a_checkpoint(shop: Workshop) -> None:
    assert all(workshop.steps_taken(shop, name) == 2 for name in workshop.STEPS)


@pytest.mark.parametrize("name", ["demo-sd15-outline", "demo-sdxl", "demo-sdxl-refiner", "demo-nsfw"])
def test_a_checkpoint_can_be_packaged(shop: Workshop, name: str, tmp_path: Path) -> None:
    folder = package(shop, name, tmp_path / name)
    assert (folder / "README.md").exists()
    assert list(folder.rglob("*.safetensors"))


def test_what_checkpoints_have_in_common_stands_once(shop: Workshop, tmp_path: Path) -> None:
    names = ("demo-sd15", "demo-sd15-outline")
    folders = [package(shop, name, tmp_path / name) for name in names]
    vae, unet = "vae/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.safetensors"
    wanted = [StableDiffusionPipeline.from_pretrained(folder).vae.state_dict() for folder in folders]
    share_parts(folders)
    assert [(folder / vae).is_symlink() for folder in folders] == [False, True]
    assert not any((folder / unet).is_symlink() for folder in folders)
    for folder, before in zip(folders, wanted, strict=True):
        after = StableDiffusionPipeline.from_pretrained(folder).vae.state_dict()
        assert all(torch.equal(after[name], before[name]) for name in before)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for folder in folders:
        folder.rename(moved / folder.name)
    assert load_file(moved / "demo-sd15-outline" / vae), "links are relative"


def test_the_lora_can_be_packaged(shop: Workshop, tmp_path: Path) -> None:
    tensors = load_file(package_lora(shop, tmp_path / "loras"))
    assert tensors["lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight"].abs().max() > 0
    assert "{" not in (tmp_path / "loras" / "README.md").read_text()


def test_the_controlnet_can_be_packaged(shop: Workshop, tmp_path: Path) -> None:
    tensors = load_file(package_controlnet(shop, tmp_path / "controlnets") / "diffusion_pytorch_model.safetensors")
    assert tensors["controlnet_mid_block.weight"].abs().max() > 0
    assert "{" not in (tmp_path / "controlnets" / "README.md").read_text()


def test_the_detector_can_be_packaged(shop: Workshop, tmp_path: Path) -> None:
    file = package_detector(shop, tmp_path / "detectors")
    assert DetectorFolder(str(file.parent)).find(detector.NAME).classes == detector.CLASSES
    assert "{" not in (tmp_path / "detectors" / "README.md").read_text()


def test_the_ip_adapter_can_be_packaged(shop: Workshop, tmp_path: Path) -> None:
    file = package_ip_adapter(shop, tmp_path / "ip-adapters", tmp_path / "encoder")
    source = IpAdapterFolder(str(file.parent)).find(ip_adapter.NAME)
    encoder = ImageEncoder(str(tmp_path / "encoder"), torch.device("cpu"), torch.float32)
    assert (source.features, source.sees_patches) == (encoder.projection_channels, False)
    tensors = load_file(file)
    before = workshop.new_ip_adapter(shop).tensors()
    assert tensors.keys() == before.keys()
    moved = {name.partition(".")[0] for name in tensors if not torch.equal(tensors[name], before[name])}
    assert moved == {"image_proj", "ip_adapter"}
    assert "{" not in (tmp_path / "ip-adapters" / "README.md").read_text()


RESUMED = ["vae", "sd15", "nsfw", "text-encoder", "text-encoder-fine", "lora", "controlnet", "detector"]
RESUMED += ["image-encoder", "ip-adapter"]


@pytest.mark.parametrize("name", RESUMED)
def test_resuming_gives_the_same_weights(shop: Workshop, name: str) -> None:
    stages = {
        "vae": lambda s: workshop.train_vae(s),
        "sd15": lambda s: workshop.train_unet(s, "sd15"),
        "nsfw": lambda s: workshop.train_classifier(s, "nsfw"),
        "text-encoder": lambda s: workshop.train_text_encoders(s),
        "text-encoder-fine": lambda s: workshop.teach_unknown_words(s),
        "lora": lambda s: workshop.train_lora(s),
        "controlnet": lambda s: workshop.train_controlnet(s, "controlnet"),
        "detector": lambda s: workshop.train_detector(s),
        "image-encoder": lambda s: workshop.train_image_encoder(s),
        "ip-adapter": lambda s: workshop.train_ip_adapter(s),
    }
    checkpoint = shop.run(name).checkpoint
    whole = torch.load(checkpoint, weights_only=True)
    checkpoint.unlink()
    stages[name](replace(shop, stop_after=1))
    assert torch.load(checkpoint, weights_only=True)["step"] == 1
    stages[name](shop)
    resumed = torch.load(checkpoint, weights_only=True)
    assert resumed["step"] == 2
    for key, value in whole["model"].items():
        torch.testing.assert_close(resumed["model"][key], value, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(resumed["average"], whole["average"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_training_goes_on_from_the_packaged_checkpoints(shop: Workshop, tmp_path: Path) -> None:
    again = replace(shop, folder=tmp_path / "again")
    restore(again)
    packaged = load_file(path("demo-sdxl") / "unet" / "diffusion_pytorch_model.safetensors")
    for name, tensor in workshop.trained_unet(again, "sdxl").state_dict().items():
        assert torch.equal(tensor, packaged[name].float())
    workshop.write_latents(again, "plain", [128])
    workshop.train_unet(again, "sdxl-fine")
    assert "second sitting" in (package(again, "demo-sdxl", tmp_path / "demo-sdxl") / "README.md").read_text()
    classifier = ViTForImageClassification.from_pretrained(path("demo-nsfw"), dtype=torch.float32).state_dict()
    for name, tensor in workshop.trained_classifier(again, "nsfw").state_dict().items():
        assert torch.equal(tensor, classifier[name])
    shutil.copytree(shop.folder / "nsfw-pairs", again.folder / "nsfw-pairs")
    workshop.train_classifier(again, "nsfw-fine")
    assert "second sitting" in (package(again, "demo-nsfw", tmp_path / "demo-nsfw") / "README.md").read_text()
    with pytest.raises(FileExistsError, match="empty folder"):
        restore(again)
