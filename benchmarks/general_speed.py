"""A decode step of our own decoder, of the same model computed by transformers over our cache, and of its `generate`.

    python benchmarks/general_speed.py [--family qwen2] [--hidden 576] [--layers 12] [--quantize none] [--cpu]

The model is random. Steps are paired: each round times one after the other, and the median of the rounds' ratios is
what counts. `generate` has a cache of its own, and one text. `--cpu` takes the time of one thread on its processor
instead of the clock's, and the least of the rounds: what else runs on the machine counts little then.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.tiny import make_tiny

from weighbridge.models.any_model import open_model
from weighbridge.models.compute.causal_model import CausalModel
from weighbridge.models.compute.kernels.api import BatchLayout
from weighbridge.models.keeping import Quantize
from weighbridge.models.loader import choose_dtype

CONTEXT, BLOCK, STEPS = 128, 16, 16


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", default="qwen2")
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--quantize", default="none", choices=[scheme.value for scheme in Quantize])
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    if options.cpu:
        torch.set_num_threads(1)
    clock = time.thread_time if options.cpu else time.perf_counter
    dtype = choose_dtype(options.dtype)
    with tempfile.TemporaryDirectory() as place:
        directory = _save(options, Path(place))
        models = {
            impl: open_model(directory, impl).load(
                dtype, Quantize(options.quantize), max_model_len=512, report=None, expert_cache=None
            )
            for impl in ("native", "transformers")
        }
        alone = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()
        for batch in options.batches:
            steps = [_stepper(model, batch, clock) for model in models.values()]
            rounds = [[_seconds(step) for step in steps] for _ in range(options.rounds)]
            _tell(
                f"batch {batch}",
                [[min(column) for column in zip(*rounds, strict=True)]] if options.cpu else rounds,
            )
        generate = _generator(alone, clock)
        step = _stepper(models["transformers"], 1, clock)
        _tell(
            "beside generate, 1",
            [[_seconds(generate) / STEPS, _seconds(step)] for _ in range(options.rounds)],
        )


def _save(options: argparse.Namespace, directory: Path) -> Path:
    return make_tiny(
        options.family,
        directory,
        hidden_size=options.hidden,
        intermediate_size=options.hidden * 8 // 3 // 32 * 32,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 64,
        num_key_value_heads=max(options.hidden // 192, 1),
        initializer_range=0.02,
    )


def _stepper(model: CausalModel, batch: int, clock: Callable[[], float]) -> Callable[[], float]:
    """Return a function that runs `STEPS` decodes of `batch` texts and returns seconds for one."""
    blocks = -(-(CONTEXT + STEPS) // BLOCK)
    cache = model.allocate_kv(batch * blocks, BLOCK)
    tables = np.arange(batch * blocks, dtype=np.int32).reshape(batch, blocks)
    rows, ids = np.arange(batch, dtype=np.int32), np.full(batch, 7, np.int32)

    def run() -> float:
        began = clock()
        for position in range(CONTEXT, CONTEXT + STEPS):
            slots = tables[:, position // BLOCK] * BLOCK + position % BLOCK
            layout = BatchLayout(
                positions=np.full(batch, position, np.int32),
                slots=slots.astype(np.int32),
                query_starts=np.arange(batch + 1, dtype=np.int32),
                context_lens=np.full(batch, position + 1, np.int32),
                block_tables=tables,
            )
            model.forward(ids, layout, cache, rows)
        return (clock() - began) / STEPS

    return run


def _generator(model: Any, clock: Callable[[], float]) -> Callable[[], float]:
    prompt = torch.full((1, CONTEXT), 7)

    def run() -> float:
        """Seconds of `STEPS` tokens behind the first one."""
        times = []
        for count in (1, STEPS + 1):
            began = clock()
            with torch.inference_mode():
                model.generate(
                    prompt,
                    attention_mask=torch.ones_like(prompt),
                    do_sample=False,
                    min_new_tokens=count,
                    max_new_tokens=count,
                    pad_token_id=0,
                )
            times.append(clock() - began)
        return times[1] - times[0]

    return run


def _seconds(run: Callable[[], float]) -> float:
    run()
    return min(run() for _ in range(2))


def _tell(what: str, rounds: list[list[float]]) -> None:
    first, second = (1000 * statistics.median(column) for column in zip(*rounds, strict=True))
    ratio = statistics.median(b / a for a, b in rounds)
    print(f"{what}: {first:.2f} and {second:.2f} ms, ratio {ratio:.2f}", flush=True)


if __name__ == "__main__":
    main()
