"""The device catalogue: names as people write them, numbers that can be true."""

from __future__ import annotations

from datetime import date

import pytest

from weighbridge.cost.device_prices import LIST_PRICES
from weighbridge.cost.hardware import custom_device, devices, find_device
from weighbridge.errors import BadInput


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("H100-80GB", "H100-80GB"),
        ("h100", "H100-80GB"),
        ("NVIDIA H100 80GB HBM3", "H100-80GB"),
        ("H100 PCIe", "H100-PCIe-80GB"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("A100 40GB", "A100-40GB"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090-24GB"),
        ("4090", "RTX-4090-24GB"),
        ("Tesla T4", "T4-16GB"),
        ("MI300X-class 192GB (ROCm)", "MI300X-192GB"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "RTX-PRO-6000-96GB"),
        ("m3 ultra", "M3-Ultra-512GB"),
    ],
)
def test_names(text: str, name: str) -> None:
    assert find_device(text).name == name


@pytest.mark.parametrize("text", ["abacus", "", "A100-160GB", "RTX 4090 Ti"])
def test_unknown_devices_are_refused(text: str) -> None:
    with pytest.raises(BadInput, match="not in the catalogue"):
        find_device(text)


def test_every_device_can_be_found_and_is_plausible() -> None:
    for device in devices():
        assert find_device(device.name) is device
        assert 0.5 < device.memory_gib < 1000
        assert 20 <= device.bandwidth_gbs <= 10_000
        assert 0 < device.bf16_tflops <= max(device.tflops(8), device.bf16_tflops)
        assert 0.01 < device.usd_per_hour < 20


def test_every_price_says_where_it_comes_from() -> None:
    names = {device.name for device in devices()}
    for name, price in LIST_PRICES.items():
        assert name in names
        assert date.fromisoformat(price.read_on) <= date(2026, 11, 24)
        assert find_device(name).usd_per_hour == price.usd_per_hour
        assert price.provider in find_device(name).price_note
        assert price.read_on in find_device(name).price_note
    for device in devices():
        assert device.price_from or "estimate" in device.price_note
    assert "estimate" in custom_device(48.0, "H100").price_note


def test_formats_choose_their_units() -> None:
    assert find_device("H100").tflops(8) == 1979
    assert find_device("A100").tflops(8) == 624  # int8
    assert find_device("H100").tflops(4) == 989  # unpacked to 16 bits
    assert find_device("B200").tflops(4.5) == 9000


def test_described_devices() -> None:
    device = custom_device(23.0, "RTX 4090")
    assert device.memory_gib == 23.0
    assert device.bandwidth_gbs == 1008
    assert custom_device(300).architecture == "unknown"
