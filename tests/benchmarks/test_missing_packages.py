"""What `make gpu` installs on a machine that has torch and little else."""

from importlib.metadata import requires

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.missing_packages import NEEDS, WANTED, missing


def test_all_needs_are_known() -> None:
    of_torch = needs_of("torch")
    needed = needs_of(*WANTED)
    assert set(missing(of_torch.__contains__)) == needed - of_torch


def test_what_is_there_has_what_it_needs() -> None:
    assert missing(lambda _: True) == ()
    assert missing(lambda name: name not in ("diffusers", "pillow", "typer")) == ("diffusers", "pillow")
    assert "typer" in missing(lambda name: name != "transformers" and name != "typer")
    assert {"tokenizers", "typer"} <= set(NEEDS["transformers"])


def needs_of(*packages: str) -> set[str]:
    """Them, and all that they need on this machine."""
    found: set[str] = set()
    left = list(packages)
    while left:
        name = canonicalize_name(left.pop())
        if name not in found:
            found.add(name)
            needs = map(Requirement, requires(name) or ())
            left += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return found
