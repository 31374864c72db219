"""From the states of a text's tokens to one."""

from __future__ import annotations

import torch

from weighbridge.models.readers.form import Pooling


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
