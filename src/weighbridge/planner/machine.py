"""This machine and a file as the server finds them: its kernels, what the file holds, what was measured of it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import torch

from weighbridge.cost.hardware import GIB, Device, find_device
from weighbridge.cost.step import StepCost
from weighbridge.engine.calibration import calibration_form, calibration_key, calibration_store
from weighbridge.errors import BadInput
from weighbridge.models import any_model
from weighbridge.models.catalogue.entries import find
from weighbridge.models.catalogue.store import model_path
from weighbridge.models.compute.kernels import load_kernels
from weighbridge.models.file_model import file_model
from weighbridge.models.kv_form import kv_form
from weighbridge.planner.memory.memory import MemoryPlan, PlannedModel
from weighbridge.planner.memory.own import kind_of_device
from weighbridge.planner.memory.source import open_model

_NAME = "this machine"

#: Of devices of any make: what a calibration on as many threads speaks for.
_CORES = {"CPU-2core-8GB": 2}


def this_kind() -> str:
    """Return what kind of CPU this machine has, by the questions that the server asks."""
    return "amx" if torch.cpu._is_amx_tile_supported() else load_kernels().name


def this_device(memory_gib: float | None = None) -> Device:
    """Return this machine as a device: its memory, and the speed of two usual cores times half of its own."""
    cores = os.cpu_count() or 1
    like = find_device("CPU-2core-8GB")
    found = memory_gib or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    return replace(
        like,
        name=_NAME,
        memory_gib=found,
        bandwidth_gbs=like.bandwidth_gbs * max(1.0, cores / 8),
        bf16_tflops=like.bf16_tflops * cores / 2,
        int8_tops=like.int8_tops * cores / 2,
        usd_per_hour=like.usd_per_hour * cores / 2,
    )


def open_named(name: str) -> PlannedModel:
    """Open what `open_model` does, and models that `weighbridge models pull` brought here by their names."""
    entry = None if Path(name).expanduser().exists() else find(name)
    if entry is None:
        return open_model(name)
    path = model_path(entry)
    if path.exists():
        return replace(open_model(str(path)), name=entry.name)
    try:
        return open_model(name)
    except BadInput as error:
        raise BadInput(
            f"{name!r} is not here yet: `weighbridge models pull {entry.name}` brings it", param="model"
        ) from error


def with_file(model: PlannedModel) -> PlannedModel:
    """Return the model with the matrices of its file. Raises BadInput or UnsupportedModel as the server does.

    What transformers computes is planned by its shapes: its matrices are kept as they are.
    """
    native = None if model.path is None else any_model.open_model(Path(model.path)).native
    return model if native is None else replace(model, file=file_model(native))


def measured_here(plan: MemoryPlan) -> StepCost | None:
    """Return what `calibrate` measured of this very model, where the device may be this machine; None: nothing."""
    own, device, path = plan.own, plan.device, plan.model.path
    if own is None or device is None or path is None or device.kind != "cpu":
        return None
    threads = torch.get_num_threads()
    here = device.name == _NAME or (kind_of_device(device) is None and threads == _CORES.get(device.name))
    if not here or own.kind.name != this_kind():
        return None
    kv = kv_form(plan.deployment.kv_dtype, own.keeping.dtype).value
    form = calibration_form(own.keeping.dtype, own.keeping.scheme.value, kv)
    fingerprint = any_model.open_model(Path(path)).fingerprint()
    return calibration_store().load(calibration_key(fingerprint, form, load_kernels().name, threads))
