"""Checkpoints on disk: where a source lies, which weight files it has, that they are what they say, their hash.

Reads names, bytes and JSON, and imports no torch. Whatever is wrong is a CheckpointError that names the file: nothing
here guesses, and nothing opens a pickle.
"""

import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployments.engine.errors import CheckpointError

DIFFUSERS_STEM = "diffusion_pytorch_model"
SUFFIX = ".safetensors"
TRANSFORMERS_STEM = "model"
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PACKAGE_FOLDER = re.compile(r"package:([A-Za-z_][\w.]*)/([\w.-]+(?:/[\w.-]+)*)")
_LONGEST_JSON = 4 << 20  # bytes; real configurations have a few thousand
_LONGEST_HEADER = 100 << 20  # bytes; safetensors' own limit
_METADATA = "__metadata__"  # an entry of a header that is no tensor
_HASH_CHUNK = 8 << 20  # bytes
_hashes: dict[tuple[str, int, int, tuple[str, ...]], str] = {}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor in a safetensors file; start and end are bytes from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a safetensors file declares.

    Attributes:
        tensors: by name.
        metadata: the texts that whoever wrote it left in it.
    """

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository of the hub.

    Attributes:
        name: its path in the repository.
        commit: that the file is of.
        bytes: its length.
        cached: whether it is in the cache.
    """

    name: str
    commit: str
    bytes: int
    cached: bool


@dataclass(frozen=True, slots=True)
class Weights:
    """The weight files of one component: one file, or the shards that an index names.

    Attributes:
        variant: diffusers' and transformers' `variant` for these files; None for the plain names.
    """

    files: tuple[Path, ...]
    variant: str | None


def resolve_source(
    source: str,
    *,
    revision: str | None = None,
    hub_patterns: Sequence[str] = ("*.json", "*.txt"),
) -> Path:
    """The folder or .safetensors file that `source` names.

    A hub id is looked up in Hugging Face's cache, and downloaded into it unless HF_HUB_OFFLINE is set.

    Args:
        source: as in CheckpointSpec.source.
        revision: of a hub id; None for main.
        hub_patterns: of the files that are downloaded.

    Raises:
        CheckpointError: there is no such folder, file or repository.
    """
    if source.startswith("package:"):
        return _package_folder(source)
    path = Path(source).expanduser()
    if path.suffix.lower() in PICKLES:
        raise CheckpointError(
            f"{source}: {path.suffix} files are pickles, which can run code; convert it to .safetensors"
        )
    if is_safetensors(path):
        if not path.is_file():
            raise CheckpointError(f"{source}: there is no such file")
        return path
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"{source}: neither a folder nor a .safetensors file")
    if not is_hub_id(source):
        reason = f"{path.parts[0]} is a folder here" if _HUB_ID.fullmatch(source) else "it isn't owner/name"
        raise CheckpointError(f"{source}: there is no such folder, and no repository of the hub is meant: {reason}")
    return fetch_from_hub(source, revision, hub_patterns)


def is_hub_id(source: str) -> bool:
    """Whether `source` is looked up on the hub: it has a hub id's form, and can't be a path.

    A path is what exists, what begins with a folder that is here, and what ends as files of weights do.
    """
    path = Path(source)
    is_weights = is_safetensors(path) or path.suffix.lower() in PICKLES
    return _HUB_ID.fullmatch(source) is not None and not (is_weights or path.parent.is_dir() or path.exists())


def is_safetensors(path: Path) -> bool:
    """Whether a file's name ends so, in any case."""
    return path.suffix.lower() == SUFFIX


def fetch_from_hub(hub_id: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """The snapshot folder of a hub repository, with the files that match `patterns`.

    Raises CheckpointError if it can't be had, because it doesn't exist, asks for a licence, or the machine is offline.
    """
    # reads its environment when it is imported: whoever wants it offline says so before the first look at the hub
    from huggingface_hub import snapshot_download

    with _hub_errors(hub_id, revision):
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(patterns)))


def look_up_on_hub(hub_id: str, revision: str | None, patterns: Sequence[str]) -> tuple[HubFile, ...]:
    """The files of a hub repository that match `patterns`; downloads none. Raises CheckpointError as fetch_from_hub."""
    from huggingface_hub import snapshot_download

    with _hub_errors(hub_id, revision):
        files = snapshot_download(hub_id, revision=revision, allow_patterns=list(patterns), dry_run=True)
    return tuple(HubFile(file.filename, file.commit_hash, file.file_size or 0, file.is_cached) for file in files)


@contextmanager
def _hub_errors(hub_id: str, revision: str | None) -> Iterator[None]:
    """Raise what huggingface_hub raises as CheckpointError."""
    from huggingface_hub.errors import DryRunError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        yield
    except (LocalEntryNotFoundError, DryRunError) as error:
        raise CheckpointError(
            f"{hub_id}: no such folder here, and revision {revision or 'main'} of the hub's repository is neither in "
            f"the cache nor reachable (HF_HUB_OFFLINE={os.environ.get('HF_HUB_OFFLINE', '0')})"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise CheckpointError(f"{hub_id}: the hub refused the download: {_first_line(error)}") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises CheckpointError if the file is missing or holds something else."""
    if not path.is_file():
        raise CheckpointError(f"{path}: missing")
    if path.stat().st_size > _LONGEST_JSON:
        raise CheckpointError(f"{path}: longer than {_LONGEST_JSON} bytes, which no configuration is")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON: {_first_line(error)}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def find_weights(folder: Path, stem: str, variant: str | None) -> Weights:
    """The safetensors files of a component, their headers checked.

    Args:
        folder: of the component.
        stem: "diffusion_pytorch_model" or "model".
        variant: preferred if there are files of it, as in diffusers.

    Raises:
        CheckpointError: there are none, a shard is missing, or a file isn't safetensors.
    """
    for candidate in dict.fromkeys((variant, None)):
        infix = f".{candidate}" if candidate else ""
        index = folder / f"{stem}.safetensors.index{infix}.json"
        single = folder / f"{stem}{infix}.safetensors"
        if index.is_file():
            files = _shards(index)
        elif single.is_file():
            files = (single,)
        else:
            continue
        for file in files:
            read_header(file)
        return Weights(files, candidate)
    wanted = f"{stem}.safetensors" + (f" or {stem}.{variant}.safetensors" if variant else "")
    raise CheckpointError(f"{folder}: expected {wanted}, found {_describe_weights(folder, stem)}")


def read_header(path: Path) -> Header:
    """What a safetensors file declares; checks that the file is as long as its tensors say.

    Layout: 8 bytes little-endian header length, JSON header, tensor data (safetensors' README, "Format").
    Raises CheckpointError if the file isn't safetensors or is cut short.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(64)
        _refuse_lookalikes(path, start)
        length = int.from_bytes(start[:8], "little")
        if len(start) < 8 or length > _LONGEST_HEADER or 8 + length > size:
            raise CheckpointError(f"{path}: not a safetensors file, or cut short: no header of the length it declares")
        file.seek(8)
        raw = file.read(length)
    try:
        header = json.loads(raw)
        tensors = {
            name: TensorEntry(str(entry["dtype"]), tuple(entry["shape"]), *entry["data_offsets"])
            for name, entry in header.items()
            if name != _METADATA
        }
        metadata = {str(key): str(value) for key, value in (header.get(_METADATA) or {}).items()}
        end = max(tensor.end for tensor in tensors.values())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a safetensors file: its header doesn't describe tensors") from error
    if 8 + length + end != size:
        raise CheckpointError(
            f"{path}: cut short or damaged: its header declares {8 + length + end} bytes, the file has {size}"
        )
    return Header(tensors, metadata)


def read_data(path: Path, entry: TensorEntry) -> bytes:
    """The bytes of one of a safetensors file's tensors."""
    with path.open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little") + entry.start)
        return file.read(entry.end - entry.start)


def hash_files(files: Iterable[Path]) -> str:
    """SHA-256 (hex) over the files' bytes, one after the other; for one file that of `sha256sum`.

    Cached in this process by path, size and modification time.
    """
    ordered = sorted(files)
    if len(ordered) == 1:
        return _hash_file(ordered[0])
    digest = hashlib.sha256()
    for file in ordered:
        _feed(digest, file)
    return digest.hexdigest()


def hash_tensors(path: Path, prefixes: tuple[str, ...]) -> str:
    """sha256 (hex) over the names and bytes of a safetensors file's tensors whose names start with a prefix."""
    key = _cache_key(path, prefixes)
    if key not in _hashes:
        tensors = read_header(path).tensors
        digest = hashlib.sha256()
        for name in sorted(name for name in tensors if name.startswith(prefixes)):
            entry = tensors[name]
            digest.update(f"{name} {entry.dtype} {entry.shape}\n".encode())
            digest.update(read_data(path, entry))
        _hashes[key] = digest.hexdigest()
    return _hashes[key]


def _hash_file(path: Path) -> str:
    key = _cache_key(path, ())
    if key not in _hashes:
        digest = hashlib.sha256()
        _feed(digest, path)
        _hashes[key] = digest.hexdigest()
    return _hashes[key]


def _feed(digest: "hashlib._Hash", path: Path) -> None:
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK):
            digest.update(chunk)


def _cache_key(path: Path, prefixes: tuple[str, ...]) -> tuple[str, int, int, tuple[str, ...]]:
    status = path.stat()
    return str(path.resolve()), status.st_size, status.st_mtime_ns, prefixes


def _package_folder(source: str) -> Path:
    match = _PACKAGE_FOLDER.fullmatch(source)
    if match is None or ".." in match[2].split("/"):
        raise CheckpointError(f"{source}: expected package:<package>/<folder>")
    try:
        spec = importlib.util.find_spec(match[1])
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.submodule_search_locations is None:
        raise CheckpointError(f"{source}: no package {match[1]} is installed")
    folders = [Path(location) / match[2] for location in spec.submodule_search_locations]
    for folder in folders:
        if folder.is_dir():
            return folder
    raise CheckpointError(f"{source}: the package has no folder {folders[0] if folders else match[2]}")


def _shards(index: Path) -> tuple[Path, ...]:
    """The files that a sharded checkpoint's index names; they lie beside it."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: expected a weight_map, found none")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index}: names {name!r}, which isn't a .safetensors file beside it")
        if not (index.parent / name).is_file():
            raise CheckpointError(f"{index.parent / name}: missing, though {index.name} names it")
    return tuple(index.parent / name for name in names)


def _describe_weights(folder: Path, stem: str) -> str:
    if not folder.is_dir():
        return "no such folder"
    names = sorted(path.name for path in folder.iterdir())
    variants = sorted({name.removeprefix(f"{stem}.").split(".")[0] for name in names if name.endswith(".safetensors")})
    if variants:
        return f"only {', '.join(n for n in names if n.endswith('.safetensors'))} (a variant? set variant)"
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles:
        return f"only {', '.join(pickles)}: pickles can run code and are never loaded; convert them to safetensors"
    return "no weights"


def _refuse_lookalikes(path: Path, start: bytes) -> None:
    protocols = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
    # a header of 640 bytes begins like a pickle, too; but its JSON follows at once
    if start.startswith(b"PK\x03\x04") or (start[:2] in protocols and start[8:9] != b"{"):
        raise CheckpointError(f"{path}: a pickle in spite of its name; pickles can run code and are never loaded")
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path}: a Git LFS pointer, not the weights; fetch them with git lfs pull")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
