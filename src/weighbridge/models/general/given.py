"""What transformers is given of a model directory: a configuration that was read here, and tensors opened here.

It opens no file of the directory itself. Its own loader follows names that the files choose: of pickles
(`transformers_weights`, an index), of kernels on the hub (`attn_implementation`), of another configuration
(`configuration_files`). And what a configuration asks for is held against what the files have before it takes memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from math import prod
from typing import Any

import torch
from safetensors import SafetensorError
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)
from transformers import CONFIG_MAPPING

from weighbridge.errors import BadInput, UnsupportedModel, said
from weighbridge.models.files.checkpoint import SafetensorsDirectory
from weighbridge.models.files.fields import MAX_COUNT, MAX_LAYERS, shown
from weighbridge.models.files.packed_tensors import PackedTensors
from weighbridge.models.files.packing import Packing
from weighbridge.models.files.tensors import PLAIN
from weighbridge.models.general.packed.mxfp4 import CodedExperts, is_coded
from weighbridge.models.general.packed.places import PlacedMatrices

#: Words of a configuration that say how to load, and not what is loaded: that is decided here.
_OF_LOADING = frozenset(
    {
        *("attn_implementation", "_attn_implementation", "_attn_implementation_internal"),
        *("experts_implementation", "_experts_implementation", "_experts_implementation_internal"),
        *("transformers_weights", "configuration_files", "auto_map", "fusion_config", "distributed_config"),
        *("name_or_path", "_name_or_path", "dtype", "torch_dtype", "quantization_config"),
    }
)
#: Names of what is made one by one, unless they say a size.
_ONE_BY_ONE = re.compile("layer|block|depth|expert|stage|types|groups?$")
_A_SIZE = re.compile("size|dim|vocab|width|capacity|length|token|scal|window")
#: Objects and lists in each other.
MAX_DEPTH = 32
#: Types of tensors beside plain floats: tables of positions and masks.
_TABLES = ("F64", "I64", "I32", "BOOL")
#: A model may have so many times the numbers of its files (matrices that are one are made as two), and tables beside.
_TIMES, _TABLE_NUMBERS = 2, 1 << 26
#: And so many tensors for each of the files', which may hold several in one.
_SPLITS, _FEW = 16, 4096


class GivenFiles:
    """The tensors of a directory as transformers takes them: read when they are put into their places.

    `numbers`: of all of them. `plain`: the names of those in floats. `placed`: matrices in few bits, which have
    stand-ins among `tensors`. `coded`: experts of gpt-oss's files, which transformers is not given. Raises BadInput or
    UnsupportedModel for a tensor that is no plain one.
    """

    def __init__(
        self, files: SafetensorsDirectory, packing: Packing | None = None, coded: bool = False
    ) -> None:
        """`packing`: by which matrices are in few bits. `coded`: whether experts are, as gpt-oss is published."""
        self.path = files.path
        self.numbers = 0
        self.tensors: dict[str, Any] = {}
        self.placed = None if packing is None else _placed(files, packing)
        experts: dict[str, Any] = {}
        for name, file in files.file_of.items():
            if self.placed is not None and self.placed.holds(name):
                continue
            try:
                stored = files.opened(file).get_slice(name)
            except SafetensorError as error:
                raise BadInput(f"{file} has no readable tensor {shown(name)}: {said(error)}") from error
            if coded and is_coded(name):
                experts[name] = stored
                continue
            if (kind := str(stored.get_dtype())) not in (*PLAIN, *_TABLES):
                raise UnsupportedModel(
                    f"tensor {shown(name)} of {file} has type {shown(kind)}, which is not read here "
                    f"({', '.join(PLAIN)} are)"
                )
            self.tensors[name] = stored
            self.numbers += prod(stored.get_shape())
        self.plain = frozenset(self.tensors)
        if self.placed is not None:
            self.tensors.update(self.placed.stand_ins())
            self.numbers += self.placed.numbers
        self.coded = CodedExperts(experts) if experts else None
        if self.coded is not None:
            self.numbers += self.coded.numbers


def _placed(files: SafetensorsDirectory, packing: Packing) -> PlacedMatrices:
    return PlacedMatrices(PackedTensors(packing, files, files.path), files.file_of)


def configuration(values: Mapping[str, Any]) -> Any:
    """Return transformers' configuration of what a config.json says, but for words about loading.

    Raises BadInput for a type that it does not know, for counts that no model has, and for what it does not take.
    """
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise BadInput(f"config.json: model_type is {shown(kind)}, which transformers does not know")
    _check_counts(values)
    kept = _without_loading(values)
    made = CONFIG_MAPPING[kind]
    inner = kept.get(made.base_config_key) if made.base_config_key else None
    try:
        return made.from_dict(inner if isinstance(inner, dict) else kept)
    except Exception as error:  # whatever it is that it does not like
        raise BadInput(f"config.json is not what transformers takes for {kind}: {said(error)}") from error


def without_weights(build: Callable[[], Any], given: GivenFiles) -> Any:
    """Return the model that `build` makes, on the meta device.

    Raises BadInput as soon as it has more than the files could fill, and what `build` raises.
    """
    bound = _Bound(_TIMES * given.numbers + _TABLE_NUMBERS, _SPLITS * len(given.tensors) + _FEW)
    with _counted(bound), torch.device("meta"):
        return build()


def with_weights(
    model_class: Any, config: Any, given: GivenFiles, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """Return the model with the files' tensors, and what transformers says of those it lacks and those left over."""
    model, told = model_class.from_pretrained(
        None, config=config, state_dict=given.tensors, output_loading_info=True, **options
    )
    return model, told


def _without_loading(value: Any) -> Any:
    """Words about loading left out, and numbers that JSON has no word for as transformers writes them."""
    if isinstance(value, Mapping):
        if value.keys() == {"__float__"} and value["__float__"] in ("Infinity", "-Infinity", "NaN"):
            return float(value["__float__"])
        return {name: _without_loading(one) for name, one in value.items() if name not in _OF_LOADING}
    return [_without_loading(one) for one in value] if isinstance(value, list) else value


def _check_counts(values: Mapping[str, Any]) -> None:
    """Raise BadInput for a number of layers or experts that would be made one by one for ever, and for depth."""
    left: list[tuple[str, Any, int]] = [("", values, 0)]
    while left:
        name, value, depth = left.pop()
        if isinstance(value, Mapping | list):
            if depth >= MAX_DEPTH:
                raise BadInput(f"config.json: {shown(name)} is nested more than {MAX_DEPTH} deep", param=name)
            inner = value.items() if isinstance(value, Mapping) else ((name, one) for one in value)
            left += [(key, one, depth + 1) for key, one in inner]
        elif isinstance(value, int):
            one_by_one = _ONE_BY_ONE.search(name) and not _A_SIZE.search(name)
            if abs(value) > (most := MAX_LAYERS if one_by_one else MAX_COUNT):
                raise BadInput(
                    f"config.json: {shown(name)} is {shown(value)}, more than the {most} there can be",
                    param=name,
                )


class _Bound:
    """What a model that is being built may have."""

    def __init__(self, numbers: int, tensors: int) -> None:
        self._numbers, self._tensors = numbers, tensors

    def take(self, tensor: torch.Tensor) -> None:
        self._numbers -= tensor.numel()
        self._tensors -= 1
        if self._numbers < 0 or self._tensors < 0:
            raise BadInput(
                "config.json asks for more than the files of the model have: they are incomplete, or the configuration "
                "is another model's"
            )


_bound: ContextVar[_Bound | None] = ContextVar("weighbridge_bound", default=None)


@contextmanager
def _counted(bound: _Bound) -> Iterator[None]:
    """Hold every tensor that modules of this thread register against a bound."""

    def look(module: torch.nn.Module, name: str, tensor: torch.Tensor | None) -> None:
        if tensor is not None and _bound.get() is bound:
            bound.take(tensor)

    hooks = [
        register_module_parameter_registration_hook(look),
        register_module_buffer_registration_hook(look),
    ]
    token = _bound.set(bound)
    try:
        yield
    finally:
        _bound.reset(token)
        for hook in hooks:
            hook.remove()
