"""Downloads what a configuration needs from the Hugging Face hub, into its cache: safetensors and configurations only.

The same files that the engine's loader looks for, and no more. Loads none of them.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from deployments.engine.checkpoints.files import (
    DIFFUSERS_STEM,
    TRANSFORMERS_STEM,
    HubFile,
    fetch_from_hub,
    is_hub_id,
    is_safetensors,
    look_up_on_hub,
)
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.families.registry import FAMILIES
from serve_app.config.settings import Settings

SAFETY = "safety layers"  # no model's name has a space

_CONFIGS = ("*.json", "*.txt")


@dataclass(frozen=True, slots=True)
class Pulled:
    """A repository that is in the cache now.

    Attributes:
        needed_by: the models (or SAFETY) that name it.
        size: bytes of the weights in `folder`, its snapshot.
    """

    repository: str
    revision: str | None
    needed_by: tuple[str, ...]
    folder: Path
    size: int


@dataclass(frozen=True, slots=True)
class Needed:
    """Files of one repository: the `stem` of their names, and the components' folders, "" for the top."""

    repository: str
    revision: str | None
    variant: str | None
    folders: tuple[str, ...]
    stem: str | None


def needs(settings: Settings, names: Sequence[str] | None) -> dict[str, list[Needed]]:
    """The files that models need of the hub, by repository; `names` is None for all models and the safety layers."""
    found = {name: _of_model(settings.models[name].checkpoint()) for name in names or settings.models}
    safety = settings.safety
    if names is None and safety.mode != "off":
        layers = [(safety.classifier, ("",)), (safety.safety_checker, ("", "safety_checker"))]
        found[SAFETY] = [
            Needed(source, None, None, folders, TRANSFORMERS_STEM)
            for source, folders in layers
            if source is not None and is_hub_id(source)
        ]
    return found


def pull(needed: dict[str, list[Needed]], say: Callable[[str], None]) -> list[Pulled]:
    """Download it all; `say` hears of every repository before its turn. Raises CheckpointError."""
    users: dict[Needed, list[str]] = {}
    for name, of_name in needed.items():
        for one in of_name:
            users.setdefault(one, []).append(name)
    pulled = []
    for one, names in users.items():
        say(f"{', '.join(names)}: {one.repository}")
        folder = _fetch(one)
        size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
        pulled.append(Pulled(one.repository, one.revision, tuple(names), folder, size))
    return pulled


def fetch(spec: CheckpointSpec) -> Path:
    """Download what a checkpoint needs of its repository; returns the folder there. Raises CheckpointError."""
    folders = [_fetch(needed) for needed in _of_model(spec) if needed.repository == spec.source]
    return folders[0]


def look_up(spec: CheckpointSpec) -> tuple[HubFile, ...]:
    """What `fetch` would have in the folder. Raises CheckpointError."""
    files: dict[str, HubFile] = {}
    for needed in _of_model(spec):
        if needed.repository != spec.source:
            continue
        found = look_up_on_hub(needed.repository, needed.revision, _patterns(needed))
        if plain := _plain(needed, [file.name for file in found]):
            found += look_up_on_hub(needed.repository, needed.revision, _weights(plain, needed.stem, None))
        files |= {file.name: file for file in found}
    return tuple(files.values())


def bytes_in_cache(repository: str, commit: str) -> int:
    """Bytes of a repository's commit that are in the cache, those of unfinished downloads with them."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")
    size = 0
    for path in (*(folder / "snapshots" / commit).rglob("*"), *(folder / "blobs").glob("*.incomplete")):
        with suppress(FileNotFoundError):  # it is finished meanwhile
            size += path.stat().st_size if path.is_file() else 0
    return size


def cache_folder() -> Path:
    """Hugging Face's cache, or the nearest folder above it that is there."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE).absolute()
    return next(one for one in (folder, *folder.parents) if one.is_dir())


def _of_model(spec: CheckpointSpec) -> list[Needed]:
    own_vae = ("vae",) if spec.vae is None else ()
    family = FAMILIES[spec.family]
    encoders = tuple(encoder.folder for encoder in family.own_text_encoders)
    needed = []
    if is_hub_id(spec.source):
        needed.append(Needed(spec.source, spec.revision, spec.variant, ("unet", *own_vae), DIFFUSERS_STEM))
        if encoders:
            needed.append(Needed(spec.source, spec.revision, spec.variant, encoders, TRANSFORMERS_STEM))
    elif is_safetensors(Path(spec.source)) and spec.config is not None and is_hub_id(spec.config):
        needed.append(Needed(spec.config, None, None, (), None))
    if spec.vae is not None and is_hub_id(spec.vae):
        needed.append(Needed(spec.vae, None, None, ("", "vae"), DIFFUSERS_STEM))
    return needed


def _fetch(needed: Needed) -> Path:
    folder = fetch_from_hub(needed.repository, needed.revision, _patterns(needed))
    files = [str(path.relative_to(folder)) for path in folder.glob("*/*.safetensors")]
    if plain := _plain(needed, files):
        fetch_from_hub(needed.repository, needed.revision, _weights(plain, needed.stem, None))
    return folder


def _patterns(needed: Needed) -> list[str]:
    return [*_CONFIGS, *_weights(needed.folders, needed.stem, needed.variant)]


def _plain(needed: Needed, files: Sequence[str]) -> list[str]:
    """The components that the hub has in no such variant; of these the loader takes the plain weights."""
    if needed.variant is None:
        return []
    pattern = f"*.{needed.variant}*.safetensors"
    return [name for name in needed.folders if not any(fnmatchcase(file, f"{name}/{pattern}") for file in files)]


def _weights(folders: Iterable[str], stem: str | None, variant: str | None) -> list[str]:
    infix = "" if variant is None else f".{variant}"
    paths = [f"{folder}/{stem}{infix}" if folder else f"{stem}{infix}" for folder in folders]
    return [f"{path}{rest}.safetensors" for path in paths for rest in ("", "-*-of-*")]
