"""Images are judged as transformers and diffusers judge them, each by itself."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import ViTForImageClassification
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from deployments.engine.errors import CheckpointError, NumericalFailure
from deployments.engine.safety_classifier import ImageClassifier
from deployments.engine.types import Pixels

CPU = torch.device("cpu")
DEMO_MODEL = Path(__file__).parents[3] / "demo_models" / "demo-nsfw"
SIZES = [(64, 64), (32, 32), (17, 100), (3, 3), (1, 1), (200, 120)]


def _classifier(classifier: Path | None, safety_checker: Path | None = None, threshold: float = 0.5) -> ImageClassifier:
    return ImageClassifier(
        None if classifier is None else str(classifier),
        safety_checker=None if safety_checker is None else str(safety_checker),
        threshold=threshold,
        device=CPU,
        dtype=torch.float32,
    )


@pytest.fixture
def images() -> list[Pixels]:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]
    plain = [np.full((40, 40, 3), color, np.uint8) for color in ((255, 0, 0), (0, 0, 0), (255, 255, 255))]
    return noise + plain


@torch.inference_mode()
def _expected_scores(folder: Path, images: list[Pixels]) -> list[float]:
    model = ViTForImageClassification.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()
    preprocess = ViTImageProcessorPil.from_pretrained(folder)
    pixels = preprocess(images=[Image.fromarray(image) for image in images], return_tensors="pt").pixel_values
    unsafe = {label: index for index, label in model.config.id2label.items()}["nsfw"]
    scores: list[float] = model(pixels).logits.softmax(-1)[:, unsafe].tolist()
    return scores


@torch.inference_mode()
def _expected_flags(folder: Path, images: list[Pixels]) -> list[bool]:
    checker = StableDiffusionSafetyChecker.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()
    preprocess = CLIPImageProcessorPil.from_pretrained(folder)
    pixels = preprocess(images=[Image.fromarray(image) for image in images], return_tensors="pt").pixel_values
    _, flags = checker(clip_input=pixels, images=[np.zeros(image.shape) for image in images])
    return [bool(flag) for flag in flags]


def test_scores_are_those_of_transformers(tiny_vit: Path, images: list[Pixels]) -> None:
    scores = _classifier(tiny_vit)(images)
    expected = _expected_scores(tiny_vit, images)
    np.testing.assert_allclose([score.score for score in scores], expected, atol=1e-6)
    assert max(expected) - min(expected) > 1e-3  # the tiny model tells images apart at all
    assert [score.flagged for score in scores] == [score >= 0.5 for score in expected]


def test_demo_model_as_transformers(images: list[Pixels]) -> None:
    scores = [score.score for score in _classifier(DEMO_MODEL)(images)]
    np.testing.assert_allclose(scores, _expected_scores(DEMO_MODEL, images), atol=1e-6)


def test_threshold(tiny_vit: Path, images: list[Pixels]) -> None:
    scores = sorted(score.score for score in _classifier(tiny_vit)(images))
    middle = (scores[len(scores) // 2 - 1] + scores[len(scores) // 2]) / 2
    for score in _classifier(tiny_vit, threshold=middle)(images):
        assert score.flagged == (score.score > middle)
        assert score.flagged_by == (("classifier",) if score.flagged else ())


def test_company_changes_no_score(tiny_vit: Path, tiny_safety_checker: Path, images: list[Pixels]) -> None:
    judge = _classifier(tiny_vit, tiny_safety_checker)
    for image, together in zip(images, judge(images), strict=True):
        (alone,) = judge([image])
        assert together.score == pytest.approx(alone.score, abs=1e-6)
        assert together.flagged_by == alone.flagged_by


def test_no_images(tiny_vit: Path) -> None:
    assert _classifier(tiny_vit)([]) == []


@pytest.fixture
def strict_checker(tiny_safety_checker: Path, tmp_path: Path, images: list[Pixels]) -> Path:
    """A safety checker whose thresholds lie between the images, so that it flags some and not others."""
    folder = shutil.copytree(tiny_safety_checker, tmp_path / "checker")
    checker = StableDiffusionSafetyChecker.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(
        images=[Image.fromarray(image) for image in images], return_tensors="pt"
    ).pixel_values
    with torch.inference_mode():
        likeness = torch.nn.functional.cosine_similarity(
            checker.visual_projection(checker.vision_model(pixels)[1])[:, None], checker.concept_embeds[None], dim=-1
        )
    tensors = load_file(folder / "model.safetensors")
    tensors["concept_embeds_weights"].fill_(2.0)  # above any cosine
    tensors["concept_embeds_weights"][0] = likeness[:, 0].median() + 1e-3
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_safety_checker_is_that_of_diffusers(
    tiny_vit: Path, strict_checker: Path, images: list[Pixels], caplog: pytest.LogCaptureFixture
) -> None:
    expected = _expected_flags(strict_checker, images)
    assert len(set(expected)) == 2
    caplog.clear()
    alone = _classifier(None, strict_checker)(images)
    assert [score.flagged for score in alone] == expected
    assert [score.score for score in alone] == [float(flag) for flag in expected]
    both = _classifier(tiny_vit, strict_checker, threshold=1.1)(images)
    assert [score.flagged_by for score in both] == [("safety_checker",) if flag else () for flag in expected]
    every = _classifier(tiny_vit, strict_checker, threshold=0.0)(images)
    assert [score.flagged_by for score in every] == [
        ("classifier", "safety_checker") if flag else ("classifier",) for flag in expected
    ]
    assert "black image" not in caplog.text


def test_safety_checker_of_a_pipeline(strict_checker: Path, tmp_path: Path, images: list[Pixels]) -> None:
    shutil.copytree(strict_checker, tmp_path / "pipeline" / "safety_checker")
    (tmp_path / "pipeline" / "feature_extractor").mkdir()
    (tmp_path / "pipeline" / "safety_checker" / "preprocessor_config.json").rename(
        tmp_path / "pipeline" / "feature_extractor" / "preprocessor_config.json"
    )
    assert _classifier(None, tmp_path / "pipeline")(images) == _classifier(None, strict_checker)(images)


def test_safety_checker_of_older_transformers(strict_checker: Path, tmp_path: Path, images: list[Pixels]) -> None:
    old = shutil.copytree(strict_checker, tmp_path / "old")
    tensors = {
        name.replace("vision_model.", "vision_model.vision_model."): tensor
        for name, tensor in load_file(old / "model.safetensors").items()
    }
    tensors["vision_model.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    save_file(tensors, old / "model.safetensors")
    assert _classifier(None, old)(images) == _classifier(None, strict_checker)(images)


@pytest.fixture
def copy(tiny_vit: Path, tmp_path: Path) -> Path:
    """A tiny classifier to damage."""
    return shutil.copytree(tiny_vit, tmp_path / "copy")


def _edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"id2label": {"0": "cat", "1": "dog"}}, r"expected one label 'nsfw', found \['cat', 'dog'\]"),
        ("config.json", {"id2label": {"0": "nsfw", "1": "NSFW"}}, "expected one label"),
        ("config.json", {"id2label": None}, "expected id2label"),
        ("config.json", {"architectures": ["SwinForImageClassification"]}, "expected a ViTForImageClassification"),
        ("config.json", {"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
        ("preprocessor_config.json", {"auto_map": {"AutoImageProcessor": "evil.P"}}, "auto_map"),
        ("model.safetensors", {}, "doesn't fit"),
    ],
)
def test_refused(file: str, changes: dict[str, object], message: str, copy: Path) -> None:
    if file.endswith(".json"):
        _edit(copy / file, **changes)
    else:
        tensors = load_file(copy / file)
        tensors["classifier.bias"] = torch.ones(5)
        save_file(tensors, copy / file)
    with pytest.raises(CheckpointError, match=f"{file}: .*{message}"):
        _classifier(copy)


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_missing(file: str, copy: Path) -> None:
    (copy / file).unlink()
    with pytest.raises(CheckpointError, match=file):
        _classifier(copy)


def test_a_tensor_missing(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    del tensors["classifier.weight"]
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(CheckpointError, match="1 tensors missing or unknown"):
        _classifier(copy)


def test_a_score_that_is_not_a_number_passes_nothing(copy: Path, images: list[Pixels]) -> None:
    tensors = load_file(copy / "model.safetensors")
    tensors["classifier.bias"].fill_(float("nan"))
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(NumericalFailure):
        _classifier(copy)(images)


def test_an_embedding_that_is_not_a_number_passes_nothing(
    tiny_safety_checker: Path, tmp_path: Path, images: list[Pixels]
) -> None:
    """Likeness to a concept is compared with a threshold, which not-a-number never exceeds."""
    folder = shutil.copytree(tiny_safety_checker, tmp_path / "checker")
    tensors = load_file(folder / "model.safetensors")
    tensors["visual_projection.weight"].fill_(float("nan"))
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(NumericalFailure):
        _classifier(None, folder)(images)


def test_label_in_capitals_and_first(copy: Path, tiny_vit: Path, images: list[Pixels]) -> None:
    _edit(copy / "config.json", id2label={"0": "NSFW", "1": "SFW"}, label2id={"NSFW": 0, "SFW": 1})
    swapped, straight = _classifier(copy)(images), _classifier(tiny_vit)(images)
    for one, other in zip(swapped, straight, strict=True):
        assert one.score == pytest.approx(1 - other.score, abs=1e-6)


def test_sizes_written_as_before_transformers_4_25(copy: Path, tiny_vit: Path, images: list[Pixels]) -> None:
    _edit(copy / "preprocessor_config.json", size=32, feature_extractor_type="ViTFeatureExtractor")
    assert _classifier(copy)(images) == _classifier(tiny_vit)(images)
