"""Servers that were started as others start them: where they listen, and whether they answer."""

from __future__ import annotations

import re
import subprocess
import time
import urllib.error
import urllib.request


def listening(server: subprocess.Popen[str]) -> str:
    """The address that a server prints, once somebody answers there."""
    assert server.stdout is not None
    lines = []
    for line in server.stdout:
        lines.append(line)
        if found := re.search(r" on (http://[\d.]+:\d+)", line):
            while server.poll() is None and not answers(found[1]):
                time.sleep(0.05)
            return found[1]
    raise AssertionError("".join(lines))


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/v1/models", timeout=30) as answer:
            return answer.status == 200
    except urllib.error.URLError:
        return False
