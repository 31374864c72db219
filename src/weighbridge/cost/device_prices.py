"""What a device costs per hour, by whom and when it was asked.

Public on-demand list prices per device-hour in USD, as public collections transcribed them from the providers' own
pages, each with the provider and the day it was read. Where a provider lists several, its own data centres rather
than hosts it brokers. Cloud prices move, and the same device costs up to four times as much elsewhere: `--price`
replaces them.

Devices without an entry carry an estimate in `cost.hardware`, which no dated list supports.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ListPrice:
    usd_per_hour: float
    provider: str
    read_on: str  # ISO date


def _listed(provider: str, read_on: str, **prices: float) -> dict[str, ListPrice]:
    return {name.replace("_", "-"): ListPrice(usd, provider, read_on) for name, usd in prices.items()}


LIST_PRICES: dict[str, ListPrice] = {
    **_listed("RunPod Secure Cloud", "2026-08-19", A40_48GB=0.44),
    **_listed(
        "RunPod Secure Cloud", "2026-09-25", H200_141GB=4.59, B200_180GB=6.79, L40S_48GB=1.09, RTX_4090_24GB=0.74
    ),
    **_listed("RunPod Secure Cloud", "2026-10-07", B300_288GB=7.89),
    **_listed(
        "RunPod Secure Cloud",
        "2026-11-09",
        A100_80GB=1.79,
        H100_PCIe_80GB=2.89,
        H100_NVL_94GB=3.19,
        H100_80GB=3.99,
    ),
    **_listed(
        "Lambda",
        "2026-09-20",
        V100_16GB=0.79,
        A10_24GB=1.29,
        A100_40GB=1.99,
        RTX_A6000_48GB=1.09,
        GH200_96GB=2.29,
    ),
    **_listed(
        "Akash, starting at",
        "2026-09-20",
        RTX_3060_12GB=0.14,
        RTX_3090_24GB=0.16,
        RTX_4080_16GB=0.15,
        RTX_5090_32GB=0.67,
        RTX_PRO_6000_96GB=2.04,
    ),
}  # fmt: skip
