"""A mixture of experts in numbers: total and active parameters, what must be resident, what moves.

Counted from the planner's table of tensors, embeddings included, multi-token-prediction layers not. Active: what one
token runs through, with the embedding table and the output matrix counted whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from weighbridge.errors import BadInput
from weighbridge.planner.model.architecture import Architecture, ExpertBlock
from weighbridge.planner.model.config_reader import read_architecture
from weighbridge.planner.model.tensors import EXPERT_BIAS, Kind, all_tensors


@dataclass(frozen=True, slots=True)
class Parameters:
    """The parameters of a mixture of experts by what happens to them when it runs, as counts of elements."""

    always: int  # what every token needs: everything but routed experts and encoders
    encoders: int  # for pictures and sound
    expert: int  # one expert of one layer
    experts: int  # of a layer
    top_k: int
    sparse: tuple[int, ...]  # the layers that have experts

    @property
    def sparse_layers(self) -> int:
        return len(self.sparse)

    @property
    def routed(self) -> int:
        """All routed experts of all layers."""
        return self.sparse_layers * self.experts * self.expert

    @property
    def resident(self) -> int:
        """What has to be in memory whatever a token chooses."""
        return self.always + self.encoders

    @property
    def total(self) -> int:
        return self.resident + self.routed

    @property
    def active(self) -> int:
        """What one token computes with."""
        return self.always + self.sparse_layers * self.top_k * self.expert


def count_parameters(config: dict[str, Any]) -> Parameters:
    """Count the parameters of the mixture of experts that `config`, a parsed config.json, describes.

    Raises BadInput for a dense model or a missing field, UnsupportedModel for a mixture that is not known.
    """
    return mixture_parameters(read_architecture(config))


def mixture_parameters(architecture: Architecture) -> Parameters:
    """Count the parameters of an architecture, by the same table as a plan. Raises BadInput for a dense model."""
    sparse = tuple(
        index
        for index, layer in enumerate(architecture.layers)
        if isinstance(layer.feed_forward, ExpertBlock)
    )
    if not sparse:
        raise BadInput(f"config.json names no experts: {architecture.family!r} is a dense model")
    block = architecture.layers[sparse[0]].feed_forward
    assert isinstance(block, ExpertBlock)
    routed = always = encoders = 0
    for tensor in all_tensors(architecture):
        if tensor.kind is Kind.EXPERT or tensor.name == EXPERT_BIAS:
            routed += tensor.elements
        elif tensor.kind is Kind.TOWER:
            encoders += tensor.elements
        else:
            always += tensor.elements
    return Parameters(
        always=always,
        encoders=encoders,
        expert=routed // (len(sparse) * block.count),
        experts=block.count,
        top_k=block.active,
        sparse=sparse,
    )


@dataclass(frozen=True, slots=True)
class Replacement:
    """What moving experts gains and costs. `pays_after_steps` is None when the new placement is not faster."""

    gain_per_step: float  # seconds
    moving: float  # seconds, all GPUs at once
    pays_after_steps: float | None


def replacement(
    expert_seconds: float,
    balancedness_before: float,
    balancedness_after: float,
    max_moved_bytes: float,
    bytes_per_second: float,
) -> Replacement:
    """Weigh a re-placement. The slowest GPU sets the step: experts take `expert_seconds` / balancedness.

    expert_seconds: of the experts in one step, if all GPUs were equally loaded.
    max_moved_bytes: what the GPU that fetches most has to fetch.
    """
    gain = expert_seconds * (1.0 / balancedness_before - 1.0 / balancedness_after)
    moving = max_moved_bytes / bytes_per_second
    return Replacement(gain, moving, moving / gain if gain > 0.0 else None)
