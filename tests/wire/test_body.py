"""Bodies are read by several threads at once, from the first one on."""

from __future__ import annotations

import subprocess
import sys

AT_ONCE = """
from __future__ import annotations
import sys, threading
import msgspec
from weighbridge.wire.body import decode

sys.setswitchinterval(1e-6)
for number in range(100):
    class Inner(msgspec.Struct):
        field: int | None = None
        other: list[str] | None = None

    class Kind(msgspec.Struct):
        part: Inner | None = None
        parts: list[Inner] | None = None
        many: dict[str, Inner] | None = None

    ready, found = threading.Barrier(4), []

    def read() -> None:
        ready.wait()
        found.append(decode(b'{"part": {"field": 1}}', Kind))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.part.field for one in found] == [1] * 4
"""


def test_a_type_that_several_threads_meet_at_once_crashes_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", AT_ONCE], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
