"""What a replica can: a request goes where it can be served, over real sockets, whatever the replicas speak."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fleet.backends import Backend, Front, all_served, fleet, until
from weighbridge.errors import BadInput
from weighbridge.fleet.abilities.ability import NOTHING, Ability, needs_of
from weighbridge.fleet.abilities.known import LONGEST_REMEMBERED, KnownAbilities
from weighbridge.fleet.abilities.refusal import RefusalKind, read_refusal
from weighbridge.fleet.abilities.told import PAGES, Told, read_page
from weighbridge.fleet.config.load import parse_config
from weighbridge.wire.protocols.chat import ChatProtocol

CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"
VLLM = b"vllm:num_requests_running 0\nvllm:num_requests_waiting 0\n"
TOOLS = [{"type": "function", "function": {"name": "scale"}}]
PICTURE = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}]


def listing(*names: str, **more: Any) -> dict[str, Any]:
    return {"object": "list", "data": [{"id": name, "object": "model", **more} for name in names]}


def vllm(name: str, served: str = "m", context: int | None = None, **fields: Any) -> Backend:
    more = {} if context is None else {"max_model_len": context}
    pages = {"/v1/models": listing(served, **more), "/version": {"version": "0.32.0"}}
    return Backend(name, dialect="vllm", page=VLLM, pages=pages, **fields)


def refusing(field: str, status: int, message: str) -> Any:
    """Refuses requests that have a field, or go to a path that has the word in it."""

    def refuse(path: str, call: dict[str, Any]) -> tuple[int, Any] | None:
        return (status, {"error": {"message": message}}) if field in call or field in path else None

    return refuse


async def statuses(front: Front, count: int, path: str = CHAT, **fields: Any) -> list[int]:
    found = []
    for _ in range(count):
        async with front.post(path, **fields) as answer:
            await answer.read()
            found.append(answer.status)
    return found


async def replicas(front: Front) -> dict[str, Any]:
    load = await front.get("/v1/load")
    return {one["name"]: one for model in load["models"].values() for one in model["replicas"]}


# -- over sockets ----------------------------------------------------------------------------------------


async def test_a_long_prompt_goes_to_the_replica_whose_pages_tell_of_room() -> None:
    small, large = vllm("small", context=64), vllm("large", context=8192)
    async with fleet(small, large) as front:
        assert await statuses(front, 6, messages=[{"role": "user", "content": "weigh " * 400}]) == [200] * 6
        assert not small.calls
        assert len(large.calls) == 6
        assert (await replicas(front))["small"]["context"] == 64


async def test_a_context_refusal_is_tried_on_another_one_and_its_limit_learned() -> None:
    message = "This model's maximum context length is 64 tokens. However, you requested 900 tokens"
    small, large = vllm("small"), vllm("large", usage={"prompt_tokens": 900})
    small.refuses = lambda path, call: (
        (400, {"error": {"message": message}}) if len(json.dumps(call)) > 600 else None
    )
    long = [{"role": "user", "content": "weigh " * 400}]
    async with fleet(small, large, model="    policy: round_robin") as front:
        assert await statuses(front, 6, messages=long) == [200] * 6
        assert len(small.calls) == 1
        assert (await replicas(front))["small"]["context"] == 64
        assert await statuses(front, 4, max_tokens=8) == [200] * 4
        assert len(small.calls) > 1, "short ones still go there"


async def test_an_endpoint_that_one_replica_lacks_is_found_at_another_and_remembered() -> None:
    lacks = Backend("lacks", refuses=refusing("embeddings", 501, "this server does not embed"))
    other = Backend("other", refuses=refusing("embeddings", 404, "Not Found"))
    has = Backend("has")
    async with fleet(lacks, other, has, model="    policy: round_robin") as front:
        assert await statuses(front, 9, EMBEDDINGS) == [200] * 9
        assert len(lacks.paths) == len(other.paths) == 1
        assert (await replicas(front))["lacks"]["abilities"]["embeddings"] is False
        assert await statuses(front, 3) == [200] * 3


@pytest.mark.parametrize(
    ("field", "value", "status", "message"),
    [
        ("tools", TOOLS, 400, '"auto" tool choice requires --enable-auto-tool-choice to be set'),
        ("tools", TOOLS, 400, "error while rendering the template"),
        ("response_format", {"type": "json_schema", "json_schema": {}}, 422, "that is beyond this server"),
        ("logprobs", True, 500, "logprobs are not supported by this server"),
    ],
)
async def test_what_one_replica_refuses_and_another_serves_goes_there(
    field: str, value: Any, status: int, message: str
) -> None:
    lacks, has = Backend("lacks", refuses=refusing(field, status, message)), Backend("has")
    async with fleet(lacks, has, model="    policy: round_robin") as front:
        assert await statuses(front, 6, **{field: value}) == [200] * 6
        assert len(lacks.calls) == 1
        assert await statuses(front, 4) == [200] * 4
        assert len(lacks.calls) == 3, "others still go there"


async def test_a_replica_without_a_chat_template_gets_no_chats_and_completions_still() -> None:
    """As vLLM serves a model whose tokenizer has none: of three replicas it failed a third of all chats."""

    def refuse(path: str, call: dict[str, Any]) -> tuple[int, Any] | None:
        return (400, {"error": {"message": NO_TEMPLATE, "code": 400}}) if path == CHAT else None

    lacks, has = Backend("lacks", refuses=refuse), Backend("has")
    async with fleet(lacks, has, model="    policy: round_robin") as front:
        assert await statuses(front, 6) == [200] * 6
        assert len(lacks.paths) == 1
        assert (await replicas(front))["lacks"]["abilities"]["chat"] is False
        assert await statuses(front, 4, "/v1/completions", prompt="A") == [200] * 4
        assert lacks.paths.count("/v1/completions") == 2


async def test_a_request_that_is_wrong_everywhere_teaches_nothing() -> None:
    """Whoever sends it could say in it what replicas lack."""
    wrong = refusing("tools", 400, "tools.0.name: does not support tools and a context length of 3")
    one, other = Backend("one", refuses=wrong), Backend("other", refuses=wrong)
    async with fleet(one, other) as front:
        assert set(await statuses(front, 3, tools=TOOLS)) == {400}
        assert all(one["abilities"].get("tools") is None for one in (await replicas(front)).values())
        one.refuses = other.refuses = None
        assert await statuses(front, 2, tools=TOOLS) == [200] * 2


async def test_what_nobody_can_is_refused_with_the_name_of_who_could() -> None:
    blind, seeing = Backend("blind"), Backend("seeing")
    config = (
        "health: {{interval: 0.05}}\nmodels:\n  m:\n    replicas:\n"
        "      - {{name: blind, url: '{0}', dialect: weighbridge, abilities: {{vision: false}}}}\n"
        "  big:\n    replicas:\n"
        "      - {{name: seeing, url: '{1}', dialect: weighbridge, abilities: {{vision: true}}}}\n"
    )
    async with all_served((blind, seeing)), fleet(config=config.format(blind.url, seeing.url)) as front:
        message = [{"role": "user", "content": PICTURE}]
        async with front.post(messages=message) as answer:
            error = (await answer.json())["error"]
        assert answer.status == 400
        assert error["code"] == "no_replica_can"
        assert error["param"] == "messages"
        assert "blind lacks pictures (by its `abilities:`)" in error["message"]
        assert "ask for 'big'" in error["message"]
        assert await statuses(front, 1, messages=message, model="big") == [200]
        assert not blind.calls
        assert await statuses(front, 1) == [200]


async def test_pictures_go_to_whoever_is_known_to_see() -> None:
    """A server may leave a picture out without a word, so that whoever says nothing of it is asked last."""
    llama = {"total_slots": 4, "modalities": {"vision": True}, "default_generation_settings": {"n_ctx": 4096}}
    seeing = Backend("seeing", dialect="llama-server", pages={"/props": llama, "/slots": []})
    silent = Backend("silent", dialect="openai")
    async with fleet(seeing, silent, model="    policy: round_robin") as front:
        assert await statuses(front, 4, messages=[{"role": "user", "content": PICTURE}]) == [200] * 4
        assert len(seeing.calls) == 4
        assert not silent.calls
        seeing_now = (await replicas(front))["seeing"]
        assert seeing_now["abilities"]["vision"] is True
        assert seeing_now["context"] == 4096


async def test_another_model_behind_an_address_is_held_and_said() -> None:
    served, moved = vllm("served"), vllm("moved", served="other-model")
    moved.refuses = refusing("model", 404, "The model `m` does not exist.")
    async with fleet(served, moved) as front:
        assert await statuses(front, 4) == [200] * 4
        assert not moved.calls
        shown = (await replicas(front))["moved"]
        assert shown["standing"] == "misconfigured"
        assert "'other-model'" in shown["why"]
        moved.pages["/v1/models"], moved.refuses = listing("m"), None
        await until(lambda: len(moved.asked) > 20 or front.gateway.member("moved")[1].fault == "")
        await until(lambda: front.gateway.member("moved")[1].usable(front.gateway.clock()))


async def test_a_replica_that_does_not_know_its_model_is_held_where_no_page_tells() -> None:
    right = Backend("right", dialect="openai")
    wrong = Backend("wrong", dialect="openai")
    wrong.refuses = refusing("model", 404, "model 'm' not found")
    async with fleet(right, wrong, model="    policy: round_robin") as front:
        assert await statuses(front, 6) == [200] * 6
        assert len(wrong.calls) == 1
        assert (await replicas(front))["wrong"]["standing"] == "misconfigured"


async def test_a_name_that_is_left_out_is_the_one_that_the_server_has() -> None:
    one = vllm("one", served="m")
    async with fleet(one) as front:
        assert await statuses(front, 1, model="other") == [200]
        assert one.calls[0]["model"] == "m"


async def test_llama_server_as_people_start_it_comes_up() -> None:
    slots = [{"id": 0, "is_processing": True}, {"id": 1, "is_processing": False}]
    one = Backend(
        "one",
        dialect="llama-server",
        pages={"/metrics": (501, {}), "/slots": slots, "/props": {"total_slots": 2}},
    )
    closed = {"/metrics": (501, {}), "/slots": (501, {})}
    other = Backend("other", dialect="llama-server", pages=closed)
    async with fleet(one, other) as front:
        await until(lambda: front.gateway.member("other")[1].heard)
        assert front.gateway.member("one")[1].last_report.running_requests == 1
        assert front.gateway.member("one")[1].state.experience.seats.count == 2
        assert await statuses(front, 2) == [200] * 2


# -- what is needed --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, set()),
        ({"tools": TOOLS}, {Ability.TOOLS}),
        ({"tools": TOOLS, "tool_choice": "none"}, set()),
        ({"tools": []}, set()),
        ({"response_format": {"type": "text"}}, set()),
        ({"response_format": {"type": "json_object"}}, {Ability.SCHEMA}),
        ({"structured_outputs": {"regex": "a+"}}, {Ability.SCHEMA}),
        ({"logprobs": False}, set()),
        ({"logprobs": True}, {Ability.LOGPROBS}),
        ({"messages": [{"role": "user", "content": "image_url"}]}, set()),
        ({"messages": [{"role": "user", "content": PICTURE}]}, {Ability.VISION}),
    ],
)
def test_what_a_request_needs(fields: dict[str, Any], wanted: set[Ability]) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], **fields}
    ask = ChatProtocol().read(json.dumps(body).encode())
    assert needs_of(ask.path, ask.fields) == wanted | {Ability.CHAT}


# -- what refusals mean ----------------------------------------------------------------------------------

ALL = frozenset(Ability)
#: What vLLM 0.32 says to every chat where its model's tokenizer has no template.
NO_TEMPLATE = (
    "As of transformers v4.44, default chat template is no longer allowed, so you must provide a chat template if the "
    "tokenizer does not define one."
)


@pytest.mark.parametrize(
    ("status", "body", "kind", "lacks", "context"),
    [
        # llama-server, as it answers
        (501, {"error": {"code": 501, "message": "does not support embeddings."}}, "endpoint", "chat", None),
        (500, {"error": {"message": "image input is not supported - hint: mmproj"}}, "ability", "vision", None),
        (400, {"error": {"type": "exceed_context_size_error", "n_ctx": 512, "message": "request"}}, "context", "", 512),
        # vLLM
        (404, {"object": "error", "message": "The model `m` does not exist.", "code": 404}, "model", "", None),
        (400, {"error": {"message": "m is not a multimodal model"}}, "ability", "vision", None),
        (400, {"error": {"message": "maximum context length is 2048 tokens."}}, "context", "", 2048),
        (404, {"detail": "Not Found"}, "endpoint", "chat", None),
        (400, {"error": {"message": NO_TEMPLATE, "type": "BadRequestError", "code": 400}}, "ability", "chat", None),
        # SGLang, TGI
        (400, {"message": "(99 tokens) is longer than the model's context length (64 tokens)"}, "context", "", 64),
        (422, {"error": "`inputs` must have less than 1024 tokens. Given: 2000"}, "context", "", 1024),
        # Ollama
        (404, {"error": {"message": "model 'm' not found"}}, "model", "", None),
        (400, {"error": "registry.ollama.ai/library/m does not support tools"}, "ability", "tools", None),
        (400, {"error": '"all-minilm" does not support chat'}, "ability", "chat", None),
        (400, {"error": '"all-minilm" does not support generate'}, "ability", "completions", None),
        # clouds
        (404, {"error": {"code": "DeploymentNotFound", "message": "does not exist"}}, "model", "", None),
        (404, {"error": {"code": "404", "message": "Resource not found"}}, "endpoint", "chat", None),
        (404, {"type": "error", "error": {"type": "not_found_error", "message": "model: claude"}}, "model", "", None),
        (404, [{"error": {"message": "models/m is not found for API version v1"}}], "model", "", None),
        (404, {"error": {"message": "not supported in the endpoint", "param": "model"}}, "endpoint", "chat", None),
        (400, {"error": {"code": "context_length_exceeded", "message": "too long"}}, "context", "", None),
        (400, {"error": {"message": "prompt is too long: 210000 tokens > 200000 maximum"}}, "context", "", 200000),
    ],
)  # fmt: skip
def test_what_a_refusal_means(status: int, body: Any, kind: str, lacks: str, context: int | None) -> None:
    refusal = read_refusal(status, json.dumps(body).encode(), CHAT, ALL - {Ability.FORCED_TOOLS})
    assert refusal is not None
    assert (refusal.kind.value, " ".join(refusal.lacks), refusal.context) == (kind, lacks, context)


@pytest.mark.parametrize("status", [200, 401, 403, 408, 409, 429, 502, 503])
def test_other_statuses_are_no_refusals(status: int) -> None:
    assert read_refusal(status, b'{"error": {"message": "tools are not supported"}}', CHAT, ALL) is None


def test_a_plain_bad_request_is_the_clients_own() -> None:
    assert (
        read_refusal(400, b'{"error": {"message": "temperature"}}', CHAT, frozenset({Ability.CHAT})) is None
    )
    failed = read_refusal(500, b'{"error": {"message": "out of memory"}}', CHAT, ALL)
    assert failed is None, "a server that fails is none that refuses"


@given(st.integers(100, 599), st.binary(max_size=300), st.sets(st.sampled_from(Ability)))
def test_any_bytes_are_some_refusal_or_none(status: int, body: bytes, needs: set[Ability]) -> None:
    refusal = read_refusal(status, body, CHAT, frozenset(needs))
    if refusal is not None:
        assert refusal.kind in RefusalKind
        assert refusal.lacks <= needs | {Ability.CHAT}
        assert refusal.context is None or refusal.context > 0


# -- what pages tell -------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.floats(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["data", "id", "meta", "n_ctx", "modalities", "capabilities", "models", "name", "x"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(json_values)
def test_no_page_breaks_its_reader(page: Any) -> None:
    for pages in PAGES.values():
        for one in pages:
            told = read_page(one, json.dumps(page).encode(), "m")
            assert isinstance(told, Told)
            assert told.context is None or told.context > 0


def test_pages_as_servers_write_them() -> None:
    def told(dialect: str, **answers: Any) -> Told:
        found = Told()
        for page in PAGES[dialect]:
            name = page.path.rpartition("/")[2]
            if name in answers:
                found = found.and_then(read_page(page, json.dumps(answers[name]).encode(), "m"))
        return found

    ollama = told(
        "ollama",
        models=listing("m:latest"),
        show={"capabilities": ["completion", "tools"], "parameters": "stop x\nnum_ctx 8192"},
        ps={"models": [{"name": "m:latest", "context_length": 4096}]},
        version={"version": "0.40.12"},
    )
    assert ollama.context == 4096
    assert ollama.version == "0.40.12"
    assert ollama.models == ("m:latest",)
    assert ollama.can[Ability.TOOLS]
    assert not ollama.can[Ability.VISION]
    sglang = told(
        "sglang",
        models=listing("m", max_model_len=32768),
        model_info={"is_generation": True, "has_image_understanding": True},
        server_info={"tool_call_parser": None, "max_running_requests": 48, "version": "0.5.23"},
    )
    assert (sglang.context, sglang.seats) == (32768, 48)
    assert sglang.can[Ability.VISION]
    assert not sglang.can[Ability.TOOLS]
    assert not sglang.can[Ability.EMBEDDINGS]
    tgi = told("tgi", info={"max_total_tokens": 4096, "max_concurrent_requests": 128, "version": "3.3"})
    assert (tgi.context, tgi.seats, tgi.can) == (4096, None, {Ability.EMBEDDINGS: False})
    ours = told("weighbridge", load={"abilities": {"tools": False, "vision": 7, "flying": True}})
    assert ours.can == {Ability.TOOLS: False}
    router = told("openai", models=listing("m", context_length=131072))
    assert router.context == 131072
    assert told("gemini", models=listing("models/m")).models == ("m",)


# -- what is known ---------------------------------------------------------------------------------------

events = st.lists(
    st.tuples(
        st.sampled_from(["refuse", "answered", "tell", "away"]),
        st.sets(st.sampled_from(Ability), min_size=1),
        st.floats(0.0, 100.0),
    ),
    max_size=20,
)


@given(events, st.dictionaries(st.sampled_from(Ability), st.booleans()))
def test_what_is_stated_holds_and_no_refusal_lasts_for_ever(
    happened: list[tuple[str, set[Ability], float]], stated: dict[Ability, bool]
) -> None:
    known, now = KnownAbilities(stated), 0.0
    for kind, abilities, later in happened:
        now += later
        chosen = frozenset(abilities)
        if kind == "refuse":
            known.refuse(chosen, now, "refused")
        elif kind == "answered":
            known.answered(chosen)
        elif kind == "away":
            known.started_anew()
        else:
            known.tell(dict.fromkeys(chosen, later > 50.0))
        for one in Ability:
            single = frozenset({one})
            if one in stated:  # what is said of tools holds for calls that must be made
                assert known.can(one, now) is stated[one]
            assert known.lacks(single, now) == (known.can(one, now) is False)
            assert known.has_all(single, now) == (known.can(one, now) is True)
        assert known.lacks(NOTHING, now) is False
    known.tell({})
    late = now + LONGEST_REMEMBERED + 1.0
    in_full = {Ability.FORCED_TOOLS: stated[Ability.TOOLS]} | stated if Ability.TOOLS in stated else stated
    assert known.lacking(ALL, late) == {one for one, has in in_full.items() if not has}


# -- what is stated --------------------------------------------------------------------------------------


def _replica(more: str) -> Any:
    text = f"models:\n  m:\n    replicas:\n      - {{url: 'http://h:1', {more}}}\n"
    return parse_config(text, "w.yaml", Path()).models[0].replicas[0]


def test_abilities_are_stated_in_the_file() -> None:
    assert _replica("abilities: {tools: true, vision: false}").abilities == {
        Ability.TOOLS: True,
        Ability.VISION: False,
    }
    with pytest.raises(BadInput, match="is not a setting"):
        _replica("abilities: {tols: true}")
    with pytest.raises(BadInput, match="must be a mapping"):
        _replica("abilities: yes")


def test_a_call_that_must_be_made_needs_no_place_for_tools() -> None:
    """Ours constrain it, whatever the template has; of who says nothing of such calls, what it says of tools holds."""
    tool = [{"type": "function", "function": {"name": "weigh"}}]
    for choice, needed in (
        ("auto", Ability.TOOLS),
        ("required", Ability.FORCED_TOOLS),
        ({"type": "function", "function": {"name": "weigh"}}, Ability.FORCED_TOOLS),
    ):
        raw = {
            "tools": msgspec.Raw(json.dumps(tool).encode()),
            "tool_choice": msgspec.Raw(json.dumps(choice).encode()),
        }
        assert needs_of(CHAT, raw) == {Ability.CHAT, needed}
    forced = frozenset({Ability.FORCED_TOOLS})
    assert not KnownAbilities(told={Ability.TOOLS: False, Ability.FORCED_TOOLS: True}).lacks(forced, 0.0)
    assert KnownAbilities(told={Ability.TOOLS: False}).lacks(forced, 0.0)
