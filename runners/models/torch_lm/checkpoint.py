"""The weights file: safetensors, with the vocabulary and the shape in its metadata."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from attrs import asdict, field, frozen
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialised

from runners.errors import LoadFailed, WeightsCorrupt
from runners.models.torch_lm.model import CharacterModel, Shape
from runners.models.torch_lm.vocabulary import Vocabulary


def _one_token_for_each(checkpoint: Checkpoint, _: object, value: Vocabulary) -> None:
    wanted = checkpoint.model.shape.vocabulary
    if len(value) != wanted:
        raise ValueError(f"the vocabulary must have {wanted} characters, got {len(value)}")


@frozen
class Checkpoint:
    """A model and its vocabulary."""

    model: CharacterModel
    vocabulary: Vocabulary = field(validator=_one_token_for_each)


def save(checkpoint: Checkpoint, path: Path) -> str:
    """Write the file; returns its SHA-256."""
    description = {"shape": asdict(checkpoint.model.shape), "vocabulary": checkpoint.vocabulary.characters}
    metadata = {"model": json.dumps(description)}  # under one key: safetensors writes several in random order
    path.write_bytes(serialised(checkpoint.model.state_dict(), metadata))
    return digest(path)


def load(path: Path, sha256: str | None) -> Checkpoint:
    """Map the file into memory as a model, without copying it.

    Raises:
        LoadFailed: there is no such file, or it cannot be read.
        WeightsCorrupt: the file does not match its checksum, is cut short, or is not of this model.
    """
    if not path.is_file():
        raise LoadFailed(f"there is no weights file {str(path)!r}")
    try:
        if sha256 is not None and (found := digest(path)) != sha256:
            raise WeightsCorrupt(f"weights file {str(path)!r} must have the sha256 {sha256}, got {found}")
        return _mapped(path)
    except OSError as error:
        raise LoadFailed(f"weights file {str(path)!r} cannot be read: {error}") from error
    except (SafetensorError, LookupError, TypeError, ValueError, RuntimeError) as error:
        line = " ".join(str(error).split())
        raise WeightsCorrupt(f"weights file {str(path)!r} is not one of this model: {line}") from error


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _mapped(path: Path) -> Checkpoint:
    opened: Any = safe_open(path, framework="pt")  # its stubs give no type
    with opened as file:
        description = json.loads(file.metadata()["model"])
        model = CharacterModel(Shape(**description["shape"]))
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
    model.load_state_dict(weights, assign=True)
    model.requires_grad_(requires_grad=False)
    return Checkpoint(model.float(), Vocabulary(description["vocabulary"]))
