"""A folder of textual inversions: what is read, and what is refused with the file's name."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deployments.engine.errors import CheckpointError
from deployments.engine.prompts.textual_inversion import read_prompt_vectors


def test_one_encoder_s_and_both_encoders(tmp_path: Path) -> None:
    one, first, second = torch.randn(2, 16), torch.randn(3, 16, dtype=torch.float16), torch.randn(3, 24)
    save_file({"emb_params": one}, tmp_path / "My-Style.safetensors")
    save_file({"<placeholder>": one[0]}, tmp_path / "flat.safetensors")
    save_file({"clip_l": first, "clip_g": second}, tmp_path / "both.safetensors")
    (tmp_path / "preview.png").write_bytes(b"what a folder has besides")
    found = read_prompt_vectors(tmp_path)
    assert {name: inversion.tokens for name, inversion in found.items()} == {"My-Style": 2, "both": 3, "flat": 1}
    assert [part.shape for part in found["both"].vectors] == [(3, 16), (3, 24)]
    assert torch.equal(torch.from_numpy(found["My-Style"].vectors[0]), one)
    assert torch.equal(torch.from_numpy(found["both"].vectors[0]), first.float())


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"a": torch.zeros(1, 4), "b": torch.zeros(1, 4)}, "one tensor, or clip_l and clip_g, not a, b"),
        ({"a": torch.zeros(76, 4)}, "1 to 75 vectors"),
        ({"a": torch.zeros(0, 4)}, "1 to 75 vectors"),
        ({"a": torch.zeros(1, 2, 4)}, "1 to 75 vectors"),
        ({"a": torch.zeros(1, 4, dtype=torch.int64)}, "1 to 75 vectors, not torch.int64"),
        ({"a": torch.full((1, 4), float("nan"))}, "isn't finite"),
        ({"clip_l": torch.zeros(1, 4), "clip_g": torch.zeros(2, 4)}, "different numbers"),
        ({"a": torch.zeros(2, 1 << 20)}, "bytes, more than"),
    ],
)
def test_what_is_no_textual_inversion(tensors: dict[str, torch.Tensor], reason: str, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "odd.safetensors")
    with pytest.raises(CheckpointError, match=f"odd.safetensors: .*{reason}"):
        read_prompt_vectors(tmp_path)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("style.pt", "pickles can run code"),
        ("style.BIN", "pickles can run code"),
        ("style.safetensors", "not a safetensors file"),
        ("(style).safetensors", "prompts can't name"),
    ],
)
def test_files_that_are_not_read(name: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(CheckpointError, match=reason):
        read_prompt_vectors(tmp_path)


def test_there_has_to_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected a folder"):
        read_prompt_vectors(tmp_path / "nowhere")
