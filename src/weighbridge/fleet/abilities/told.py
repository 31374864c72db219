"""What servers tell of themselves: which models they serve, how much fits, what they can. One reader a page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import msgspec

from weighbridge.fleet.abilities.ability import Ability

#: Names kept of one server, and characters of each: what it lists beyond that is somebody's catalogue.
MOST_NAMES, LONGEST_NAME = 1000, 300
#: No server takes more tokens, and none has more seats.
MOST_TOKENS, MOST_SEATS = 1 << 40, 1 << 20


@dataclass(frozen=True, slots=True)
class Told:
    """What its pages say; what they do not say is None, or left out.

    `models`: the names it answers to. `context`: tokens of prompt and output. `seats`: requests it works on at once.
    `adapters`: of the names, those of adapters over the model in question.
    """

    models: tuple[str, ...] = ()
    context: int | None = None
    seats: int | None = None
    can: Mapping[Ability, bool] = field(default_factory=dict)
    version: str = ""
    adapters: frozenset[str] = frozenset()

    def and_then(self, other: Told) -> Told:
        """This, with what a later page knows better or besides."""
        contexts = [one for one in (self.context, other.context) if one is not None]
        return Told(
            self.models or other.models,
            min(contexts, default=None),
            other.seats or self.seats,
            {**self.can, **other.can},
            other.version or self.version,
            self.adapters | other.adapters,
        )


NOTHING_TOLD = Told()

#: A page and the name that its server is asked by, into what it tells. Raises ValueError and what indexing raises.
ReadPage = Callable[[Any, str], Told]


@dataclass(frozen=True, slots=True)
class Page:
    """A page that a server may have. `asks`: the field of the body in which the model is named; None: a GET.

    `once`: where versions have it that do not know it by `path`.
    """

    path: str
    read: ReadPage
    asks: str | None = None
    once: str = ""


def read_page(page: Page, body: bytes, model: str) -> Told:
    """What a page tells; nothing where it is not what it should be. `model`: what that server calls the model."""
    try:
        return _bounded(page.read(msgspec.json.decode(body), model))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return NOTHING_TOLD  # DecodeError is a ValueError


def _bounded(told: Told) -> Told:
    return replace(
        told,
        models=tuple(name[:LONGEST_NAME] for name in told.models[:MOST_NAMES]),
        context=_within(told.context, MOST_TOKENS),
        seats=_within(told.seats, MOST_SEATS),
        version=told.version[:64],
    )


def _within(value: int | None, most: int) -> int | None:
    return value if value is not None and 0 < value <= most else None


# -- OpenAI's list of models, with what servers add to it ------------------------------------------------

#: The same number under the names that servers give it.
_CONTEXT_NAMES = (
    "max_model_len",
    "context_length",
    "max_context_length",
    "context_window",
    "max_input_tokens",
)


def openai_models(page: Any, model: str) -> Told:
    """`/v1/models`: names, and of the model in question how much fits."""
    entries = [one for one in page["data"] if isinstance(one, dict) and isinstance(one.get("id"), str)]
    names = [name for entry in entries for name in (entry["id"], *_texts(entry.get("aliases")))]
    own = next((one for one in entries if is_named(model, (one["id"], *_texts(one.get("aliases"))))), None)
    if own is None and len(entries) == 1:
        own = entries[0]
    adapters = () if own is None else (one["id"] for one in entries if one.get("parent") == own["id"])
    return Told(
        tuple(dict.fromkeys(_short(name) for name in names)),
        None if own is None else _context_of(own),
        can={} if own is None else _modalities(own),
        adapters=frozenset(name[:LONGEST_NAME] for name in islice(adapters, MOST_NAMES)),
    )


def _context_of(entry: Mapping[str, Any]) -> int | None:
    meta = entry.get("meta")
    told = [entry.get(name) for name in _CONTEXT_NAMES]
    if isinstance(meta, dict):
        told.append(meta.get("n_ctx"))
    return next((one for one in told if type(one) is int and one > 0), None)


def _modalities(entry: Mapping[str, Any]) -> dict[Ability, bool]:
    """What llama-server and OpenRouter say of what goes in."""
    architecture = entry.get("architecture")
    modalities = architecture.get("input_modalities") if isinstance(architecture, dict) else None
    if not isinstance(modalities, list):
        return {}
    return {Ability.VISION: "image" in modalities, Ability.AUDIO: "audio" in modalities}


def is_named(model: str, names: Iterable[str]) -> bool:
    """Whether `model` is one of these names; Ollama's have a tag that may be left out."""
    return any(name == model or name == f"{model}:latest" for name in names)


def _short(name: str) -> str:
    """Gemini puts its collection in front of each name, which requests need not have."""
    return name.removeprefix("models/")


def _texts(values: Any) -> Sequence[str]:
    return [one for one in values if isinstance(one, str)] if isinstance(values, list) else ()


def _count(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None


def version(page: Any, model: str) -> Told:
    """`/version` and `/api/version`: vLLM's and Ollama's."""
    return Told(version=str(page["version"]))


# -- single servers --------------------------------------------------------------------------------------


def llama_props(page: Any, model: str) -> Told:
    """`/props` of llama-server. Its `n_ctx` is that of one slot."""
    can: dict[Ability, bool] = {}
    modalities, caps = page.get("modalities"), page.get("chat_template_caps")
    if isinstance(modalities, dict):
        can |= {
            Ability.VISION: modalities.get("vision") is True,
            Ability.AUDIO: modalities.get("audio") is True,
        }
    if isinstance(caps, dict) and isinstance(caps.get("supports_tools"), bool):
        can[Ability.TOOLS] = caps["supports_tools"]
    settings = page.get("default_generation_settings")
    context = _count(settings.get("n_ctx")) if isinstance(settings, dict) else None
    return Told(
        context=context,
        seats=_count(page.get("total_slots")),
        can=can,
        version=str(page.get("build_info", "")),
    )


def sglang_model(page: Any, model: str) -> Told:
    """`/model_info`: whether it generates or embeds, and what it can look at."""
    can: dict[Ability, bool] = {}
    generates = page.get("is_generation")
    if isinstance(generates, bool):
        can |= {Ability.CHAT: generates, Ability.COMPLETIONS: generates, Ability.EMBEDDINGS: not generates}
    for name, ability in (
        ("has_image_understanding", Ability.VISION),
        ("has_audio_understanding", Ability.AUDIO),
    ):
        if isinstance(page.get(name), bool):
            can[ability] = page[name]
    return Told(can=can)


def sglang_server(page: Any, model: str) -> Told:
    """`/server_info`: its flags. Without a parser a call of a tool comes as text."""
    can = {Ability.TOOLS: bool(page["tool_call_parser"])} if "tool_call_parser" in page else {}
    return Told(
        context=_count(page.get("context_length")) or _count(page.get("max_req_input_len")),
        seats=_count(page.get("max_running_requests")),
        can=can,
        version=str(page.get("version", "")),
    )


def ollama_show(page: Any, model: str) -> Told:
    """`/api/show`: capabilities of the model, and the window where its file sets one.

    The `context_length` of `model_info` is what it was trained for, and not what it is served with.
    """
    capabilities = page.get("capabilities")
    can: dict[Ability, bool] = {}
    if isinstance(capabilities, list):
        generates = "completion" in capabilities
        can = {
            Ability.CHAT: generates,
            Ability.COMPLETIONS: generates,
            Ability.EMBEDDINGS: "embedding" in capabilities,
            Ability.TOOLS: "tools" in capabilities,
            Ability.VISION: "vision" in capabilities,
        }
    window = None
    for line in str(page.get("parameters") or "").splitlines():
        words = line.split()
        if len(words) == 2 and words[0] == "num_ctx" and words[1].isdecimal():
            window = int(words[1][:12])
    return Told(context=window, can=can)


def ollama_running(page: Any, model: str) -> Told:
    """`/api/ps`: the window that a loaded model really has; a longer prompt is cut without a word."""
    for one in page["models"]:
        if is_named(model, (str(one.get("name", "")), str(one.get("model", "")))):
            return Told(context=_count(one.get("context_length")))
    return NOTHING_TOLD


def ollama_tags(page: Any, model: str) -> Told:
    """`/api/tags`: what it has on its disk."""
    return Told(tuple(str(one["name"]) for one in page["models"]))


def tgi_info(page: Any, model: str) -> Told:
    """`/info` of TGI, and of TEI, which embeds."""
    can: dict[Ability, bool] = {}
    kind = page.get("model_type")
    if isinstance(kind, dict):  # TEI's: embedding, classifier or reranker
        embeds = "embedding" in kind
        can = {Ability.CHAT: False, Ability.COMPLETIONS: False, Ability.EMBEDDINGS: embeds}
        # It has rankings, but under other names than ours: /rerank and /predict.
        can |= {Ability.SCORES: False, Ability.LABELS: False}
    elif "max_total_tokens" in page or "max_input_tokens" in page:
        can = {Ability.EMBEDDINGS: False}
    context = _count(page.get("max_total_tokens")) or _count(page.get("max_input_length"))
    return Told(
        context=context,  # `max_concurrent_requests` is how many may wait, and not how many are worked on
        can=can,
        version=str(page.get("version", "")),
    )


def weighbridge_load(page: Any, model: str) -> Told:
    """`/v1/load` of one of ours."""
    said = page.get("abilities")
    can = (
        {one: said[one] for one in Ability if isinstance(said.get(one), bool)}
        if isinstance(said, dict)
        else {}
    )
    return Told(can=can, context=_count(page.get("max_model_len")), seats=_count(page.get("max_sequences")))


_MODELS = Page("/v1/models", openai_models)

#: The pages of each dialect, the most telling last: what a later one says of what it can counts more.
PAGES: Mapping[str, tuple[Page, ...]] = {
    "weighbridge": (_MODELS, Page("/v1/load", weighbridge_load)),
    "vllm": (_MODELS, Page("/version", version)),
    "sglang": (
        _MODELS,
        Page("/model_info", sglang_model, once="/get_model_info"),
        Page("/server_info", sglang_server, once="/get_server_info"),
    ),
    "llama-server": (_MODELS, Page("/props", llama_props)),
    "ollama": (
        _MODELS,
        Page("/api/tags", ollama_tags),
        Page("/api/version", version),
        Page("/api/show", ollama_show, asks="model"),
        Page("/api/ps", ollama_running),
    ),
    "tgi": (_MODELS, Page("/info", tgi_info)),
    "openai": (_MODELS,),
    "anthropic": (_MODELS,),
    "gemini": (_MODELS,),
    "azure": (_MODELS,),
}

#: What the compatible endpoints of clouds are documented to leave out: silently, so that no refusal would teach it.
KNOWN_OF: Mapping[str, Mapping[Ability, bool]] = {
    "anthropic": {
        Ability.CHAT: True,
        Ability.COMPLETIONS: False,
        Ability.EMBEDDINGS: False,
        Ability.TOOLS: True,
        Ability.VISION: True,
        Ability.SCHEMA: True,
        Ability.LOGPROBS: False,
        Ability.AUDIO: False,
    },
    "gemini": {Ability.CHAT: True, Ability.COMPLETIONS: False, Ability.TOOLS: True, Ability.VISION: True},
}
