"""llama-server through xllamacpp, in its own environment:

    python llama_server.py MODEL.gguf PORT SLOTS [THREADS [TOKENS]]

TOKENS: the context of each slot.
"""

from __future__ import annotations

import sys
import time

import xllamacpp


def main(model: str, port: int, slots: int, threads: int = 2, context: int = 1024) -> None:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = model
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = port
    parameters.n_parallel = slots
    parameters.n_ctx = slots * context
    parameters.use_jinja = True  # the model's own template, which tools need
    parameters.cpuparams.n_threads = threads
    parameters.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(parameters)
    print(server.listening_address, flush=True)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
