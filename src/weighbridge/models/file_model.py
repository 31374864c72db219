"""What a checkpoint has of each matrix, without reading any: what decides how it will be kept."""

from __future__ import annotations

from weighbridge.errors import BadInput
from weighbridge.models.files.checkpoint import Checkpoint
from weighbridge.models.files.tensors import needed
from weighbridge.models.keeping import FileMatrix, FileModel


def matrix_of(checkpoint: Checkpoint, name: str) -> FileMatrix:
    """Return what a file has of a matrix. Raises BadInput where it has none."""
    blocks = checkpoint.blocks(name)
    if blocks is not None:
        return FileMatrix(name, blocks.rows, blocks.columns, blocks.kind, blocks.label)
    stored = checkpoint.stored(name)
    if stored is None:
        raise BadInput(f"{checkpoint.path} has no tensor {checkpoint.own_name(name)!r}: it is incomplete")
    rows, columns = stored.shape if len(stored.shape) == 2 else (1, *stored.shape)
    return FileMatrix(name, rows, columns)


def file_model(checkpoint: Checkpoint) -> FileModel:
    """Return all matrices of a checkpoint."""
    names = [need.name for need in needed(checkpoint.config) if len(need.shape) == 2]
    return FileModel(checkpoint.config, {name: matrix_of(checkpoint, name) for name in names})
