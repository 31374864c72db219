"""OpenVINO GenAI in process, in its own environment: a closed loop of greedy requests with fixed lengths.

`python openvino_run.py MODEL.gguf CONCURRENCY REQUESTS PROMPT OUTPUT` prints one JSON object.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time

import numpy as np
import openvino
import openvino_genai


class Running:
    """One request in flight: when it began, and when its first token was there."""

    def __init__(self, handle: openvino_genai.GenerationHandle) -> None:
        self.handle = handle
        self.began = time.perf_counter()
        self.first: float | None = None
        self.tokens = 0

    def read(self, now: float) -> None:
        while self.handle.can_read():
            for output in self.handle.read().values():
                self.tokens += len(output.generated_ids)
            self.first = self.first or now

    @property
    def finished(self) -> bool:
        return bool(self.handle.get_status() == openvino_genai.GenerationStatus.FINISHED)


def main(model: str, concurrency: int, requests: int, prompt: int, output: int) -> None:
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = 4  # GB
    scheduler.max_num_seqs = 256
    scheduler.max_num_batched_tokens = 2048
    scheduler.dynamic_split_fuse = True
    scheduler.enable_prefix_caching = False
    pipeline = openvino_genai.ContinuousBatchingPipeline(model, scheduler, "CPU")
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = output
    config.ignore_eos = True
    config.do_sample = False
    rng = random.Random(0)
    warm_up = max(2, concurrency)
    prompts = [[rng.randrange(1000, 15000) for _ in range(prompt)] for _ in range(warm_up + requests)]
    loop(pipeline, prompts[:warm_up], config, concurrency)
    started = time.perf_counter()
    done = loop(pipeline, prompts[warm_up:], config, concurrency)
    seconds = time.perf_counter() - started
    figures = {
        "output_tokens_per_s": sum(tokens for _, _, tokens in done) / seconds,
        "ttft_p50_ms": statistics.median(first for first, _, _ in done) * 1e3,
        "tpot_p50_ms": statistics.median((total - first) / (n - 1) for first, total, n in done if n > 1)
        * 1e3,
        "errors": requests - len(done),
        "short": sum(tokens < output for _, _, tokens in done),
    }
    print(json.dumps(figures))


def loop(pipeline, prompts, config, concurrency: int) -> list[tuple[float, float, int]]:  # type: ignore[no-untyped-def]
    """`concurrency` requests in flight until all are done: TTFT and total time in seconds, and tokens, of each."""
    waiting = list(enumerate(prompts))[::-1]
    running: list[Running] = []
    done = []
    while waiting or running:
        while waiting and len(running) < concurrency:
            index, ids = waiting.pop()
            tensor = openvino.Tensor(np.array([ids], dtype=np.int64))
            running.append(Running(pipeline.add_request(index, tensor, config)))
        pipeline.step()
        now = time.perf_counter()
        for one in running:
            one.read(now)
            if one.finished and one.first is not None:
                done.append((one.first - one.began, now - one.began, one.tokens))
        running = [one for one in running if not one.finished]
    return done


if __name__ == "__main__":
    main(sys.argv[1], *(int(value) for value in sys.argv[2:]))
