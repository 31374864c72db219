"""What /proc and /metrics tell of processes: CPU time, memory, files, and what is held. Linux only."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.adversary.site import Server

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")

#: Gauges of both servers that are above zero only while something is asked of them.
HELD = (
    "weighbridge_queued_requests",
    "weighbridge_running_requests",
    "weighbridge_queued_tokens",
    "weighbridge_running_tokens",
    "weighbridge_kv_blocks_used",
    "weighbridge_gateway_queued_requests",
    "weighbridge_gateway_queued_tokens",
    "weighbridge_replica_requests",
    "weighbridge_replica_outstanding_tokens",
    "weighbridge_replica_uncomputed_tokens",
    "weighbridge_replica_kv_tokens",
)
_STALLS = "weighbridge_loop_stall_seconds"


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, and of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS


def waited_seconds(pid: int) -> float:
    """How long its threads have been ready to run, without a core."""
    waited = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # it may have ended
            waited += int((thread / "schedstat").read_text().split()[1])
    return waited / 1e9


@dataclass(frozen=True, slots=True)
class Machine:
    """CPU seconds of the whole machine: those it was busy, those it was not, and those that another one took."""

    busy_s: float = 0.0
    idle_s: float = 0.0
    stolen_s: float = 0.0

    @classmethod
    def now(cls) -> Machine:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        user, nice, system, idle, waiting, irq, soft, stolen = (int(one) / _TICKS for one in fields)
        return cls(user + nice + system + irq + soft, idle + waiting, stolen)

    def __add__(self, other: Machine) -> Machine:
        return Machine(self.busy_s + other.busy_s, self.idle_s + other.idle_s, self.stolen_s + other.stolen_s)

    def __sub__(self, other: Machine) -> Machine:
        return Machine(self.busy_s - other.busy_s, self.idle_s - other.idle_s, self.stolen_s - other.stolen_s)


def rss_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE / (1 << 20)


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all are not above."""
    ordered = sorted(values)
    return ordered[max(-int(-share * len(ordered) // 1) - 1, 0)]


class MemoryWatch:
    """Reads the MiB of processes, by name, each second in a thread until it is closed."""

    def __init__(self, pids: Mapping[str, int], every_s: float = 1.0) -> None:
        self._pids = dict(pids)
        self._every_s = every_s
        self._closed = threading.Event()
        self.readings: dict[str, list[float]] = {name: [] for name in pids}
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._closed.wait(self._every_s):
            for name, pid in self._pids.items():
                with suppress(OSError, IndexError):  # it may have ended
                    self.readings[name].append(rss_mib(pid))

    def close(self) -> None:
        self._closed.set()
        self._thread.join()


def grown_mib(values: Sequence[float]) -> float:
    """How much more memory a process has in the last tenth of the time than just after its middle."""
    tenth = max(len(values) // 10, 1)
    middle = values[len(values) // 2 :][:tenth]
    return sum(values[-tenth:]) / tenth - sum(middle) / len(middle)


def held(servers: Sequence[Server]) -> dict[str, float]:
    """Whatever is not at zero at these servers, by gauge and label."""
    found: dict[str, float] = {}
    for server in servers:
        for family in text_string_to_metric_families(server.get("/metrics").body.decode()):
            if family.name in HELD:
                for sample in family.samples:
                    if sample.value != 0.0:
                        found[f"{server.name} {sample.name} {sample.labels}"] = sample.value
    return found


def wait_until_idle(servers: Sequence[Server], patience: float) -> dict[str, float]:
    """What is still held after `patience` seconds; empty as soon as nothing is."""
    deadline = time.monotonic() + patience
    while (left := held(servers)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


def stalls(server: Server) -> dict[str, dict[float, int]]:
    """By thread: how many stalls were no longer than each bound, in seconds."""
    found: dict[str, dict[float, int]] = {}
    for family in text_string_to_metric_families(server.get("/metrics").body.decode()):
        if family.name == _STALLS:
            for sample in family.samples:
                if sample.name.endswith("_bucket"):
                    by_bound = found.setdefault(sample.labels["thread"], {})
                    by_bound[float(sample.labels["le"])] = int(sample.value)
    return found


def longest_stall(by_bound: Mapping[float, int]) -> float:
    """The bound that no stall was above."""
    total = by_bound[float("inf")]
    return min(bound for bound, count in by_bound.items() if count == total)
