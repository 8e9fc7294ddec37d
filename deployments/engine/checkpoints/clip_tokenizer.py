"""CLIP's tokenizer: of a checkpoint's folder, or the published one, whose merges come with the project.

CLIP's vocabulary follows from its merges: the bytes, the bytes that end a word, the merges in order, start and end.
"""

from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from deployments.engine.checkpoints.configs import read_tokenizer
from deployments.engine.errors import CheckpointError
from deployments.engine.families.family import PUBLISHED

_CONFIG = "tokenizer_config.json"
_MERGES = PUBLISHED / "clip" / "merges.txt"
_START, _END = "<|startoftext|>", "<|endoftext|>"


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer of a folder. Raises CheckpointError, naming the file, if it isn't CLIP's, or can't be read."""
    config = read_tokenizer(folder / _CONFIG)
    if folder.is_relative_to(PUBLISHED):
        merges = [tuple(line.split()) for line in _MERGES.read_text(encoding="utf-8").splitlines()[1:]]
        letters = sorted(ByteLevel.alphabet())
        tokens = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges), _START, _END]
        return CLIPTokenizer({token: number for number, token in enumerate(tokens)}, merges, **config)
    if not any((folder / name).is_file() for name in ("vocab.json", "tokenizer.json")):
        raise CheckpointError(f"{folder}: expected vocab.json and merges.txt, or tokenizer.json")
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{folder}: not a tokenizer that can be read: {error}") from error


def tokenizer_files(folder: Path) -> list[Path]:
    """The files that a folder's tokenizer is made of, in order."""
    own = sorted(path for path in folder.glob("*") if path.is_file())
    return [*own, _MERGES] if folder.is_relative_to(PUBLISHED) else own
