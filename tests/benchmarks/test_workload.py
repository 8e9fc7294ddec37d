"""What is measured: reading the command line's checkpoint, and embeddings that every contender gets alike."""

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from benchmarks.workload import (
    Workload,
    engine_settings,
    random_conditioning,
    read_conditioning,
    save_conditioning,
    settings_fault,
    settings_of,
    spec_of,
)

WORKLOAD = Workload(
    spec=spec_of("demo-sd15", None, None),
    random_weights=False,
    width=64,
    height=64,
    steps=2,
    sampler="euler",
    guidance_scale=5.0,
    device="cpu",
    dtype="float32",
    seconds=0.01,
)


def test_settings_may_be_nested() -> None:
    assert settings_of("") == {}
    found = settings_of("max_rows=8,vae.dtype=bfloat16,vae.tiling=true,compile={},memory_gib=null")
    assert found == {
        "max_rows": "8",
        "vae": {"dtype": "bfloat16", "tiling": "true"},
        "compile": {},
        "memory_gib": None,
    }
    with pytest.raises(ValueError, match="KEY=VALUE"):
        settings_of("max_rows")


def test_a_benchmark_compiles_at_once_and_says_what_an_engine_does_not_know() -> None:
    settings = engine_settings(WORKLOAD, settings_of("compile={},channels_last=false,dtype=bfloat16"))
    assert settings.compile is not None
    assert (settings.compile.after_steps, settings.channels_last, settings.dtype) == (1, False, "bfloat16")
    patient = engine_settings(WORKLOAD, settings_of("compile.after_steps=7")).compile
    assert patient is not None
    assert patient.after_steps == 7
    with pytest.raises(ValidationError) as refused:
        engine_settings(WORKLOAD, settings_of("compile.faster=yes"))
    assert settings_fault(refused.value) == "compile.faster: Extra inputs are not permitted"


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
