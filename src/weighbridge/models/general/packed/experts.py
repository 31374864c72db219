"""Our experts in the place of a model's own: packed once, in few bits where that is asked for, and run by our kernels.

Transformers keeps the matrices of a layer's experts one behind the other, and says by five words how they lie
(`use_experts_implementation`); 64 of its families do. What is between the two matrices of an expert stays theirs,
but for the usual gate, which our kernels compute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from weighbridge.models.compute.kernels.api import Kernels
from weighbridge.models.compute.layers import Mlp
from weighbridge.models.compute.linear import Linear
from weighbridge.models.experts.moe import LayerExperts, ListedExperts
from weighbridge.models.experts.moe_loader import arrange

#: What says how the matrices of experts lie.
_WORDS = ("has_gate", "has_bias", "is_transposed", "is_concatenated", "has_post_expert_norm")
#: What experts are asked with: [tokens, hidden], and [tokens, top k] of the chosen ones and their weights.
_ASKED = ("hidden_states", "top_k_index", "top_k_weights")
#: A gate is the usual one if it is so at all of these, among them values that some gates cut off.
_GATE_TRIED = torch.tensor([-40.0, -8.0, -7.0, -1.0, -0.1, 0.0, 0.3, 1.0, 2.0, 6.9, 7.5, 11.0, 40.0])

#: Matrix `first_of` or `down_proj` of an expert, by its number, as a linear layer of ours.
ExpertMatrix = Callable[[str, int], Linear]


class OwnExperts(torch.nn.Module):
    """The experts of a layer, called as transformers' blocks call theirs. `listed`: the same, one by one."""

    def __init__(
        self, experts: LayerExperts, listed: Sequence[OneExpert], hidden: int, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.experts, self.listed, self._hidden, self._dtype = experts, listed, hidden, dtype

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        rows = hidden_states.reshape(-1, self._hidden).to(self._dtype).contiguous()
        ids = top_k_index.reshape(len(rows), -1).to(torch.int32).contiguous()
        weights = top_k_weights.reshape(len(rows), -1).float().contiguous()
        return self.experts(rows, ids, weights).view(hidden_states.shape).to(hidden_states.dtype)


class OneExpert:
    """An expert with whatever is between its matrices or behind them."""

    def __init__(
        self,
        first: Linear,
        between: Callable[[torch.Tensor], torch.Tensor],
        down: Linear,
        behind: torch.nn.Module | None,
    ) -> None:
        self._first, self._between, self._down, self._behind = first, between, down, behind

    @property
    def nbytes(self) -> int:
        return self._first.nbytes + self._down.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        y = self._down(self._between(self._first(x)).to(x.dtype).contiguous())
        return y if self._behind is None else self._behind(y)

    def with_linears(self, made_of: Callable[[Linear], Linear]) -> OneExpert:
        """Return the same with other linear layers, each made of its own."""
        return OneExpert(made_of(self._first), self._between, made_of(self._down), self._behind)


class Choices:
    """Which experts each token of a text goes to, as one pass over it chose them: for other passes over the same text.

    Between experts that are nearly alike to a router, rounding chooses; two passes are alike only where it need not.
    """

    def __init__(self, model: Any) -> None:
        theirs, ours = find_experts(model), (one for one in model.modules() if isinstance(one, OwnExperts))
        self._layers = [*(module for _, module in theirs), *ours]
        self._chosen: dict[torch.nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note what is chosen while this is open, for one pass over the whole text."""

        def note(layer: torch.nn.Module, asked: tuple[torch.Tensor, ...]) -> None:
            self._chosen[layer] = asked[1], asked[2]

        with self._hooked(note):
            yield

    @contextmanager
    def kept(self, first_row: int, start: int, end: int) -> Iterator[None]:
        """Let the rows of a batch from `first_row` on, tokens [start, end) of the text, go where they went before."""

        def keep(layer: torch.nn.Module, asked: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            rows, parts = slice(first_row, first_row + end - start), []
            for chosen, own in zip(self._chosen[layer], asked[1:], strict=True):
                parts.append(own.clone())
                parts[-1][rows] = chosen[start:end]
            return asked[0], *parts

        with self._hooked(keep):
            yield

    @contextmanager
    def _hooked(self, hook: Callable[..., Any]) -> Iterator[None]:
        handles = [layer.register_forward_pre_hook(hook) for layer in self._layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def find_experts(model: Any) -> Iterator[tuple[str, torch.nn.Module]]:
    """Yield the layers of experts whose matrices lie as transformers says, by name."""
    for name, module in model.named_modules():
        if all(isinstance(getattr(module, word, None), bool) for word in _WORDS) and _is_whole(module):
            yield name, module


def own_experts(
    module: Any, matrix: ExpertMatrix, count: int, dtype: torch.dtype, kernels: Kernels
) -> OwnExperts:
    """Return the experts of `module`, packed one after the other."""
    names = (first_of(module), "down_proj")
    usual = module.has_gate and module.is_concatenated and not module.has_post_expert_norm
    usual = usual and _gates_as_usual(module)
    pairs = [[matrix(one, index) for one in names] for index in range(count)]
    for held in list(module._parameters):  # what is between the matrices may hold on to `module`
        delattr(module, held)
    between = module._apply_gate if module.has_gate else module.act_fn
    behind = module.post_expert_norm if module.has_post_expert_norm else None
    listed = [OneExpert(first, between, down, behind) for first, down in pairs]
    experts: LayerExperts = ListedExperts(listed)
    if usual:
        experts = arrange([Mlp(first, down, kernels) for first, down in pairs], dtype)
    return OwnExperts(experts, listed, pairs[0][0].in_features, dtype)


def first_of(module: Any) -> str:
    """Return the name of the first of an expert's two matrices."""
    return "gate_up_proj" if module.has_gate else "up_proj"


def _is_whole(module: Any) -> bool:
    """Whether a layer of experts is asked as usual, and has the parameters that its words name and no others."""
    names = [first_of(module), "down_proj"]
    if module.has_bias:
        names += [f"{name}_bias" for name in names]
    held = dict(module.named_parameters(recurse=False))
    first, down = (held.get(name) for name in names[:2])
    return (
        sorted(held) == sorted(names)
        and first is not None
        and down is not None
        and first.dim() == down.dim() == 3
    )


def shapes_of(module: Any) -> dict[str, tuple[int, int, int]]:
    """Return [experts, out, in] of both matrices of a layer of experts."""
    found = {}
    for name in (first_of(module), "down_proj"):
        count, rows, columns = getattr(module, name).shape
        found[name] = (count, columns, rows) if module.is_transposed else (count, rows, columns)
    return found


def matrix_of(module: Any, name: str, index: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return [out, in] and the bias of one matrix of an expert."""
    weight = getattr(module, name)[index].detach()
    bias = getattr(module, f"{name}_bias")[index].detach() if module.has_bias else None
    return weight.T.contiguous() if module.is_transposed else weight, bias


@torch.inference_mode()
def _gates_as_usual(module: Any) -> bool:
    """Whether what is between an expert's matrices is silu(gate) * up, at a range of numbers."""
    gate, up = (one.reshape(-1) for one in torch.meshgrid(_GATE_TRIED, _GATE_TRIED, indexing="ij"))
    size = module.down_proj.shape[1 if module.is_transposed else 2]
    columns = -(-len(gate) // size) * size
    gate, up = (one.repeat(-(-columns // len(gate)))[:columns].view(-1, size) for one in (gate, up))
    found = module._apply_gate(torch.cat([gate, up], dim=1))
    expected = torch.nn.functional.silu(gate) * up
    return found.shape == expected.shape and torch.allclose(found.float(), expected, rtol=1e-5, atol=1e-6)
