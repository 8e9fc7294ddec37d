"""The classifier's pairs: the same picture twice, drawn once and not again."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from demo_models import nsfw_pairs, path
from demo_models.nsfw import SIDE, new_processor
from demo_models.nsfw_pairs import read_pairs, write_pairs
from demo_models.nsfw_pictures import CELLS, training_pair

VAE = path("demo-sd15") / "vae"


def test_an_interrupted_drawing_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nsfw_pairs, "PART", 2)
    write_pairs(VAE, tmp_path, 5, seed=3, processes=1)
    whole = read_pairs(tmp_path, 5, seed=3)
    assert whole.pictures.shape == (5, 2, 3, SIDE, SIDE)
    assert whole.places.shape == (5, CELLS, CELLS)
    first, second, third = sorted(tmp_path.iterdir())
    second.unlink()
    kept = [part.stat().st_mtime_ns for part in (first, third)]
    with pytest.raises(FileNotFoundError, match="nsfw-pairs stage"):
        read_pairs(tmp_path, 5, seed=3)
    write_pairs(VAE, tmp_path, 5, seed=3, processes=2)  # the part that is missing, in another process
    assert [part.stat().st_mtime_ns for part in (first, third)] == kept
    again = read_pairs(tmp_path, 5, seed=3)
    assert torch.equal(again.pictures, whole.pictures)
    assert torch.equal(again.places, whole.places)


def test_a_pair_is_what_the_classifier_will_see(tmp_path: Path) -> None:
    write_pairs(VAE, tmp_path, 3, seed=7, processes=1)
    pairs = read_pairs(tmp_path, 3, seed=7)
    vae, processor = AutoencoderKL.from_pretrained(VAE, dtype=torch.float32), new_processor()
    for number in range(3):
        pair = training_pair(vae, random.Random(f"pairs 7 {number}"))
        assert [one.unsafe for one in pair] == [False, True]
        assert pair[1].places.max() > 0
        torch.testing.assert_close(pairs.places[number] / 255, torch.from_numpy(pair[1].places), rtol=0, atol=0.002)
        for pixels, one in zip(pairs.pictures[number], pair, strict=True):
            seen = processor(Image.fromarray(one.picture), return_tensors="pt").pixel_values[0]
            torch.testing.assert_close(pixels / 127.5 - 1, seen, rtol=0, atol=1e-6)
