"""Which of these devices hold a model, and for how many conversations at once?

python examples/plan.py [MODEL]
"""

from __future__ import annotations

import json
import subprocess
import sys

DEVICES = ("RTX-4090-24GB", "L40S-48GB", "H100-80GB")


def main(model: str = "qwen3-8b") -> None:
    for device in DEVICES:
        command = [sys.executable, "-m", "weighbridge", "plan", model, "--device", device, "--json"]
        done = subprocess.run([*command, "--max-model-len", "16384"], capture_output=True, text=True)
        if done.returncode:  # 2: something in the command is wrong
            raise SystemExit(done.stderr)
        plan = json.loads(done.stdout)
        weights, cache = plan["weights_gib"], plan["kv_available_gib"]
        if plan["fits"]:
            print(
                f"{device}: weights {weights:.1f} GiB, cache {cache:.1f} GiB, {plan['max_concurrency']:.1f} at once"
            )
        else:
            print(f"{device}: {plan['problem']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
