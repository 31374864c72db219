"""Eight adapters in one batch against PEFT's own forward pass: what it saves, with no formula of ours in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.models.adapters.test_adapted import BLOCK, layout_of, loaded
from tests.models.general.shrunk import save_shrunk
from tests.tiny import make_tiny
from tests.tiny_lora import ALL
from weighbridge.models.adapters.peft_file import open_adapter
from weighbridge.models.adapters.shelf import ShelfSize

peft = pytest.importorskip("peft", reason="the oracle is PEFT, which `make proof` installs")
pytestmark = pytest.mark.proof

#: Adapters by what is particular of them; each adds to all layers unless it says otherwise.
ADAPTERS: list[dict[str, Any]] = [
    {},
    {"use_rslora": True, "lora_alpha": 5},
    {"r": 16, "lora_alpha": 32},
    {"r": 1, "lora_alpha": 3},
    {"target_modules": ["q_proj", "v_proj"]},
    {"layers_to_transform": [1, 3]},
    {"rank_pattern": {"q_proj": 2, "layers.2.mlp.down_proj": 7}, "alpha_pattern": {"v_proj": 1}},
    {"init_lora_weights": "gaussian", "lora_dropout": 0.3},
]


def saved(
    base: Path, fields: dict[str, Any], targets: list[str], seed: int, directory: Path
) -> torch.nn.Module:
    """Save an adapter with random weights as PEFT saves it; returns the model that PEFT makes of it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = peft.LoraConfig(
        **{"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": targets, **fields}
    )
    wrapped = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    wrapped.save_pretrained(directory)
    plain = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return peft.PeftModel.from_pretrained(plain, directory).eval()


@pytest.mark.parametrize("kind", ["llama", "gemma3", "olmo2", "phi3"])
def test_eight_adapters_in_one_batch_equal_pefts_own_forward(kind: str, tmp_path: Path) -> None:
    general = kind in ("olmo2", "phi3")
    base = (save_shrunk if general else make_tiny)(kind, tmp_path / "base")
    targets = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"] if kind == "phi3" else list(ALL)
    chosen = [
        one for one in ADAPTERS if kind != "phi3" or not {"target_modules", "rank_pattern"} & one.keys()
    ]
    oracles = [saved(base, fields, targets, seed, tmp_path / str(seed)) for seed, fields in enumerate(chosen)]
    opened, decoder = loaded(base)
    modules = opened.adaptable()
    shelf = opened.adapt(decoder, ShelfSize(len(chosen), 16, modules))
    for number in range(len(chosen)):
        shelf.put(number, open_adapter(tmp_path / str(number), modules, 16))
    count, rng = 40, torch.Generator().manual_seed(1)
    texts = torch.randint(3, 400, (len(chosen), count), generator=rng)
    blocks, owners = 4, list(range(len(chosen)))
    cache = decoder.allocate_kv(len(chosen) * blocks, BLOCK)
    found: list[list[torch.Tensor]] = [[] for _ in chosen]
    for start, end in ((0, 35), (35, 37), *((at, at + 1) for at in range(37, count))):
        counts = [end - start] * len(chosen)
        shelf.begin(owners, counts, sum(counts))
        ids = texts[:, start:end].flatten().numpy().astype("int32")
        layout = layout_of([start] * len(chosen), counts, blocks)
        logits = decoder.forward(ids, layout, cache, torch.arange(len(ids)).numpy().astype("int32"))
        for number, rows in enumerate(logits.float().split(counts)):
            found[number].append(rows)
    for number, oracle in enumerate(oracles):
        with torch.inference_mode():
            expected = oracle(texts[number][None]).logits[0]
        torch.testing.assert_close(torch.cat(found[number]), expected, atol=1e-4, rtol=1e-4)
