"""What becomes of each matrix of a file on its way to memory: the loader acts on it, the planner adds up the bytes.

Nothing is read and nothing is computed here, so a plan is made for any CPU and for files that are not loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum

from gguf.constants import GGMLQuantizationType as Kind

from weighbridge.models.compute.packed_forms import COLUMNS_PER_GROUP, Form, form_of, has_bits, packed_bytes
from weighbridge.models.files.config import ModelConfig
from weighbridge.models.files.tensors import expert_matrices, gated_matrices

EMBEDDING = "model.embed_tokens.weight"
OUTPUT = "lm_head.weight"

#: Columns below which both forms of a matrix take microseconds, and a second one is not worth its memory.
SMALLEST_COPIED = 256


class Quantize(StrEnum):
    """How the weights of the linear layers are kept. Activations are rounded to 8 bits where weights are few-bit.

    `auto`: as the file keeps them, so the matrices of a GGUF file stay codes, whatever the compute dtype, and
    everything else is dense.
    """

    AUTO = "auto"
    NONE = "none"
    INT8 = "int8"
    INT4 = "int4"

    @property
    def bits(self) -> int:
        """Bits of a code of our own rounding in the layers; the output matrix keeps 8."""
        return 4 if self is Quantize.INT4 else 8


@dataclass(frozen=True, slots=True)
class Cpu:
    """What of a machine decides how weights are kept."""

    kernels: bool = True  # ours were compiled
    packs_bfloat16: bool = False  # and multiply bfloat16 faster than oneDNN does
    tiles: bool = False  # oneDNN multiplies whole tiles of bfloat16 (AMX)


@dataclass(frozen=True, slots=True)
class FileMatrix:
    """A matrix as the file has it; `kind` None: in plain floats. `label` is what the file calls its type."""

    name: str
    rows: int
    columns: int
    kind: Kind | None = None
    label: str = ""


class KeptAs(Enum):
    """How a linear layer is kept."""

    CODES = "the file's codes, in the order of the kernels"
    ROUNDED = "our own rounding to 8 or 4 bits"
    PACKED = "bfloat16, in the order of our kernels"
    DENSE = "the compute dtype, as oneDNN orders it"


@dataclass(frozen=True, slots=True)
class Kept:
    """One linear layer in memory. `parts` are what its matrices are there, each with its bytes."""

    way: KeptAs
    forms: tuple[Form, ...]  # neighbours in one form are one; empty where it is dense
    parts: tuple[tuple[str, int], ...]
    bias: int = 0
    copy: int = 0  # a second form of the same weights, which many tokens are multiplied with

    @property
    def nbytes(self) -> int:
        return sum(size for _, size in self.parts) + self.bias + self.copy


@dataclass(frozen=True, slots=True)
class Keeping:
    """The rules: what is asked for, on which CPU. `dtype` is the compute dtype, float32 or bfloat16."""

    scheme: Quantize
    dtype: str
    cpu: Cpu

    @property
    def float_bytes(self) -> int:
        return 2 if self.dtype == "bfloat16" else 4

    def way(self, matrices: Sequence[FileMatrix], bits: int) -> KeptAs:
        """Return what becomes of a linear layer of these rows; `bits` is what a quantised scheme keeps."""
        if self._keeps_codes(matrices, bits) and all(map(self._has_kernel, matrices)):
            return KeptAs.CODES
        groups = all(matrix.columns % COLUMNS_PER_GROUP == 0 for matrix in matrices)
        if self.scheme in (Quantize.INT8, Quantize.INT4) and groups:
            return KeptAs.ROUNDED
        even = matrices[0].columns % 2 == 0
        packs = self.dtype == "bfloat16" and self.cpu.packs_bfloat16 and even
        return KeptAs.PACKED if packs else KeptAs.DENSE

    def copies(self, columns: int) -> bool:
        """Whether what is rounded anew has a dense copy beside it: tiles multiply many tokens several times faster.

        Nothing else is so much faster that it would be worth two to eight times the memory.
        """
        return self.cpu.kernels and self.cpu.tiles and self.dtype == "bfloat16" and columns >= SMALLEST_COPIED

    def linear(self, matrices: Sequence[FileMatrix], bits: int, bias: bool = False) -> Kept:
        """Return a linear layer of these rows as it is in memory."""
        way = self.way(matrices, bits)
        rows, columns = sum(matrix.rows for matrix in matrices), matrices[0].columns
        if way is KeptAs.CODES:
            parts = tuple((_name_of(m), packed_bytes(_form(m), m.rows, columns)) for m in matrices)
            return Kept(way, _neighbours([_form(m) for m in matrices]), parts, 4 * rows * bias)
        if way is KeptAs.ROUNDED and self.cpu.kernels:
            form = Form.Q4_1 if bits == 4 else Form.Q8_0
            part = (f"rounded to int{bits}", packed_bytes(form, rows, columns))
            copy = self.float_bytes * rows * (columns + bias) if self.copies(columns) else 0
            return Kept(way, (form,), (part,), 4 * rows * bias, copy)
        if way is KeptAs.PACKED:
            part = (self.dtype, packed_bytes(Form.BFLOAT16, rows, columns))
            return Kept(way, (Form.BFLOAT16,), (part,), 4 * rows * bias)
        return Kept(
            way, (), ((self.dtype, self.float_bytes * rows * columns),), self.float_bytes * rows * bias
        )

    def output(self, embedding: FileMatrix, output: FileMatrix | None) -> Kept:
        """Return the output matrix, which keeps 8 bits even where the layers keep 4: it decides each token directly.

        `output` None: it is the embedding.
        """
        return self.linear([output or embedding], 8)

    def shares(self, embedding: FileMatrix, output: FileMatrix | None) -> bool:
        """Whether the embedding is the output matrix's memory: it is one matrix, and its rows can be read from it."""
        exact = Form.BFLOAT16 if embedding.kind is None else form_of(embedding.kind)
        return output is None and self.output(embedding, None).forms == (exact,)

    def embedding(self, embedding: FileMatrix) -> Kept:
        """Return the embedding where it has memory of its own: in the file's codes, else in floats."""
        if self.scheme is not Quantize.NONE and self._has_kernel(embedding):
            size = packed_bytes(_form(embedding), embedding.rows, embedding.columns)
            return Kept(KeptAs.CODES, (_form(embedding),), ((_name_of(embedding), size),))
        size = self.float_bytes * embedding.rows * embedding.columns
        return Kept(KeptAs.DENSE, (), ((self.dtype, size),))

    def _keeps_codes(self, matrices: Sequence[FileMatrix], bits: int) -> bool:
        """Whether the scheme leaves these matrices as the file has them."""
        if self.scheme is Quantize.AUTO:
            return True
        kinds = [matrix.kind for matrix in matrices]
        return self.scheme is not Quantize.NONE and all(kind and has_bits(kind, bits) for kind in kinds)

    def _has_kernel(self, matrix: FileMatrix) -> bool:
        """Whether our kernels multiply a matrix as the file has it."""
        return self.cpu.kernels and matrix.kind is not None and matrix.columns % COLUMNS_PER_GROUP == 0


def _form(matrix: FileMatrix) -> Form:
    assert matrix.kind is not None
    return form_of(matrix.kind)


def _name_of(matrix: FileMatrix) -> str:
    assert matrix.kind is not None
    form, label = form_of(matrix.kind), matrix.label or matrix.kind.name
    return label if label == form.name else f"{label} as {form.name}"


def _neighbours(forms: Sequence[Form]) -> tuple[Form, ...]:
    return tuple(form for index, form in enumerate(forms) if not index or forms[index - 1] is not form)


@dataclass(frozen=True, slots=True)
class FileModel:
    """What a file says of a model: its configuration, and its matrices by their Hugging Face names."""

    config: ModelConfig
    matrices: Mapping[str, FileMatrix]

    @property
    def embedding(self) -> FileMatrix:
        return self.matrices[EMBEDDING]

    @property
    def output(self) -> FileMatrix | None:
        """None: it is the embedding."""
        return None if self.config.tie_word_embeddings else self.matrices[OUTPUT]


@dataclass(frozen=True, slots=True)
class LinearNames:
    """The matrices of one linear layer, whose rows lie one below the other."""

    names: list[str]
    bias: bool


def linear_layers(config: ModelConfig) -> Iterator[LinearNames]:
    """Every linear layer of a model but the output matrix, in the order of its layers."""
    for index in range(config.num_layers):
        prefix = f"model.layers.{index}."
        yield LinearNames(attention_matrices(prefix), config.qkv_bias)
        yield LinearNames([f"{prefix}self_attn.o_proj.weight"], config.output_bias)
        yield from _feed_forward(config, index, prefix)


def adaptable_matrices(config: ModelConfig) -> Iterator[str]:
    """Yield the names of matrices that adapters may add to: all that see every token, so not those of experts."""
    for layer in linear_layers(config):
        yield from (name for name in layer.names if ".experts." not in name and ".shared_expert." not in name)


def adapter_bytes(shapes: Iterable[tuple[int, int]], slots: int, rank: int, element_bytes: int) -> int:
    """Return what `slots` adapters of this rank take over matrices of these rows and columns."""
    return slots * rank * element_bytes * sum(rows + columns for rows, columns in shapes)


def attention_matrices(prefix: str) -> list[str]:
    """Return the names of the matrices of queries, keys and values; `prefix` is the layer's, with a dot."""
    return [f"{prefix}self_attn.{name}_proj.weight" for name in "qkv"]


def _feed_forward(config: ModelConfig, index: int, prefix: str) -> Iterator[LinearNames]:
    experts = config.experts
    if experts is None or not experts.sparse_layers[index]:
        yield from (LinearNames(names, config.mlp_bias) for names in gated_matrices(f"{prefix}mlp."))
        return
    if experts.shared_intermediate_size:
        shared = gated_matrices(f"{prefix}mlp.shared_expert.")
        yield from (LinearNames(names, False) for names in shared)
    for number in range(experts.count):
        matrices = expert_matrices(experts, prefix, number)
        yield from (LinearNames(names, False) for names in matrices)
