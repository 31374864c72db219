"""What several commands about experts are given: files, and the GPUs that share the experts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from weighbridge.errors import BadInput
from weighbridge.knobs import knob
from weighbridge.models.files.hf_config import read_json
from weighbridge.planner.experts.layout import count_parameters
from weighbridge.planner.experts.placement import Devices
from weighbridge.planner.experts.report import Loads, parse_loads

ConfigFile = Annotated[Path, typer.Argument(help="A config.json, or a directory that holds one.")]
Gpus = Annotated[int, typer.Option(help="Devices that share the experts.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotSettings:
    """How the slots for experts are spread."""

    replicas: int | None = knob(None, "Expert slots in all; none: one per expert, filled up to the GPUs.")
    nodes: int = knob(1, "Machines the GPUs are in.")
    groups: int = knob(1, "Groups of experts that are routed together.")

    def devices(self, gpus: int, experts: int) -> Devices:
        """The devices that hold `experts` experts of a layer."""
        slots = self.replicas if self.replicas is not None else -(-experts // max(gpus, 1)) * gpus
        return Devices(gpus, slots, self.nodes, self.groups)


def read_config(path: Path) -> dict[str, Any]:
    """The config.json at a path or in a directory."""
    return read_json(path / "config.json" if path.is_dir() else path)


def parameters_of(config: Path) -> dict[str, int]:
    """How many parameters a mixture has, in all and for one token."""
    counted = count_parameters(read_config(config))
    return {
        "total": counted.total,
        "active": counted.active,
        "resident": counted.resident,
        "routed_experts": counted.routed,
        "one_expert": counted.expert,
        "sparse_layers": counted.sparse_layers,
        "experts": counted.experts,
        "top_k": counted.top_k,
    }


def read_loads(path: Path) -> Loads:
    """Measured tokens per expert. Raises BadInput for a file that cannot be read."""
    return parse_loads(read_text(path, "--loads"), str(path))


def read_text(path: Path, flag: str) -> str:
    """The text of the file that an option names. Raises BadInput."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{flag} {path} cannot be read: {error}", param=flag.lstrip("-")) from error
