"""Whether a file's greedy answers are llama.cpp's, and who is nearer to the file's own weights where they are not.

    python benchmarks/peers/greedy_equality.py FILE.gguf [FILE ...] [--tokens 64] [--ours "--dtype float32"]

Both servers answer twenty texts, greedily. Where the answers differ, the distributions behind the text that both still
agree on, and behind the seven tokens before, are held against those of a forward pass in float32 over the dequantised
weights: the mean Kullback-Leibler divergence of each, in nats, over the --top likeliest tokens and all others as one.
Ours are those of the server's own decoder, with the same options, in this process.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import environments
import numpy as np
import torch
from servers import HERE, OURS, free_port, running

from weighbridge.models.compute.decoder import Decoder
from weighbridge.models.compute.kernels.api import BatchLayout
from weighbridge.models.files.checkpoint import open_checkpoint
from weighbridge.models.keeping import Quantize
from weighbridge.models.loader import choose_dtype, load_decoder
from weighbridge.models.text.tokenizer import load_tokenizer

TEXTS = (
    "The capital of France is",
    "Water boils at a lower temperature on a mountain because",
    "The three primary colours are",
    "In the year 1969, for the first time,",
    "A balanced diet consists of",
    "The difference between a virus and a bacterium is that",
    "Dear Sir or Madam,\n\nI am writing to",
    "Once upon a time there was a miller who",
    "The train was late again, so we",
    "Q: What is the square root of 144?\nA:",
    "def fibonacci(n):\n",
    "import os\nimport sys\n\ndef main():\n",
    "class Stack:\n    def __init__(self):\n",
    "# Binary search in a sorted list\ndef binary_search(items, target):\n",
    "SELECT name, COUNT(*) FROM orders",
    "#include <stdio.h>\n\nint main(void) {\n",
    "function debounce(callback, wait) {\n",
    '{"name": "Ada", "born": 1815, "known_for":',
    "fn largest(numbers: &[i32]) -> Option<i32> {\n",
    "To install the package, first",
)
WINDOW, BLOCK = 8, 32


@dataclass(frozen=True, slots=True)
class Peer:
    """llama-server at an address."""

    url: str

    def answer(self, text: str, tokens: int) -> tuple[str, list[int]]:
        """The greedy answer and its tokens."""
        fields = {
            "prompt": text,
            "n_predict": tokens,
            "temperature": 0,
            "return_tokens": True,
        }
        told = post(f"{self.url}/completion", {**fields, "cache_prompt": False})
        return told["content"], told["tokens"]

    def tokens(self, text: str) -> list[int]:
        """A prompt's tokens, as it begins a sequence."""
        fields = {"content": text, "add_special": True, "parse_special": True}
        found: list[int] = post(f"{self.url}/tokenize", fields)["tokens"]
        return found

    def logprobs(self, ids: Sequence[int], top: int) -> dict[int, float]:
        """Log-probabilities of the likeliest tokens behind `ids`."""
        fields = {"prompt": list(ids), "n_predict": 1, "temperature": 0, "n_probs": top}
        told = post(f"{self.url}/completion", {**fields, "post_sampling_probs": False})
        return {one["id"]: one["logprob"] for one in told["completion_probabilities"][0]["top_logprobs"]}


@dataclass(frozen=True, slots=True)
class Stray:
    """An answer that is another one than llama.cpp's: mean divergences of both from float32, in nats."""

    text: str
    shared: int  # tokens that were equal
    ours: float
    theirs: float


def post(url: str, fields: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(fields).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)


def our_answer(url: str, text: str, tokens: int) -> str:
    with urllib.request.urlopen(f"{url}/v1/models") as answer:
        model = json.load(answer)["data"][0]["id"]
    fields = {"model": model, "prompt": text, "max_tokens": tokens, "temperature": 0}
    told: str = post(f"{url}/v1/completions", fields)["choices"][0]["text"]
    return told


@contextmanager
def both(file: str, ours: list[str]) -> Iterator[tuple[str, Peer]]:
    """Both servers up: the address of ours, and llama-server."""
    here, there = free_port(), free_port()
    command = [
        sys.executable,
        "-m",
        "weighbridge",
        "serve",
        file,
        "--port",
        str(here),
        *OURS,
    ]
    command += ["--max-model-len", "1024", *ours]
    peer = [
        str(environments.python_of("llama")),
        str(HERE / "llama_server.py"),
        file,
        str(there),
        "1",
    ]
    with (
        running(command, {}, "weighbridge", here) as url,
        running(peer, {}, "llama-server", there) as their_url,
    ):
        yield url, Peer(their_url)


def last_logprobs(decoder: Decoder, ids: Sequence[int], rows: int) -> torch.Tensor:
    """Log-probabilities behind each of the last `rows` tokens, float32 [rows, vocabulary]."""
    count = len(ids)
    blocks = -(-count // BLOCK)
    positions = np.arange(count, dtype=np.int32)
    layout = BatchLayout(
        positions,
        positions.copy(),
        np.array([0, count], np.int32),
        np.array([count], np.int32),
        np.arange(blocks, dtype=np.int32)[None, :],
    )
    cache = decoder.allocate_kv(blocks, BLOCK, decoder.dtype)
    wanted = np.arange(count - rows, count, dtype=np.int32)
    logits = decoder.forward(np.array(ids, np.int32), layout, cache, wanted)
    return torch.log_softmax(logits.float(), dim=-1)


def divergence(exact: torch.Tensor, other: dict[int, float]) -> float:
    """KL of `other` from the exact log-probabilities: over the tokens that `other` names, and the rest as one."""
    ids = torch.tensor(list(other))
    p, q = (
        exact[ids].double().exp(),
        torch.tensor(list(other.values()), dtype=torch.float64).exp(),
    )
    rest_p, rest_q = max(1 - float(p.sum()), 1e-12), max(1 - float(q.sum()), 1e-12)
    total = float((p * (p / q.clamp_min(1e-30)).clamp_min(1e-30).log()).sum())
    return total + rest_p * math.log(rest_p / rest_q)


def compare(file: str, options: argparse.Namespace) -> tuple[int, list[tuple[list[int], int, str]]]:
    """How many answers are equal, and the sequences up to where the others stray (ids, tokens shared, text)."""
    equal, strayed = 0, []
    with both(file, options.ours.split()) as (url, peer):
        for text in TEXTS[: options.texts]:
            mine = our_answer(url, text, options.tokens)
            theirs, tokens = peer.answer(text, options.tokens)
            if mine == theirs:
                equal += 1
                continue
            shared = agreed(file, tokens, mine)
            strayed.append(([*peer.tokens(text), *tokens[:shared]], shared, text))
            print(
                f"  {text[:40]!r}: {shared} tokens alike, then {mine[-30:]!r} / {theirs[-30:]!r}",
                flush=True,
            )
        told = [
            [peer.logprobs(ids[: len(ids) - back], options.top) for back in range(min(WINDOW, len(ids) - 1))]
            for ids, _, _ in strayed
        ]
    return equal, [
        (ids, shared, text, theirs) for (ids, shared, text), theirs in zip(strayed, told, strict=True)
    ]


def agreed(file: str, tokens: list[int], text: str) -> int:
    """How many of the tokens, as text, `text` begins with."""
    tokenizer = load_tokenizer(Path(file))
    count = 0
    while count < len(tokens) and text.startswith(tokenizer.decode(tokens[: count + 1], False)):
        count += 1
    return count


def judged(file: str, options: argparse.Namespace, strayed: list[Any]) -> list[Stray]:
    """Both against float32, with one decoder in memory at a time."""
    checkpoint = open_checkpoint(Path(file))
    exact, mine = [], []
    dtype = "float32" if "float32" in options.ours else "auto"
    for kept, found in ((choose_dtype(dtype), mine), (torch.float32, exact)):
        scheme = Quantize.AUTO if found is mine else Quantize.NONE
        decoder = load_decoder(checkpoint, kept, scheme, max_model_len=1024)
        found.extend(last_logprobs(decoder, ids, len(theirs)) for ids, _, _, theirs in strayed)
        del decoder
    rows = []
    for (_, shared, text, theirs), right, own in zip(strayed, exact, mine, strict=True):
        # `theirs` begins behind the last token, the rows with the first of the window.
        pairs = [(right[-1 - back], own[-1 - back], told) for back, told in enumerate(theirs)]
        ours = [divergence(p, {i: float(q[i]) for i in told}) for p, q, told in pairs]
        rows.append(
            Stray(
                text,
                shared,
                statistics.mean(ours),
                statistics.mean(divergence(p, told) for p, _, told in pairs),
            )
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--texts", type=int, default=len(TEXTS), help="the first of them alone")
    parser.add_argument("--top", type=int, default=2000)
    parser.add_argument("--ours", default="", help="more options of `weighbridge serve`")
    options = parser.parse_args()
    for file in options.files:
        print(Path(file).stem, flush=True)
        equal, strayed = compare(file, options)
        print(f"{equal} of {len(TEXTS[: options.texts])} answers of {options.tokens} tokens are equal")
        rows = judged(file, options, strayed) if strayed else []
        for row in rows:
            print(f"| {row.text[:32]!r} | {row.shared} | {row.ours:.5f} | {row.theirs:.5f} |")
        if rows:
            means = [statistics.mean(getattr(row, name) for row in rows) for name in ("ours", "theirs")]
            print(
                f"mean divergence from float32: ours {means[0]:.5f}, llama.cpp's {means[1]:.5f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
