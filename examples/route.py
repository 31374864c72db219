"""A route over an edge and a cloud, both simulated: what is labelled `patient` never leaves.

python examples/route.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from servers import SIMULATED, chat, running

ROUTES = """
models:
  small: {{replicas: [{{url: "{}", dialect: weighbridge}}]}}
  big: {{replicas: [{{url: "{}", dialect: weighbridge}}]}}
routes:
  auto:
    edge: {{model: small}}
    cloud: {{model: big}}
    rules: [{{name: health, labels: [patient], residency: never_leaves}}]
"""


def main() -> None:
    big = SIMULATED.replace("small", "big")
    with running(SIMULATED, big) as urls, tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "weighbridge.yaml")
        config.write_text(ROUTES.format(*urls))
        with running(f"serve --config {config} --port 0") as (gateway,):
            for labels in ([], ["patient"]):
                wishes = {"labels": labels, "placement": "prefer_cloud"}
                _, ticket = chat(gateway, "auto", "What does this mean?", wishes)
                print(f"{labels}: {ticket['placement']}")
                print(*(f"    {decision}" for decision in ticket["decisions"]), sep="\n")


if __name__ == "__main__":
    main()
