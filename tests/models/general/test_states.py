"""What layers carry from token to token: whose it is, and that what is computed again finds what was before it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weighbridge.models.compute.kernels.api import BatchLayout
from weighbridge.models.files.config import NO_STATE, StateShape, state_bytes
from weighbridge.models.general.states.carrying import CarriedStates, carry
from weighbridge.models.general.states.pool import StatePool

SUM = StateShape(0, recurrent=True, index=0, size=(1,), in_float32=True)
LAST = StateShape(0, recurrent=False, index=0, size=(1, 3), in_float32=False)
SLOTS = 3


class Running(torch.nn.Module):
    """Makes of each token the sum of all so far, and that of the last three; with a cache, as transformers' layers."""

    def forward(self, x: torch.Tensor, cache: CarriedStates | None = None) -> torch.Tensor:
        before = None if cache is None else cache.get_recurrent_state(0)
        total = x.cumsum(dim=1) if before is None else x.cumsum(dim=1) + before[:, None]
        recent = x.transpose(1, 2)
        if cache is not None:
            cache.update_recurrent_state(total[:, -1], 0)
            recent = cache.update_conv_state(recent, 0, conv_kernel_size=3)
        recent = torch.nn.functional.pad(recent, (2, 0)).unfold(2, 3, 1).sum(dim=3)[..., -x.shape[1] :]
        return torch.cat([total, recent.transpose(1, 2)], dim=-1)


def layer() -> torch.nn.Module:
    made = Running()
    carry([made])
    return made


def batch(pieces: list[tuple[int, int, int]]) -> BatchLayout:
    """`pieces`: of each sequence its slot, where it goes on, and how many tokens."""
    counts = [count for _, _, count in pieces]
    return BatchLayout(
        positions=np.concatenate([np.arange(start, start + count) for _, start, count in pieces]).astype(
            np.int32
        ),
        slots=np.zeros(sum(counts), np.int32),
        query_starts=np.cumsum([0, *counts]).astype(np.int32),
        context_lens=np.array([start + count for _, start, count in pieces], np.int32),
        block_tables=np.zeros((len(pieces), 1), np.int32),
        state_slots=np.array([slot for slot, _, _ in pieces], np.int32),
    )


def run(model: torch.nn.Module, pool: StatePool, layout: BatchLayout, tokens: list[float]) -> torch.Tensor:
    made: torch.Tensor = model(
        torch.tensor(tokens)[None, :, None], cache=CarriedStates(pool, pool.groups(layout))
    )
    pool.settle(layout)
    return made[0]


def expected(tokens: list[float], start: int) -> torch.Tensor:
    whole: torch.Tensor = Running()(torch.tensor(tokens)[None, :, None])
    return whole[0, start:]


@given(st.data())
def test_any_mix_of_chunks_gives_each_sequence_its_own(data: st.DataObject) -> None:
    """Sequences begin, go on by chunks or single tokens, run their last chunk again, give way and begin anew."""
    pool, model = StatePool([SUM, LAST], SLOTS, torch.float32), layer()
    texts: list[list[float]] = [[] for _ in range(SLOTS)]
    before = [0] * SLOTS  # where the last chunk of each began
    for _ in range(data.draw(st.integers(1, 8))):
        pieces, tokens, afterwards = [], [], []
        for slot in data.draw(st.permutations(range(SLOTS)))[: data.draw(st.integers(1, SLOTS))]:
            if texts[slot] and data.draw(st.integers(0, 5)) == 0:
                texts[slot] = []
            again = bool(texts[slot]) and data.draw(st.booleans())
            start = before[slot] if again else len(texts[slot])
            before[slot] = start
            count = data.draw(st.sampled_from((1, 1, 2, 5)))
            texts[slot][start:] = [float(data.draw(st.integers(-8, 8))) for _ in range(count)]
            pieces.append((slot, start, count))
            tokens += texts[slot][start:]
            afterwards.append(expected(texts[slot], start))
        made = run(model, pool, batch(pieces), tokens)
        torch.testing.assert_close(made, torch.cat(afterwards))


def test_a_pass_that_failed_is_run_again() -> None:
    pool, model = StatePool([SUM, LAST], SLOTS, torch.float32), layer()
    run(model, pool, batch([(0, 0, 2)]), [1.0, 2.0])
    for _ in range(2):  # nothing is settled
        model(torch.tensor([[[4.0]]]), cache=CarriedStates(pool, pool.groups(batch([(0, 2, 1)]))))
    made = run(model, pool, batch([(0, 2, 1), (1, 0, 1)]), [4.0, 9.0])
    assert made.tolist() == [[7.0, 7.0], [9.0, 9.0]]


def test_without_a_slot_nothing_is_found_and_nothing_left() -> None:
    pool, model = StatePool([SUM, LAST], 1, torch.float32), layer()
    run(model, pool, batch([(0, 0, 2)]), [1.0, 2.0])
    assert run(model, pool, batch([(NO_STATE, 40, 1)]), [5.0]).tolist() == [[5.0, 5.0]]
    assert run(model, pool, batch([(0, 2, 1)]), [3.0]).tolist() == [[6.0, 6.0]]


def test_a_sequence_whose_tokens_nobody_absorbed_is_an_error() -> None:
    pool = StatePool([SUM], 1, torch.float32)
    with pytest.raises(ValueError, match=r"states of \[-1\] tokens do not go on at positions \[3\]"):
        pool.groups(batch([(0, 3, 1)]))


def test_rows_behind_the_last_token_are_nobodys() -> None:
    pool, model = StatePool([SUM, LAST], 1, torch.float32), layer()
    layout = batch([(0, 0, 2)])
    made = model(torch.ones(1, 5, 1), cache=CarriedStates(pool, pool.groups(layout)))
    assert made[0].tolist() == [[1, 1], [2, 2], [0, 0], [0, 0], [0, 0]]


def test_what_states_take() -> None:
    shapes = [StateShape(0, True, 0, (4, 8), True), StateShape(1, False, 0, (6, 4), False)]
    assert state_bytes(shapes, 2) == 2 * (4 * 8 * 4 + 6 * 4 * 2)
    assert StatePool(shapes, 5, torch.bfloat16).nbytes == 5 * state_bytes(shapes, 2)
