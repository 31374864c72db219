"""What our own engine takes: weights as its loader keeps them, its cache, its workspace, Python and the tokenizer.

Weights and cache are added up by the functions that the server itself uses (`models.keeping`, `models.kv_form`).
Workspace is that of `native/forward.cpp`; what Python and a tokenizer take was measured: `benchmarks/plan_measured.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from weighbridge.cost.hardware import GIB, Device
from weighbridge.errors import BadInput
from weighbridge.models.keeping import Cpu, FileModel, Keeping, Quantize, adaptable_matrices, adapter_bytes
from weighbridge.models.kept_weights import class_of, linear_memory, model_memory
from weighbridge.models.kv_form import PADDING, KvForm, kv_form
from weighbridge.planner.memory.file_weights import named_tensor
from weighbridge.planner.memory.gguf_mix import arithmetic_of, file_type, gguf_bytes
from weighbridge.planner.memory.kv_dtype import KVType
from weighbridge.planner.memory.request import Deployment, Range
from weighbridge.planner.memory.weight_formats import Arithmetic, is_format
from weighbridge.planner.memory.weights import Stored, bulk_bits
from weighbridge.planner.model.architecture import Architecture, Attention, DenseBlock, ExpertBlock
from weighbridge.planner.model.tensors import HEAD, Kind, Shard, Tensor, all_tensors

#: Bytes of a process that serves, without weights and cache, and of each token that its tokenizer knows: with what
#: constrains answers, and the trees for them.
PROCESS_BYTES, TOKEN_BYTES = 284 << 20, 890
#: Tokens that go through a feed-forward at a time, as in `native/forward.cpp`; with adapters all of a batch do.
FEED_FORWARD_TOKENS = 384
#: Beside the workspace of a batch: what Python holds of its requests, and free memory that malloc keeps.
BATCH_BYTES = 16 << 20
#: Of what is free, taken by the cache unless told otherwise; `engine.settings` has the same.
POOL_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class CpuKind:
    """A kind of CPU, as far as it decides how weights and cache are kept."""

    name: str
    dtype: str  # what `--dtype auto` is there
    cpu: Cpu


CPU_KINDS = {
    kind.name: kind
    for kind in (
        CpuKind("avx2", "float32", Cpu()),
        CpuKind("avx512", "bfloat16", Cpu()),
        CpuKind("avx512_bf16", "bfloat16", Cpu(packs_bfloat16=True)),
        CpuKind("amx", "bfloat16", Cpu(tiles=True)),
        CpuKind("neon", "float32", Cpu()),
        CpuKind("portable", "float32", Cpu()),
        CpuKind("reference", "float32", Cpu(kernels=False)),
    )
}
#: Of devices whose maker says what they have; the others are taken as this machine.
_ARCHITECTURES = {"EPYC-9654-768GB": "avx512_bf16", "Xeon-8480-512GB": "amx"}


def cpu_kind(d: Deployment, device: Device | None) -> CpuKind:
    """Return the kind that was asked for, else that of the device, else the usual one. Raises BadInput."""
    name = d.cpu or kind_of_device(device) or "avx512"
    if name not in CPU_KINDS:
        raise BadInput(f"--cpu {name!r} is not known; known: {', '.join(CPU_KINDS)}", param="cpu")
    return CPU_KINDS[name]


def kind_of_device(device: Device | None) -> str | None:
    """Return the kind of a device whose maker says what it has; None: it may be any."""
    return None if device is None else _ARCHITECTURES.get(device.name)


def keeping_of(d: Deployment, kind: CpuKind) -> Keeping:
    """Return the rules by which the server would keep weights. Raises BadInput for words that it does not know."""
    schemes = [scheme.value for scheme in Quantize]
    if d.quantize not in schemes:
        names = ", ".join(schemes)
        raise BadInput(f"quantisation {d.quantize!r} is not known: use one of {names}", param="quantize")
    if d.dtype not in ("auto", "float32", "bfloat16"):
        raise BadInput(f"dtype {d.dtype!r} is not known: use float32, bfloat16 or auto", param="dtype")
    return Keeping(Quantize(d.quantize), kind.dtype if d.dtype == "auto" else d.dtype, kind.cpu)


def own_weights(
    file: FileModel | None, architecture: Architecture, d: Deployment, keeping: Keeping
) -> Stored:
    """Return the weights in memory: of a file as the loader builds them, else of the shapes."""
    if file is not None:
        return _of_file(file, architecture, d, keeping)
    return _of_shapes(architecture, d, keeping)


def _of_file(file: FileModel, architecture: Architecture, d: Deployment, keeping: Keeping) -> Stored:
    sizes: dict[Tensor, float] = {}
    elements: dict[str, int] = {}
    copies = 0
    for layer in linear_memory(file, keeping):
        rows, columns = sum(matrix.rows for matrix in layer.matrices), layer.matrices[0].columns
        sizes[named_tensor(layer.name, [rows, columns], architecture)] = float(
            layer.kept.nbytes - layer.kept.copy
        )
        copies += layer.kept.copy
        elements[layer.name] = rows * columns
    memory = model_memory(file, keeping, d.max_model_len)
    sizes[Tensor("norms", HEAD, 1, memory.vectors // 4, Kind.SMALL, Shard.WHOLE)] = float(memory.vectors)
    rotary = Tensor("rotary table", HEAD, 1, memory.rotary // 4, Kind.SMALL, Shard.WHOLE)
    sizes[rotary] = float(memory.rotary)
    if copies:
        sizes[Tensor("dense copies", HEAD, 1, copies // keeping.float_bytes, Kind.COPY, Shard.WHOLE)] = float(
            copies
        )
    bulk = {t: size for t, size in sizes.items() if class_of(t.name) not in ("embedding", "output", "other")}
    bits = 8 * sum(bulk.values()) / max(sum(elements[t.name] for t in bulk), 1)
    kinds = "+".join(
        sorted({kind for _, kind in memory.classes.bytes if not kind.startswith(("shared", "a dense copy"))})
    )
    arithmetic = Arithmetic.QUANTIZED if bits < 15 else Arithmetic.DENSE
    return Stored(sizes, kinds, bits, arithmetic, classes="; ".join(memory.classes.lines()))


def _of_shapes(architecture: Architecture, d: Deployment, keeping: Keeping) -> Stored:
    """Without a file: as if it were in plain floats, or in the type of GGUF that was asked for."""
    gguf = file_type(d.weights) if d.weights and not is_format(d.weights) else None
    if d.weights is not None and gguf is not None:
        few = {
            t: float(n) for t, n in gguf_bytes(architecture, d.weights).items() if t.kind is not Kind.TOWER
        }
        return Stored(few, d.weights, bulk_bits(few), arithmetic_of(gguf.type_name))
    rounded = {Quantize.INT8: 1.0625, Quantize.INT4: 0.625}.get(keeping.scheme)
    sizes = {}
    for tensor in all_tensors(architecture):
        if tensor.kind is Kind.TOWER:
            continue
        each = float(keeping.float_bytes)
        if tensor.kind in (Kind.SMALL, Kind.ROUTER):
            each = 4.0
        elif tensor.kind is Kind.HEAD and rounded:
            each = 1.0625
        elif tensor.kind is not Kind.EMBED and rounded:
            each = rounded
        sizes[tensor] = tensor.elements * each
    words = f"{keeping.scheme.value} on {keeping.dtype}"
    return Stored(sizes, words, bulk_bits(sizes), Arithmetic.QUANTIZED if rounded else Arithmetic.DENSE)


def own_adapter_bytes(
    file: FileModel | None, architecture: Architecture, d: Deployment, keeping: Keeping
) -> float:
    """Return what the server sets aside for adapters: over each matrix, also where it keeps several as one."""
    if file is not None:
        shapes = [
            (one.rows, one.columns) for one in map(file.matrices.__getitem__, adaptable_matrices(file.config))
        ]
    else:
        kinds = (Kind.ATTENTION, Kind.LINEAR, Kind.MLP)
        shapes = [(one.rows, one.columns) for one in all_tensors(architecture) if one.kind in kinds]
    return float(adapter_bytes(shapes, max(d.max_loras, 1), d.lora_rank, keeping.float_bytes))


def own_kv_type(name: str, keeping: Keeping) -> KVType:
    """Return the cache type that the server would take. Raises BadInput for one that it has not."""
    form = kv_form(name, keeping.dtype)
    names = {KvForm.FLOAT32: "fp32", KvForm.BFLOAT16: "bf16", KvForm.INT8: "int8"}
    return KVType(names[form], float(form.element_bytes), form.scale_bytes, PADDING)


def workspace(
    architecture: Architecture, keeping: Keeping, tokens: int, rows: int, *, adapted: bool = False
) -> float:
    """Return the bytes that a batch of `tokens` takes on its way through a layer, and the logits of `rows` of them."""
    hidden, widest = architecture.hidden, 0
    part = tokens if adapted else min(tokens, FEED_FORWARD_TOKENS)
    for layer in set(architecture.layers):
        attention = (0, 0)
        if isinstance(layer.mixer, Attention):
            mixer = layer.mixer
            queries = mixer.heads * mixer.key_dim
            attention = queries + mixer.kv_heads * (mixer.key_dim + mixer.value_dim), queries
        match layer.feed_forward:
            case DenseBlock(intermediate, _):  # lies where attention was
                halves = (2 * intermediate, intermediate)
                most = sum([max(tokens * a, part * b) for a, b in zip(attention, halves, strict=True)])
            case ExpertBlock() as block:
                most = tokens * (sum(attention) + block.active * (3 * block.intermediate + hidden))
            case _:
                most = tokens * sum(attention)
        widest = max(widest, most)
    each = 4 * hidden + keeping.float_bytes * 2 * hidden
    return float(
        tokens * each + keeping.float_bytes * widest + rows * architecture.vocab * (4 + keeping.float_bytes)
    )


def activation(
    architecture: Architecture, d: Deployment, keeping: Keeping, length: int, batched: int
) -> tuple[Range, str]:
    """Return the GiB of the largest batch that comes, and why."""
    tokens, rows = min(batched, length * (d.concurrency or 1)), d.concurrency or 1
    adapted = bool(d.max_loras)
    value = (workspace(architecture, keeping, tokens, rows, adapted=adapted) + BATCH_BYTES) / GIB
    most = workspace(architecture, keeping, batched, max(rows, 64), adapted=adapted)
    most = (most + 2 * BATCH_BYTES) / GIB
    why = f"a batch of {tokens:,} tokens through the widest layer in {keeping.dtype}, and logits of {rows} of them"
    return Range(value, 0.6 * value, max(most, 1.2 * value)), why


def framework(architecture: Architecture) -> tuple[Range, str]:
    """Return the GiB of a process that serves, without weights and cache, and why."""
    value = (PROCESS_BYTES + TOKEN_BYTES * architecture.vocab) / GIB
    why = f"Python, torch and a tokenizer of {architecture.vocab:,} tokens"
    return Range(value, 0.88 * value, 1.12 * value), why


def pool_bytes(left: float, request: float, d: Deployment, seats: int) -> float:
    """Return what the cache is given of what is left: a quarter, but never less than is wanted at once where that fits.

    No more than all seats could fill. A share that was told, or a size, is taken as it is.
    """
    if d.kv_cache_memory is not None or d.gpu_memory_utilization is not None:
        return left
    wanted = min(left, max(POOL_SHARE * left, request * (d.concurrency or 1)))
    return min(wanted, request * seats)


def whole_mebibytes(size: float) -> str:
    """Return a size as a flag, rounded up: the last block must fit."""
    return f"{ceil(size / 2**20)}MiB"
