"""A dense checkpoint made into a mixture of experts: its feed-forward block copied into every expert.

Without noise all experts are the dense block and the router's weights add up to one, so the output is the dense
model's (Komatsuzaki et al. 2023, "Sparse Upcycling"). With noise and a skewed router it is a mixture that any
machine can run: the sizes, the speeds and the quirks of a real one, if not its wits.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from weighbridge.errors import BadInput, UnsupportedModel
from weighbridge.models.files.checkpoint import Checkpoint, GgufCheckpoint
from weighbridge.models.files.config import ExpertsConfig, ModelConfig
from weighbridge.models.files.tensors import PLAIN, expert_matrices, router_name
from weighbridge.models.text.tokenizer import load_tokenizer
from weighbridge.models.upcycle_router import router_weights

Report = Callable[[int, int], None]

#: Dense families and the mixture whose layers have the same attention.
TARGETS = {"llama": "mixtral", "mistral": "mixtral", "qwen3": "qwen3_moe"}

_TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "*.jinja",
    "vocab*",
    "merges.txt",
    "added_tokens.json",
)


@dataclass(frozen=True, slots=True)
class Upcycling:
    """noise: standard deviation of what is added to each expert's matrices, as a share of the matrix's own.

    skew: how unevenly the router uses the experts, as the exponent of a power law; 0: as a random router falls.
    """

    experts: int = 8
    top_k: int = 2
    noise: float = 0.0
    skew: float = 0.0
    seed: int = 0
    dtype: torch.dtype | None = None  # of the written matrices; None: as they were read

    def check(self) -> None:
        """Raise BadInput for options that cannot work."""
        if self.experts < 2:
            raise BadInput(f"--experts must be at least 2, not {self.experts}", param="experts")
        if not 1 <= self.top_k <= self.experts:
            raise BadInput(f"--top-k must be from 1 to {self.experts}, not {self.top_k}", param="top_k")
        if not 0.0 <= self.noise < float("inf"):
            raise BadInput(f"--noise must be a number of at least 0, not {self.noise}", param="noise")
        if not 0.0 <= self.skew < float("inf"):
            raise BadInput(f"--skew must be a number of at least 0, not {self.skew}", param="skew")


def upcycle(
    checkpoint: Checkpoint,
    out: Path,
    options: Upcycling,
    calibration_tokens: Sequence[int] = (),
    report: Report | None = None,
) -> None:
    """Write `checkpoint` as a mixture of experts to the directory `out`, one safetensors file per layer.

    calibration_tokens: a text to measure hidden states on; a skewed router needs it.
    Raises BadInput for options that make no sense or an `out` that holds something, UnsupportedModel for a dense
    family without a counterpart.
    """
    options.check()
    config = checkpoint.config
    target = _target(config)
    _check_floats(checkpoint)
    if out.exists() and any(out.iterdir()):
        raise BadInput(f"{out} is not empty: give a new directory", param="out")
    experts = ExpertsConfig(
        count=options.experts,
        top_k=options.top_k,
        intermediate_size=config.intermediate_size,
        normalize=True,
        sparse_layers=(True,) * config.num_layers,
        mixtral_names=target == "mixtral",
    )
    routers = router_weights(checkpoint, options, calibration_tokens)
    out.mkdir(parents=True, exist_ok=True)
    _write_tensors(out, _files(checkpoint, experts, options, routers), config.num_layers + 1, report)
    _write_json(out / "config.json", _config_fields(config, target, experts, options))
    _copy_tokenizer(checkpoint, out)


def _write_tensors(
    out: Path, files: Iterable[dict[str, torch.Tensor]], count: int, report: Report | None
) -> None:
    """Write one safetensors file for each of `files`, and the index of all."""
    weight_map: dict[str, str] = {}
    size = 0
    for number, tensors in enumerate(files, 1):
        name = f"model-{number:05d}-of-{count:05d}.safetensors"
        save_file(tensors, out / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
        size += sum(tensor.nbytes for tensor in tensors.values())
        if report is not None:
            report(number, count)
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    _write_json(out / "model.safetensors.index.json", index)


def _target(config: ModelConfig) -> str:
    target = TARGETS.get(config.architecture)
    if config.experts is not None:
        raise UnsupportedModel("the model is a mixture of experts already")
    if target is None:
        families = ", ".join(TARGETS)
        raise UnsupportedModel(f"{config.architecture} has no mixture of the same shape ({families} have)")
    if config.mlp_bias or (target == "mixtral" and (config.qkv_bias or config.output_bias)):
        raise UnsupportedModel(f"{target} has no biases, which this model needs")
    if config.rope.divisors is not None:
        raise UnsupportedModel("this GGUF file rescales its rotary embedding, which config.json cannot say")
    return target


def _check_floats(checkpoint: Checkpoint) -> None:
    """Raise UnsupportedModel for safetensors in few bits: their parts have no place in what is written."""
    if checkpoint.path.is_dir() and set(checkpoint.matrix_kinds) - set(PLAIN):
        raise UnsupportedModel(f"the weights of {checkpoint.path} are in few bits: upcycle the original ones")


def _files(
    checkpoint: Checkpoint, experts: ExpertsConfig, options: Upcycling, routers: list[torch.Tensor]
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the tensors of each layer, then what lies around the layers."""
    layers = checkpoint.config.num_layers
    rest = [name for name in checkpoint.names() if not name.startswith("model.layers.")]
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        mlp = {part: checkpoint.tensor(f"{prefix}mlp.{part}_proj.weight") for part in ("gate", "up", "down")}
        tensors = {
            name: _owned(checkpoint.tensor(name), options)
            for name in checkpoint.names()
            if name.startswith(prefix) and ".mlp." not in name
        }
        tensors[router_name(experts, prefix)] = routers[layer]
        for expert in range(options.experts):
            gated, down = expert_matrices(experts, prefix, expert)
            # The same numbers whatever is written before: a seed for each expert.
            generator = torch.Generator().manual_seed(hash((options.seed, layer, expert)) % (1 << 62))
            for name, part in zip([*gated, *down], ("gate", "up", "down"), strict=True):
                tensors[name] = _owned(_noisy(mlp[part], options.noise, generator), options)
        yield tensors
    yield {name: _owned(checkpoint.tensor(name), options) for name in rest if "rope_freqs" not in name}


def _noisy(weight: torch.Tensor, noise: float, generator: torch.Generator) -> torch.Tensor:
    if noise == 0.0:
        return weight
    wide = weight.float()
    added = torch.randn(wide.shape, generator=generator) * (noise * wide.std())
    return (wide + added).to(weight.dtype)


def _owned(tensor: torch.Tensor, options: Upcycling) -> torch.Tensor:
    """Return a tensor of its own memory: safetensors refuses views of one another."""
    return tensor.to(options.dtype or tensor.dtype).contiguous().clone()


def _config_fields(
    config: ModelConfig, target: str, experts: ExpertsConfig, options: Upcycling
) -> dict[str, Any]:
    windows = {window for window in config.sliding_windows if window}
    fields: dict[str, Any] = {
        "architectures": ["MixtralForCausalLM" if target == "mixtral" else "Qwen3MoeForCausalLM"],
        "model_type": target,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "hidden_act": "silu",
        "tie_word_embeddings": config.tie_word_embeddings,
        "attention_bias": config.qkv_bias,
        "sliding_window": max(windows) if windows else None,
        "use_sliding_window": bool(windows),
        "rope_theta": config.rope.theta,
        "rope_parameters": _rope_fields(config),
        "num_experts_per_tok": experts.top_k,
        "num_local_experts": experts.count,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_ids),
        "upcycled": {"noise": options.noise, "skew": options.skew, "seed": options.seed},
    }
    if target == "qwen3_moe":
        fields |= {"moe_intermediate_size": experts.intermediate_size, "norm_topk_prob": True}
        fields |= {"num_experts": experts.count, "decoder_sparse_step": 1, "mlp_only_layers": []}
    return fields


def _rope_fields(config: ModelConfig) -> dict[str, Any]:
    rope = {key: value for key, value in asdict(config.rope).items() if value is not None}
    kind, theta = rope.pop("scaling", "default"), rope.pop("theta")
    return {"rope_type": kind, "rope_theta": theta, **(rope if kind != "default" else {})}


def _copy_tokenizer(checkpoint: Checkpoint, out: Path) -> None:
    """Copy the files beside a Hugging Face checkpoint, or write a GGUF's vocabulary as tokenizer.json."""
    if not isinstance(checkpoint, GgufCheckpoint):
        for pattern in (*_TOKENIZER_FILES, "generation_config.json"):
            for file in checkpoint.path.glob(pattern):
                shutil.copyfile(file, out / file.name)
        return
    tokenizer = load_tokenizer(checkpoint.path)
    tokenizer.backend.save(str(out / "tokenizer.json"))
    names: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    ends, begin = checkpoint.config.eos_token_ids, checkpoint.config.bos_token_id
    if ends:
        names["eos_token"] = tokenizer.backend.id_to_token(ends[0])
    if begin is not None:
        names["bos_token"] = tokenizer.backend.id_to_token(begin)
    template = checkpoint.file.text("tokenizer.chat_template")
    if template:
        names["chat_template"] = template
    _write_json(out / "tokenizer_config.json", names)
    _write_json(out / "generation_config.json", {"eos_token_id": list(ends), "bos_token_id": begin})


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
