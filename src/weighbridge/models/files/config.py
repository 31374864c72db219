"""What the decoder needs to know about a model, whichever file it came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import prod

from weighbridge.errors import BadInput, UnsupportedModel

MAX_HEAD_DIM = 1024


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding. `scaling` is None, "linear", "llama3" or "yarn"; the rest are its parameters."""

    theta: float = 10_000.0
    scaling: str | None = None
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    divisors: tuple[float, ...] | None = None  # of each frequency, as GGUF stores llama3's rule


class Activation(StrEnum):
    """What the gate of a feed-forward block goes through."""

    SILU = "silu"
    GELU_TANH = "gelu_tanh"  # GELU in its tanh form (Gemma)


@dataclass(frozen=True, slots=True)
class ExpertsConfig:
    """Experts of the sparse layers. Each token runs through `top_k` of `count` experts, and the shared one.

    The router takes the softmax over all experts, then the `top_k` largest; `normalize` divides those by their
    sum, which is the same as a softmax over them alone.
    """

    count: int
    top_k: int
    intermediate_size: int
    normalize: bool
    sparse_layers: tuple[bool, ...]  # False: this layer has an ordinary feed-forward block
    shared_intermediate_size: int = 0  # 0: no shared expert
    mixtral_names: bool = False  # tensors are called block_sparse_moe.experts.N.w1 instead of mlp.experts.N.…

    @property
    def num_sparse_layers(self) -> int:
        return sum(self.sparse_layers)


@dataclass(frozen=True, slots=True)
class KvShape:
    """What one layer keeps of a token: so many heads, each with a key and a value of `head_dim` elements."""

    kv_heads: int
    head_dim: int


#: In place of a sequence's slot among the states: it starts without any and leaves none.
NO_STATE = -1
#: Of each state: the one that is read, and the one that is written.
STATE_COPIES = 2


@dataclass(frozen=True, slots=True)
class StateShape:
    """What one layer carries from token to token of a sequence, beside keys and values: [*size] numbers.

    `recurrent`: a state that each token changes; else the last inputs of a convolution. `index` numbers the states of
    its kind in the layer. Numbers are in the compute dtype unless `in_float32`.
    """

    layer: int
    recurrent: bool
    index: int
    size: tuple[int, ...]
    in_float32: bool


def state_bytes(states: Sequence[StateShape], element_bytes: int) -> int:
    """Return the memory that the states of one sequence take, with numbers of `element_bytes` in the compute dtype."""
    numbers = ((4 if shape.in_float32 else element_bytes) * prod(shape.size) for shape in states)
    return STATE_COPIES * sum(numbers)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shape of a decoder-only transformer. Sizes in elements; per-layer tuples have `num_layers` entries."""

    architecture: str  # "llama", "mistral", "qwen2", "qwen3", "smollm3", "mixtral", "qwen2_moe", …
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope: RopeConfig
    rotary_layers: tuple[bool, ...]  # False: no rotary embedding in this layer (SmolLM3)
    sliding_windows: tuple[int, ...]  # 0: full attention
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False  # RMSNorm of each query and key head before the rotation (Qwen3)
    qk_norm_all_heads: bool = False  # one RMSNorm over all query heads, one over all key heads (OLMoE)
    local_rope: RopeConfig | None = (
        None  # of layers with a window; None: they rotate as the others do (Gemma)
    )
    activation: Activation = Activation.SILU
    norms_from_one: bool = False  # the file has each norm's weights less 1 (Gemma, but not in GGUF)
    output_norms: bool = False  # a norm behind attention and one behind the feed-forward block, too (Gemma)
    embedding_scale: float = 1.0
    attention_scale: float | None = None  # of queries by keys; None: one by the root of head_dim
    clip_qkv: float | None = None  # largest magnitude of queries, keys and values (OLMoE)
    experts: ExpertsConfig | None = None  # None: every layer is dense
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    own_kv: tuple[KvShape, ...] | None = None  # of each layer that keeps some, where they are not all alike
    states: tuple[StateShape, ...] = ()  # of a sequence

    def check(self, where: str) -> None:
        """Raise BadInput or UnsupportedModel, which begins with `where`, for sizes that contradict each other."""
        heads, kv_heads, experts = self.num_heads, self.num_kv_heads, self.experts
        if heads % kv_heads:
            raise BadInput(f"{where}: {heads} attention heads cannot share {kv_heads} key/value heads evenly")
        if self.head_dim % 2 or not 2 <= self.head_dim <= MAX_HEAD_DIM:
            raise UnsupportedModel(
                f"{where}: a head_dim of {self.head_dim} is not supported: it must be even and at most "
                f"{MAX_HEAD_DIM} (without a head_dim it is hidden_size {self.hidden_size} by {heads} heads)"
            )
        if experts is not None and experts.top_k > experts.count:
            raise BadInput(f"{where}: a token cannot use {experts.top_k} of {experts.count} experts")

    @property
    def softmax_scale(self) -> float:
        """What products of queries and keys are multiplied by."""
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale

    @property
    def kv_shapes(self) -> tuple[KvShape, ...]:
        """What each layer keeps of a token."""
        return (
            self.own_kv
            if self.own_kv is not None
            else (KvShape(self.num_kv_heads, self.head_dim),) * self.num_layers
        )

    @property
    def kv_elements_per_token(self) -> int:
        """Elements of K and V over all layers that one token keeps."""
        return 2 * sum(shape.kv_heads * shape.head_dim for shape in self.kv_shapes)
