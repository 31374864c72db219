"""The device catalogue: memory, bandwidth, arithmetic, interconnect and list price.

Sources: vendors' data sheets (dense figures, no sparsity) for bandwidth and FLOP/s; `memory_gib` is what the
driver shows to a process, as engines print it ("Free memory on device (a/b GiB)"), a little less than the
label. Prices per device-hour come from `device_prices`, with provider and day, where a dated list has the device.
Those in the table below are estimates, used where none has; devices that one buys rather than rents are given their
price over three years of use plus power at 0.15 USD/kWh. Every plan says which it is, and `--price` overrides it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from difflib import get_close_matches

from weighbridge.cost.device_prices import LIST_PRICES
from weighbridge.errors import BadInput

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator or CPU socket. TFLOP/s are dense; 0 where the device has no such unit.

    `link_gbs`: GB/s that one device sends to its neighbours in the box (one direction).
    """

    name: str
    kind: str  # "datacenter", "consumer", "apple" or "cpu"
    vendor: str
    memory_gib: float
    bandwidth_gbs: float
    bf16_tflops: float
    fp8_tflops: float
    int8_tops: float
    fp4_tflops: float
    link_gbs: float
    usd_per_hour: float
    architecture: str
    rentable: bool = True
    price_from: str = ""  # provider and day of a public list price; empty: an estimate

    @property
    def price_note(self) -> str:
        """Where `usd_per_hour` comes from, in words."""
        if self.price_from:
            return f"list price of {self.price_from}"
        return "an estimate, no dated list price: check it and give --price"

    def tflops(self, weight_bits: float) -> float:
        """TFLOP/s of matrix products on weights of this many bits, where activations may follow.

        Weights of 5 bits and fewer without fp4 units are multiplied in 16 bits after unpacking.
        """
        if weight_bits <= 5:
            return self.fp4_tflops or self.bf16_tflops
        if weight_bits <= 9:
            return self.fp8_tflops or self.int8_tops or self.bf16_tflops
        return self.bf16_tflops


def _row(
    name: str, kind: str, vendor: str, numbers: tuple[float, ...], architecture: str, *, rentable: bool = True
) -> Device:
    memory, bandwidth, bf16, fp8, int8, fp4, link, price = numbers
    price_from = ""
    if name in LIST_PRICES:
        listed = LIST_PRICES[name]
        price, price_from = listed.usd_per_hour, f"{listed.provider}, {listed.read_on}"
    return Device(
        name,
        kind,
        vendor,
        memory,
        bandwidth,
        bf16,
        fp8,
        int8,
        fp4,
        link,
        price,
        architecture,
        rentable,
        price_from,
    )


# memory GiB, GB/s, bf16, fp8, int8, fp4 TFLOP/s, link GB/s, estimated USD per hour (0: a list price is used)
_CATALOGUE = (
    _row("V100-16GB", "datacenter", "nvidia", (15.77, 900, 112, 0, 0, 0, 150, 0), "volta"),
    _row("V100-32GB", "datacenter", "nvidia", (31.74, 900, 112, 0, 0, 0, 150, 0.85), "volta"),
    _row("T4-16GB", "datacenter", "nvidia", (14.58, 320, 65, 0, 130, 0, 16, 0.53), "turing"),
    _row("A10-24GB", "datacenter", "nvidia", (22.06, 600, 125, 0, 250, 0, 32, 0), "ampere"),
    _row("A10G-24GB", "datacenter", "nvidia", (22.06, 600, 70, 0, 140, 0, 32, 1.01), "ampere"),
    _row("A30-24GB", "datacenter", "nvidia", (23.50, 933, 165, 0, 330, 0, 100, 0.80), "ampere"),
    _row("A40-48GB", "datacenter", "nvidia", (44.34, 696, 150, 0, 299, 0, 56, 0), "ampere"),
    _row("RTX-A6000-48GB", "datacenter", "nvidia", (47.54, 768, 155, 0, 310, 0, 56, 0), "ampere"),
    _row("A100-40GB", "datacenter", "nvidia", (39.39, 1555, 312, 0, 624, 0, 300, 0), "ampere"),
    _row("A100-80GB", "datacenter", "nvidia", (79.25, 2039, 312, 0, 624, 0, 300, 0), "ampere"),
    _row("L4-24GB", "datacenter", "nvidia", (22.03, 300, 121, 242, 242, 0, 32, 0.71), "ada"),
    _row("L40-48GB", "datacenter", "nvidia", (44.42, 864, 181, 362, 362, 0, 32, 0.99), "ada"),
    _row("L40S-48GB", "datacenter", "nvidia", (44.42, 864, 362, 733, 733, 0, 32, 0), "ada"),
    _row("RTX-6000-Ada-48GB", "datacenter", "nvidia", (47.50, 960, 182, 364, 364, 0, 32, 0.77), "ada"),
    _row("H20-96GB", "datacenter", "nvidia", (95.22, 4000, 148, 296, 296, 0, 450, 1.60), "hopper"),
    _row("H100-PCIe-80GB", "datacenter", "nvidia", (79.11, 2000, 756, 1513, 1513, 0, 300, 0), "hopper"),
    _row("H100-80GB", "datacenter", "nvidia", (79.18, 3350, 989, 1979, 1979, 0, 450, 0), "hopper"),
    _row("H100-NVL-94GB", "datacenter", "nvidia", (93.10, 3900, 835, 1671, 1671, 0, 300, 0), "hopper"),
    _row("GH200-96GB", "datacenter", "nvidia", (94.50, 4000, 989, 1979, 1979, 0, 450, 0), "hopper"),
    _row("H200-141GB", "datacenter", "nvidia", (139.81, 4800, 989, 1979, 1979, 0, 450, 0), "hopper"),
    _row("B200-180GB", "datacenter", "nvidia", (178.35, 8000, 2250, 4500, 4500, 9000, 900, 0), "blackwell"),
    _row(
        "GB200-192GB", "datacenter", "nvidia", (184.31, 8000, 2500, 5000, 5000, 10000, 900, 5.99), "blackwell"
    ),
    _row("B300-288GB", "datacenter", "nvidia", (267.69, 8000, 2250, 4500, 150, 13500, 900, 0), "blackwell"),
    _row(
        "RTX-PRO-6000-96GB",
        "datacenter",
        "nvidia",
        (94.97, 1792, 504, 1007, 1007, 2015, 64, 0),
        "blackwell",
    ),
    _row("MI210-64GB", "datacenter", "amd", (63.98, 1638, 181, 0, 181, 0, 150, 0.90), "cdna"),
    _row("MI250X-128GB", "datacenter", "amd", (127.98, 3277, 383, 0, 383, 0, 250, 1.40), "cdna"),
    _row("MI300X-192GB", "datacenter", "amd", (191.98, 5300, 1307, 2615, 2615, 0, 448, 2.49), "cdna"),
    _row("MI325X-256GB", "datacenter", "amd", (255.98, 6000, 1307, 2615, 2615, 0, 448, 2.89), "cdna"),
    _row("MI355X-288GB", "datacenter", "amd", (287.98, 8000, 2516, 5033, 5033, 10066, 537, 3.99), "cdna"),
    _row("Gaudi3-128GB", "datacenter", "intel", (126.50, 3700, 1835, 1835, 0, 0, 600, 2.20), "gaudi"),
    _row("RTX-2080-Ti-11GB", "consumer", "nvidia", (10.75, 616, 54, 0, 108, 0, 16, 0.12), "turing"),
    _row("RTX-3060-12GB", "consumer", "nvidia", (11.76, 360, 51, 0, 102, 0, 16, 0), "ampere"),
    _row("RTX-3090-24GB", "consumer", "nvidia", (23.57, 936, 71, 0, 284, 0, 32, 0), "ampere"),
    _row("RTX-4060-Ti-16GB", "consumer", "nvidia", (15.59, 288, 44, 88, 177, 0, 16, 0.08), "ada"),
    _row("RTX-4070-Ti-SUPER-16GB", "consumer", "nvidia", (15.57, 672, 88, 176, 353, 0, 32, 0.11), "ada"),
    _row("RTX-4080-16GB", "consumer", "nvidia", (15.57, 717, 97, 195, 390, 0, 32, 0), "ada"),
    _row("RTX-4090-24GB", "consumer", "nvidia", (23.52, 1008, 165, 330, 661, 0, 32, 0), "ada"),
    _row("RTX-5070-Ti-16GB", "consumer", "nvidia", (15.47, 896, 88, 176, 351, 703, 64, 0.12), "blackwell"),
    _row("RTX-5080-16GB", "consumer", "nvidia", (15.47, 960, 113, 225, 450, 901, 64, 0.16), "blackwell"),
    _row("RTX-5090-32GB", "consumer", "nvidia", (31.36, 1792, 210, 419, 838, 1676, 64, 0), "blackwell"),
    _row("DGX-Spark-128GB", "consumer", "nvidia", (119.60, 273, 100, 200, 200, 500, 25, 0.18), "blackwell"),
    _row("RX-7900-XTX-24GB", "consumer", "amd", (23.98, 960, 123, 0, 123, 0, 32, 0.14), "rdna"),
    _row("Strix-Halo-128GB", "consumer", "amd", (107.87, 256, 59, 0, 118, 0, 5, 0.11), "rdna"),
    _row("M1-Max-64GB", "apple", "apple", (48.0, 400, 10.4, 0, 0, 0, 0, 0.09), "apple", rentable=False),
    _row("M2-Ultra-192GB", "apple", "apple", (144.0, 800, 27, 0, 0, 0, 5, 0.25), "apple", rentable=False),
    _row("M3-Ultra-512GB", "apple", "apple", (384.0, 819, 28, 0, 0, 0, 10, 0.40), "apple", rentable=False),
    _row("M4-Max-128GB", "apple", "apple", (96.0, 546, 18, 0, 0, 0, 10, 0.19), "apple", rentable=False),
    _row("EPYC-9654-768GB", "cpu", "amd", (750.0, 461, 5.4, 0, 10.8, 0, 50, 1.60), "avx512"),
    _row("Xeon-8480-512GB", "cpu", "intel", (500.0, 307, 90, 0, 180, 0, 60, 1.50), "amx"),
    _row("CPU-2core-8GB", "cpu", "any", (7.5, 25, 1.5, 0, 3.0, 0, 0, 0.07), "amx"),
)
_OTHER_NAMES = {
    "gb10": "dgxspark", "spark": "dgxspark", "epyc": "epyc9654", "xeon": "xeon8480", "cpu": "cpu2core",
    "rtx6000": "rtx6000ada",
}  # fmt: skip
#: Words that makers and drivers put around a name and that do not tell devices apart.
_NOISE = re.compile(
    r"nvidia|geforce|tesla|\bamd\b|intel|apple|instinct|radeon|class|generation|blackwell|workstation|edition|server"
    r"|\bsxm\d?\b|\bhbm\d?e?\b|\boam\b|\bgpu\b|rocm"
)
_SIZE = re.compile(r"(\d+)\s*gi?b\b")


def devices() -> tuple[Device, ...]:
    return _CATALOGUE


def find_device(name: str) -> Device:
    """The device called `name`: "H100-80GB", "h100", "RTX 4090 24GB", "Tesla T4", however it is spelled.

    Where only the size tells devices apart and none is given, the larger one. Raises BadInput naming the closest
    entries when there is none.
    """
    plain = re.sub(r"\(.*?\)", "", name.lower())
    size = _SIZE.search(plain)
    wanted = _base(plain)
    wanted = _OTHER_NAMES.get(wanted, wanted)
    found = [x for x in _CATALOGUE if wanted and wanted in _names(x)]
    if not found and wanted.endswith("pcie"):
        found = [x for x in _CATALOGUE if wanted.removesuffix("pcie") in _names(x)]
    if size is not None:
        exact = [x for x in found if x.name.endswith(f"-{size.group(1)}GB")]
        found = exact or (found if len(found) == 1 else [])
    if found:
        return max(found, key=lambda x: x.memory_gib)
    lowered = {x.name.lower(): x.name for x in _CATALOGUE}
    close = [lowered[n] for n in get_close_matches(name.lower(), lowered, n=4, cutoff=0.4)]
    near = f" (near: {', '.join(close)})" if close else ""
    raise BadInput(
        f"device {name!r} is not in the catalogue{near}; see `weighbridge plan --list-devices`, "
        "or describe it with --device-memory",
        param="device",
    )


def _base(name: str) -> str:
    """Letters and digits of a name without size and noise."""
    plain = re.sub(r"[-_/]", " ", name.lower())
    return re.sub(r"[^a-z0-9]", "", _NOISE.sub(" ", _SIZE.sub(" ", plain)))


def _names(device: Device) -> set[str]:
    base = _base(device.name)
    return {base, base.removeprefix("rtx"), base.removeprefix("rx")}


def custom_device(memory_gib: float, like: str | None = None) -> Device:
    """A device of `memory_gib` GiB that is otherwise `like` another (an H100, when nothing is said)."""
    base = find_device(like or "H100-80GB")
    name = base.name if like else f"{memory_gib:g} GiB device"
    return replace(
        base,
        name=name,
        memory_gib=memory_gib,
        architecture=base.architecture if like else "unknown",
        price_from="",
    )
