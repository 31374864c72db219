"""Three policies on the same conversations and the same fleet, one replica half as fast: nothing is computed.

python examples/simulate.py
"""

from __future__ import annotations

import json
import subprocess
import sys

COMMAND = """
simulate --workload sessions:rate=5,requests=300,turns=4 --model llama-3.1-8b --device L40S-48GB
    --replicas 4 --speeds 1,1,1,0.5 --compare policy=weigh,least_requests,round_robin --jobs 1 --json
"""


def main() -> None:
    command = [sys.executable, "-m", "weighbridge", *COMMAND.split()]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    for policy, run in json.loads(done.stdout)["compare"].items():
        ttft = run["ttft_ms"]
        print(
            f"{policy:>15}: first token {ttft['p50']:.0f} ms (p99 {ttft['p99']:.0f}), in time {run['good_share']:.1%}"
        )


if __name__ == "__main__":
    main()
