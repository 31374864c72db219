"""Texts of several lengths as one batch, and from the states of a text's tokens to one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from weighbridge.models.readers.form import Pooling


@dataclass(frozen=True, slots=True)
class Padded:
    """Texts as token ids [texts, longest], how many tokens each has, and which of `ids` are theirs."""

    ids: torch.Tensor
    lengths: torch.Tensor
    real: torch.Tensor


def padded(texts: Sequence[Sequence[int]]) -> Padded:
    """Return texts of at least one token each, zeros behind the shorter ones."""
    lengths = torch.tensor([len(text) for text in texts])
    ids = torch.zeros(len(texts), int(lengths.max()), dtype=torch.long)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text)
    return Padded(ids, lengths, torch.arange(ids.shape[1])[None, :] < lengths[:, None])


def pool(states: torch.Tensor, lengths: torch.Tensor, how: Pooling) -> torch.Tensor:
    """One state a text [texts, hidden] of those of its tokens [texts, longest, hidden]; the rest is padding."""
    if how is Pooling.FIRST:
        return states[:, 0]
    if how is Pooling.LAST:
        return states[torch.arange(len(states)), lengths - 1]
    real = (torch.arange(states.shape[1])[None, :] < lengths[:, None])[:, :, None]
    if how is Pooling.MAX:
        return states.masked_fill(~real, float("-inf")).amax(1)
    return (states * real).sum(1) / lengths[:, None]
