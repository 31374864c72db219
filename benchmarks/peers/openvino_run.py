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
    prompts = [[rng.randrange(1000, 15000) for _ in range(prompt)] for _ in range(requests + 1)]
    loop(pipeline, prompts[:1], config, 1)
    started = time.perf_counter()
    first = loop(pipeline, prompts[1:], config, concurrency)
    seconds = time.perf_counter() - started
    print(
        json.dumps(
            {
                "output_tokens_per_s": requests * output / seconds,
                "ttft_p50_ms": statistics.median(first) * 1e3,
            }
        )
    )


def loop(pipeline, prompts, config, concurrency: int) -> list[float]:  # type: ignore[no-untyped-def]
    """`concurrency` requests in flight until all are done; returns each one's time to first token."""
    waiting, running, first = list(enumerate(prompts)), {}, []
    while waiting or running:
        while waiting and len(running) < concurrency:
            index, ids = waiting.pop(0)
            tensor = openvino.Tensor(np.array([ids], dtype=np.int64))
            running[index] = [pipeline.add_request(index, tensor, config), time.perf_counter(), False]
        pipeline.step()
        for index, entry in list(running.items()):
            handle, began, seen = entry
            if handle.can_read():
                handle.read()
                if not seen:
                    first.append(time.perf_counter() - began)
                    entry[2] = True
            if handle.get_status() == openvino_genai.GenerationStatus.FINISHED:
                del running[index]
    return first


if __name__ == "__main__":
    main(sys.argv[1], *(int(value) for value in sys.argv[2:]))
