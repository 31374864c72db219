"""A gateway over two simulated replicas, one of them four times slower: who gets a request, and why.

python examples/fleet.py
"""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from servers import SIMULATED, chat, running

FLEET = """
models:
  small:
    replicas:
      - {{name: quick, url: "{}", dialect: weighbridge}}
      - {{name: slow, url: "{}", dialect: weighbridge}}
"""


def main() -> None:
    with running(SIMULATED, f"{SIMULATED} --time-scale 4") as urls, tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "weighbridge.yaml")
        config.write_text(FLEET.format(*urls))
        with running(f"serve --config {config} --port 0") as (gateway,), ThreadPoolExecutor() as pool:
            questions = [f"Question {number}" for number in range(12)]
            for _, ticket in pool.map(lambda question: chat(gateway, "small", question), questions):
                print(f"{ticket['replica']}: {ticket['e2e_ms']:.0f} ms; {ticket['decisions'][-1]}")


if __name__ == "__main__":
    main()
