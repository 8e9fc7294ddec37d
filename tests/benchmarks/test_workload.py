"""What is measured: reading the command line's checkpoint, and embeddings that every contender gets alike."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.workload import random_conditioning, read_conditioning, save_conditioning, spec_of


def test_demo_models_are_found_by_name() -> None:
    spec = spec_of("demo-sdxl", None, None)
    assert (spec.family, spec.source) == ("sdxl", "package:demo_models/demo-sdxl")
    assert spec_of("demo-sd15-outline", None, None).family == "sd15"


def test_a_folders_family_is_read_off(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}', encoding="utf-8")
    assert spec_of(str(tmp_path), None, "fp16").family == "sdxl"
    assert spec_of(str(tmp_path), None, "fp16").variant == "fp16"


def test_other_sources_have_to_say_their_family() -> None:
    with pytest.raises(ValueError, match="--family"):
        spec_of("owner/name", None, None)
    assert spec_of("owner/name", "sd15", None).family == "sd15"


def test_embeddings_survive_the_file(tmp_path: Path) -> None:
    conditioning = random_conditioning(24, 16, guided=True)
    save_conditioning(tmp_path / "embeddings.npz", conditioning)
    guided = read_conditioning(tmp_path / "embeddings.npz", guided=True)
    assert guided.negative is not None
    assert conditioning.negative is not None
    assert np.array_equal(guided.positive.hidden_states, conditioning.positive.hidden_states)
    assert guided.negative.pooled is not None
    assert np.array_equal(guided.negative.pooled, np.asarray(conditioning.negative.pooled))
    assert read_conditioning(tmp_path / "embeddings.npz", guided=False).negative is None


def test_random_embeddings_are_exact_in_16_bit() -> None:
    hidden = random_conditioning(768, None, guided=False).positive.hidden_states
    assert hidden.shape == (77, 768)
    assert np.array_equal(hidden.astype(np.float16).astype(np.float32), hidden)
    assert 0.95 < hidden.std() < 1.05
