"""A folder of textual inversions: what is read, and what is skipped, with its reason."""

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deployments.engine.checkpoints.files import hash_files
from deployments.engine.errors import CheckpointError, InvalidRequest
from deployments.engine.prompts.textual_inversion import EmbeddingFolder


def test_one_encoder_s_and_both_encoders(tmp_path: Path) -> None:
    one, first, second = torch.randn(2, 16), torch.randn(3, 16, dtype=torch.float16), torch.randn(3, 24)
    save_file({"emb_params": one}, tmp_path / "My-Style.safetensors")
    save_file({"<placeholder>": one[0]}, tmp_path / "flat.SafeTensors")
    save_file({"clip_l": first, "clip_g": second.bfloat16()}, tmp_path / "both.safetensors")
    (tmp_path / "preview.png").write_bytes(b"what a folder has besides")
    found = EmbeddingFolder(str(tmp_path)).entries()
    assert {name: inversion.tokens for name, inversion in found.items()} == {"My-Style": 2, "both": 3, "flat": 1}
    assert list(found) == sorted(found)
    assert [part.shape for part in found["both"].vectors] == [(3, 16), (3, 24)]
    assert (found["both"].channels, found["My-Style"].channels) == (40, 16)
    assert torch.equal(torch.from_numpy(found["My-Style"].vectors[0].copy()), one)
    assert torch.equal(torch.from_numpy(found["both"].vectors[0].copy()), first.float())
    assert torch.equal(torch.from_numpy(found["both"].vectors[1].copy()), second.bfloat16().float())
    assert found["flat"].hash == hash_files([tmp_path / "flat.SafeTensors"])
    assert EmbeddingFolder(None).entries() == {}


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"a": torch.zeros(1, 4), "b": torch.zeros(1, 4)}, "one tensor, or clip_l and clip_g, not a, b"),
        ({"a": torch.zeros(76, 4)}, "1 to 75 vectors"),
        ({"a": torch.zeros(0, 4)}, "1 to 75 vectors"),
        ({"a": torch.zeros(1, 2, 4)}, "1 to 75 vectors"),
        ({"a": torch.zeros(1, 4, dtype=torch.int64)}, "expected floats of 16, 32 or 64 bits, not I64"),
        ({"a": torch.full((1, 4), float("nan"))}, "isn't finite"),
        ({"a": torch.full((1, 4), float("inf"), dtype=torch.bfloat16)}, "isn't finite"),
        ({"clip_l": torch.zeros(1, 4), "clip_g": torch.zeros(2, 4)}, "different numbers"),
        ({"a": torch.zeros(2, 1 << 20)}, "bytes, more than"),
    ],
)
def test_what_is_no_textual_inversion(
    tensors: dict[str, torch.Tensor], reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_file(tensors, tmp_path / "odd.safetensors")
    save_file({"a": torch.zeros(1, 4)}, tmp_path / "good.safetensors")
    folder = EmbeddingFolder(str(tmp_path))
    for _ in range(2):
        contents = folder.contents()
        assert contents.names == ("good",)
        assert contents.skipped.keys() == {"odd"}
        assert reason in contents.skipped["odd"]
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        f"{contents.skipped['odd']}: skipped"
    ]
    with pytest.raises(InvalidRequest, match=reason):
        folder.find("odd")


@pytest.mark.parametrize(
    ("file", "name", "reason"),
    [
        ("style.pt", "style", "a pickle can run code"),
        ("style.BIN", "style", "a pickle can run code"),
        ("style.safetensors", "style", "a pickle in spite of its name"),
        ("style (v2).safetensors", "style (v2)", "has a name that requests can't say"),
    ],
)
def test_files_that_are_skipped(file: str, name: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / file).write_bytes(b"\x80\x04K\x01.")
    contents = EmbeddingFolder(str(tmp_path)).contents()
    assert contents.names == ()
    assert contents.skipped.keys() == {name}
    assert reason in contents.skipped[name]
    assert str(tmp_path) not in contents.skipped[name]


def test_a_file_that_is_replaced_is_read_anew(tmp_path: Path) -> None:
    folder = EmbeddingFolder(str(tmp_path))
    (tmp_path / "style.safetensors").write_bytes(b"not yet")
    assert folder.contents().skipped.keys() == {"style"}
    save_file({"a": torch.zeros(2, 4)}, tmp_path / "style.safetensors")
    assert folder.entries()["style"].tokens == 2
    save_file({"a": torch.zeros(3, 4)}, tmp_path / "style.safetensors")
    assert folder.find("style").tokens == 3
    (tmp_path / "style.safetensors").unlink()
    assert folder.entries() == {}


def test_there_has_to_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected a folder of embeddings"):
        EmbeddingFolder(str(tmp_path / "nowhere"))
