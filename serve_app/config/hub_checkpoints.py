"""Downloads what a configuration needs from the Hugging Face hub, into its cache: safetensors and configurations only.

The same files that the engine's loader looks for, and no more. Loads none of them.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deployments.engine.checkpoints.files import (
    DIFFUSERS_STEM,
    TRANSFORMERS_STEM,
    fetch_from_hub,
    is_hub_id,
    is_safetensors,
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
    variant = needed.variant
    weights = _weights(needed.folders, needed.stem, variant)
    folder = fetch_from_hub(needed.repository, needed.revision, [*_CONFIGS, *weights])
    if variant is not None:
        # of components that the hub has in no such variant, the loader takes the plain weights
        plain = [name for name in needed.folders if not any((folder / name).glob(f"*.{variant}*.safetensors"))]
        if plain:
            fetch_from_hub(needed.repository, needed.revision, _weights(plain, needed.stem, None))
    return folder


def _weights(folders: Iterable[str], stem: str | None, variant: str | None) -> list[str]:
    infix = "" if variant is None else f".{variant}"
    paths = [f"{folder}/{stem}{infix}" if folder else f"{stem}{infix}" for folder in folders]
    return [f"{path}{rest}.safetensors" for path in paths for rest in ("", "-*-of-*")]
