"""What the planner knows of a model: how each layer mixes tokens, what follows, what lies around the layers.

Far more families than the engine runs. Nothing here is computed: `config_reader` builds it from config.json,
`tensors` turns it into weights, the modules of `planner.memory` into memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Assumption:
    """What a plan takes for granted because the configuration does not tell.

    field: the one that is missing, under config.json's name. value: what stands for it; None where nothing does.
    sentence: the same for people. rough: a guess that may be far off, so weights made of it are rough as well.
    """

    field: str
    value: object
    sentence: str
    rough: bool = False


@dataclass(frozen=True, slots=True)
class Attention:
    """Softmax attention with keys and values per head (MHA, GQA, MQA)."""

    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    window: int = 0  # tokens a sliding window sees; 0: all
    chunk: int = 0  # tokens of a local chunk (Llama 4); 0: all
    bias: bool = False  # on q, k and v
    output_bias: bool = False
    gated: bool = False  # q_proj also makes an output gate, so it has twice the rows
    keys_are_values: bool = False  # one projection serves both; the cache still holds both
    norms: int = 0  # elements that queries and keys are scaled by
    sinks: bool = False  # one logit per head
    owns_cache: bool = True  # False: reads the cache of an earlier layer


@dataclass(frozen=True, slots=True)
class Indexer:
    """Lightning indexer of DeepSeek sparse attention: it caches one small key of its own per token."""

    heads: int
    dim: int


@dataclass(frozen=True, slots=True)
class Latent:
    """Multi-head latent attention: one compressed vector per token, which every tensor-parallel rank keeps."""

    heads: int
    q_rank: int  # 0: queries are not compressed
    kv_rank: int
    rope_dim: int
    nope_dim: int
    value_dim: int
    indexer: Indexer | None = None


@dataclass(frozen=True, slots=True)
class Recurrent:
    """Linear attention or a state-space layer: a state of fixed size per sequence instead of a cache.

    conv_dim, state_heads: divided over tensor-parallel ranks. The state is state_heads x state_size values.
    """

    kind: str  # "gdn", "kda", "mamba2", "mamba1", "short_conv", "lightning"
    conv_dim: int
    kernel: int
    state_heads: int
    state_size: int  # values per head
    projections: tuple[tuple[str, int, int], ...]  # (role, rows, columns), divided over ranks
    state_bytes: int = 4


@dataclass(frozen=True, slots=True)
class DenseBlock:
    intermediate: int
    gated: bool = True


@dataclass(frozen=True, slots=True)
class ExpertBlock:
    count: int
    active: int
    intermediate: int
    shared_intermediate: int = 0  # of all shared experts together
    shared_gate: bool = False
    gated: bool = True
    bias: bool = False
    router_bias: bool = False  # one number for each expert's score
    latent: int = 0  # width the experts work in, when not the hidden size
    dense_intermediate: int = 0  # a dense block beside the experts (Gemma 4)


Mixer = Attention | Latent | Recurrent
FeedForward = DenseBlock | ExpertBlock


@dataclass(frozen=True, slots=True)
class LayerShape:
    mixer: Mixer | None
    feed_forward: FeedForward | None


@dataclass(frozen=True, slots=True)
class Tower:
    """A vision or audio encoder beside the language model; every rank keeps all of it."""

    name: str
    parameters: int


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model, in numbers. `drafts` are its own speculative (MTP) layers, loaded only when they are used."""

    family: str
    hidden: int
    vocab: int
    layers: tuple[LayerShape, ...]
    tied: bool
    max_positions: int
    rotary_dim: int
    drafts: tuple[LayerShape, ...] = ()
    towers: tuple[Tower, ...] = ()
    gated_vocab: int = 0  # per-layer embedding table columns (Gemma 3n), on top of the usual one
    quantization: dict[str, object] = field(default_factory=dict)  # quantization_config, as published
    assumptions: tuple[Assumption, ...] = ()

    @property
    def attention_layers(self) -> tuple[Attention | Latent, ...]:
        return tuple(x.mixer for x in self.layers if isinstance(x.mixer, (Attention, Latent)))

    @property
    def recurrent_layers(self) -> tuple[Recurrent, ...]:
        return tuple(x.mixer for x in self.layers if isinstance(x.mixer, Recurrent))

    @property
    def latent(self) -> bool:
        return any(isinstance(x.mixer, Latent) for x in self.layers)

    @property
    def has_experts(self) -> bool:
        return any(isinstance(x.feed_forward, ExpertBlock) for x in self.layers)

    def stages(self, pp: int) -> list[tuple[int, int]]:
        """Return the first and last + 1 layer of each pipeline stage, as vLLM cuts them: the remainder goes to the
        stages before the last, which also has the head."""
        base, rest = divmod(len(self.layers), pp)
        sizes = [base] * pp
        for index in range(2, rest + 2):
            sizes[-index] += 1
        starts = [sum(sizes[:index]) for index in range(pp)]
        return [(start, start + size) for start, size in zip(starts, sizes, strict=True)]
