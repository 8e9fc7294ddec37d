"""Installs into a folder what this Python lacks of what benchmarks need beside torch: `make gpu` on a bare machine.

    python -m benchmarks.missing_packages FOLDER

Each by itself, of the release that constraints.txt names, so that pip changes nothing that is there, torch above all.
For the standard library alone.
"""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"
# diffusers, transformers, accelerate, safetensors, pydantic, numpy and scipy, and what they need beside torch
NEEDED = (
    *("accelerate", "annotated-doc", "annotated-types", "anyio", "certifi", "charset-normalizer", "click", "diffusers"),
    *("h11", "hf-xet", "httpcore2", "httpx2", "huggingface_hub", "idna", "importlib_metadata", "lazy-importer"),
    *("markdown-it-py", "mdurl", "numpy", "packaging", "pillow", "psutil", "pydantic", "pydantic_core", "Pygments"),
    *("PyYAML", "regex", "requests", "rich", "safetensors", "scipy", "shellingham", "tokenizers", "tqdm"),
    *("transformers", "truststore", "typer", "typing_extensions", "typing-inspection", "urllib3", "zipp"),
)


def missing() -> tuple[str, ...]:
    """Those of them that aren't installed here."""
    return tuple(name for name in NEEDED if not _installed(name))


def main() -> int:
    """0 if everything is there in the end."""
    if not _installed("torch"):
        print(f"{sys.executable} has no torch: name a Python that has one, such as PYTHON=.venv/bin/python")
        return 1
    lacking = missing()
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
