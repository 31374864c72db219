"""Mixture of experts in the decoder: every family against its transformers twin, and what routing promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.models.test_decoder import logits_in_chunks
from tests.models.tiny_moe import MOE_FAMILIES, make_tiny_moe
from weighbridge.models.compute.decoder import Decoder
from weighbridge.models.experts.moe import ListedExperts, SparseMlp
from weighbridge.models.experts.moe_grouped import GroupedExperts
from weighbridge.models.experts.routing import Router, RoutingTrace, choose
from weighbridge.models.files.checkpoint import open_checkpoint
from weighbridge.models.loader import Quantize, load_decoder

transformers = pytest.importorskip("transformers", reason="the oracle is transformers")


@pytest.fixture(scope="module", params=MOE_FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_moe(request.param, tmp_path_factory.mktemp("tiny") / request.param)


def test_logits_equal_transformers(family: Path) -> None:
    oracle = transformers.AutoModelForCausalLM.from_pretrained(family, dtype=torch.float32).eval()
    decoder = load_decoder(open_checkpoint(family), torch.float32)
    tokens = np.random.default_rng(1).integers(3, 400, 120).tolist()
    with torch.inference_mode():
        expected = oracle(torch.tensor([tokens])).logits[0]
    for chunks in ([120], [1] * 20 + [100], [50, 1, 1, 37, 31]):
        torch.testing.assert_close(logits_in_chunks(decoder, tokens, chunks), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "scheme"), [("bfloat16", "none"), ("bfloat16", "int8"), ("float32", "int4")]
)
@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_grouped_experts_equal_listed_ones_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, dtype: str, scheme: str, tokens: int
) -> None:
    path = make_tiny_moe("qwen3-moe", tmp_path_factory.mktemp("tiny") / "moe", num_hidden_layers=1)
    decoder = load_decoder(open_checkpoint(path), getattr(torch, dtype), Quantize(scheme))
    mlp = decoder.layers[0].mlp
    assert isinstance(mlp, SparseMlp)
    if not isinstance(mlp.experts, GroupedExperts):
        pytest.skip("these weights are not multiplied by our kernels on this machine")
    torch.manual_seed(tokens)
    x = torch.randn(tokens, 64).to(decoder.dtype)
    ids, weights = mlp.router(x)
    expected = ListedExperts(mlp.experts.experts)(x, ids, weights)
    assert torch.equal(mlp.experts(x, ids, weights), expected)
    with pytest.raises(IndexError, match="expert 99"):
        mlp.experts(x, torch.full_like(ids, 99), weights)


@pytest.mark.parametrize("normalize", [True, False])
def test_routing_equals_softmax_and_top_k(normalize: bool) -> None:
    torch.manual_seed(0)
    logits = torch.randn(50, 12) * 3
    weights, ids = torch.topk(torch.softmax(logits, dim=-1), 4, dim=-1)
    if normalize:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    chosen, scores = choose(logits, 4, normalize)
    assert torch.equal(chosen.long(), ids)
    torch.testing.assert_close(scores, weights)


def test_neighbours_in_the_batch_change_nothing(tmp_path: Path) -> None:
    """Nothing is dropped for want of capacity: a token's result is its own."""
    decoder = load_decoder(open_checkpoint(make_tiny_moe("mixtral", tmp_path / "moe")), torch.bfloat16)
    mlp = decoder.layers[1].mlp
    x = torch.randn(64, 64).to(torch.bfloat16)
    x[1:] = x[0] + 0.01 * x[1:]  # nearly the same token again: all want the same experts
    together, alone = mlp(x), torch.cat([mlp(row[None]) for row in x])
    assert torch.nn.functional.cosine_similarity(together.float(), alone.float(), dim=1).min() > 0.999


class Replayed(Router):
    """A router that sends tokens where another one sent them, weighted by its own scores."""

    def __init__(self, router: Router, ids: torch.Tensor) -> None:
        super().__init__(router.weight, router.top_k, router.normalize)
        self.ids = ids
        self.scores = torch.empty(0)  # its own, of the last call

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.scores = self.logits(x)
        weights = torch.softmax(self.scores, dim=-1).gather(1, self.ids.long())
        return self.ids, weights / weights.sum(dim=-1, keepdim=True) if self.normalize else weights

    def agrees(self) -> torch.Tensor:
        """Whether each token would have gone to the same experts by its own scores."""
        own = choose(self.scores, self.top_k, self.normalize)[0]
        return (own.sort(dim=1).values == self.ids.sort(dim=1).values).all(dim=1)


def record(decoder: Decoder, tokens: list[int]) -> tuple[torch.Tensor, list[tuple[int, np.ndarray]]]:
    """The logits of all tokens, and where each sparse layer sent them."""
    trace = RoutingTrace()
    for layer in decoder.layers:
        if isinstance(layer.mlp, SparseMlp):
            layer.mlp.trace = trace
    return logits_in_chunks(decoder, tokens, [len(tokens)]), trace.take()


def replay(decoder: Decoder, routes: list[tuple[int, np.ndarray]], tokens: list[int]) -> torch.Tensor:
    """The logits when every sparse layer sends tokens along `routes`."""
    for layer, ids in routes:
        mlp = decoder.layers[layer].mlp
        assert isinstance(mlp, SparseMlp)
        mlp.router = Replayed(mlp.router, torch.from_numpy(ids))
    return logits_in_chunks(decoder, tokens, [len(tokens)])


def test_bfloat16_stays_close(family: Path) -> None:
    """Every token, along the routes of float32; and by its own scores nearly all would take them.

    Without the routes held, no bound is sound: tokens whose experts nearly tie go elsewhere, those behind attend
    to them, and which ones tie is the luck of a random model and of the order in which a CPU adds. transformers
    in bfloat16 keeps no closer: on AVX2 the worst fifth of its tokens begins at 0.963 for one family where ours
    has 0.999, and at 0.992 for another where ours has 0.977.
    """
    checkpoint = open_checkpoint(family)
    tokens = list(range(5, 69))
    exact, routes = record(load_decoder(checkpoint, torch.float32), tokens)
    decoder = load_decoder(checkpoint, torch.bfloat16)
    close = replay(decoder, routes, tokens)
    assert torch.nn.functional.cosine_similarity(exact, close, dim=1).min() > 0.99
    routers = [layer.mlp.router for layer in decoder.layers if isinstance(layer.mlp, SparseMlp)]
    same = torch.cat([router.agrees() for router in routers if isinstance(router, Replayed)])
    assert len(same) == len(routes) * len(tokens)
    assert same.float().mean() > 0.9
