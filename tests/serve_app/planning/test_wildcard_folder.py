"""Which wildcards a folder has."""

import os
from pathlib import Path

from serve_app.planning.wildcard_folder import WildcardFolder


def test_text_files_of_the_folder_and_its_subfolders(tmp_path: Path) -> None:
    folder = tmp_path / "wildcards"
    (folder / "nature" / "near").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "colours.txt").write_text("\ufeffred\n\n# no colour\n  deep blue  \r\n", encoding="utf-8")
    (folder / "nature" / "near" / "trees.v2.txt").write_text("oak\né")
    (folder / "latin.txt").write_bytes(b"caf\xe9\n")
    for name in ("empty.txt", ".dot.txt", ".hidden/x.txt"):
        (folder / name).write_text("# nothing" if name == "empty.txt" else "x")
    (folder / "values.yaml").write_text("a: [b]")
    (folder / "large.txt").write_text("x\n" * (1 << 19) + "x")
    (folder / "gone.txt").symlink_to(tmp_path / "nothing.txt")
    (folder / "outside").symlink_to(tmp_path)
    wildcards = WildcardFolder(str(folder))
    first = wildcards.read()
    assert list(first) == ["colours", "latin", "nature/near/trees.v2"]
    assert first["colours"] == ("red", "deep blue")
    assert first["nature/near/trees.v2"] == ("oak", "é")
    assert first["latin"] == ("caf\ufffd",)
    (folder / "colours.txt").write_text("green")
    os.utime(folder / "colours.txt", ns=(1, 1))
    (folder / "latin.txt").unlink()
    assert dict(wildcards.read()) == {"colours": ("green",), "nature/near/trees.v2": ("oak", "é")}


def test_no_folder_has_none(tmp_path: Path) -> None:
    assert dict(WildcardFolder(None).read()) == dict(WildcardFolder(str(tmp_path / "nothing")).read()) == {}
