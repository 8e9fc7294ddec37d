"""Installs into a folder what this Python lacks of what benchmarks need beside torch: `make gpu` on a bare machine.

    python -m benchmarks.missing_packages FOLDER

Each by itself, of the release that constraints.txt names, so that pip changes nothing that is there, torch above all.
For the standard library alone.
"""

import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"

WANTED = ("accelerate", "diffusers", "numpy", "pydantic", "safetensors", "scipy", "transformers")

NEEDS: Mapping[str, tuple[str, ...]] = {
    "accelerate": ("huggingface-hub", "numpy", "packaging", "psutil", "pyyaml", "safetensors"),
    "anyio": ("idna",),
    "diffusers": ("huggingface-hub", "importlib-metadata", "numpy", "pillow", "regex", "requests", "safetensors"),
    "httpcore2": ("h11", "truststore"),
    "httpx2": ("anyio", "httpcore2", "idna", "truststore"),
    "huggingface-hub": ("click", "hf-xet", "httpx2", "packaging", "pyyaml", "tqdm"),
    "importlib-metadata": ("lazy-importer", "zipp"),
    "markdown-it-py": ("mdurl",),
    "pydantic": ("annotated-types", "pydantic-core", "typing-inspection"),
    "requests": ("certifi", "charset-normalizer", "idna", "urllib3"),
    "rich": ("markdown-it-py", "pygments"),
    "scipy": ("numpy",),
    "tokenizers": ("huggingface-hub",),
    "transformers": ("huggingface-hub", "packaging", "pyyaml", "regex", "safetensors", "tokenizers", "tqdm", "typer"),
    "typer": ("annotated-doc", "rich", "shellingham"),
}
"""Of the releases that constraints.txt names, without what torch brings."""


def missing(installed: Callable[[str], bool]) -> tuple[str, ...]:
    """What of those wanted isn't installed, and what these need. A package that is there has what it needs."""
    found: dict[str, None] = {}
    left = list(WANTED)
    while left:
        name = left.pop(0)
        if name not in found and not installed(name):
            found[name] = None
            left += NEEDS.get(name, ())
    return tuple(sorted(found))


def main() -> int:
    """0 if everything is there in the end."""
    if not _installed("torch"):
        print(f"{sys.executable} has no torch: name a Python that has one, such as PYTHON=.venv/bin/python")
        return 1
    lacking = missing(_installed)
    if not lacking:
        return 0
    print(f"installing into {sys.argv[1]}: {', '.join(lacking)}", flush=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--upgrade", "--target", sys.argv[1], "--constraint", str(_CONSTRAINTS), *lacking]
    return subprocess.run(command, check=False).returncode


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
