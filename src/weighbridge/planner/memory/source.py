"""The MODEL argument: a config.json, a directory, a GGUF or safetensors file, or a catalogue name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from weighbridge.errors import BadInput
from weighbridge.models.files.gguf_format import read_gguf
from weighbridge.models.files.hf_config import read_json
from weighbridge.planner.memory.file_weights import gguf_weights, safetensors_weights
from weighbridge.planner.memory.memory import PlannedModel
from weighbridge.planner.model import catalogue
from weighbridge.planner.model.config_reader import read_architecture
from weighbridge.planner.model.gguf_fields import config_fields


def open_model(name: str) -> PlannedModel:
    """Open the model called `name` or stored at that path. Raises BadInput saying what MODEL may be."""
    path = Path(name).expanduser()
    if path.is_dir():
        return _directory(path)
    if path.is_file():
        if path.suffix == ".gguf":
            return _gguf(path)
        if path.suffix == ".safetensors":
            return _directory(path.parent, [path])
        if path.suffix == ".json":
            return _config(read_json(path), path.parent.name or path.stem, str(path))
        raise BadInput(f"{path} is neither a config.json, a .gguf nor a .safetensors file")
    found = catalogue.lookup(name)
    if found is None:
        near = ", ".join(catalogue.near(name))
        hint = f" (near: {near})" if near else ""
        raise BadInput(
            f"{name!r} is neither a file nor a directory nor a model of the catalogue{hint}; "
            "see `weighbridge plan --list-models`, or give its config.json",
            param="model",
        )
    return _config(found[1], found[0], "catalogue")


def _config(fields: dict[str, Any], name: str, source: str) -> PlannedModel:
    fields, noted = catalogue.completed(fields)
    return PlannedModel(name, read_architecture(fields, noted), source=source)


def _directory(path: Path, files: list[Path] | None = None) -> PlannedModel:
    if not (path / "config.json").is_file():
        found = sorted(path.glob("*.gguf"))
        if len(found) == 1:
            return _gguf(found[0])
        raise BadInput(f"{path} has no config.json; give a Hugging Face model directory or a .gguf file")
    model = _config(read_json(path / "config.json"), path.name, str(path))
    shards = files or sorted(path.glob("*.safetensors"))
    if not shards:
        return model
    architecture = model.architecture
    return PlannedModel(model.name, architecture, safetensors_weights(shards, architecture), str(path))


def _gguf(path: Path) -> PlannedModel:
    contents = read_gguf(path)
    architecture = read_architecture(config_fields(contents))
    return PlannedModel(path.stem, architecture, gguf_weights(contents, architecture), str(path))
