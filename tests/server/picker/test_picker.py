"""Proposal 004 of the Gateway API inference extension, case by case, over real sockets; what the fleet makes of it."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.fleet.backends import Backend, until
from tests.fleet.test_http_client import self_signed
from tests.server.picker.conversation import (
    CHATS,
    Talk,
    brief,
    chat,
    endpoint,
    events,
    picking,
)
from weighbridge.errors import BadInput
from weighbridge.server.picker.addresses import Addresses
from weighbridge.server.picker.listening import PickerServer
from weighbridge.server.picker.messages import (
    BUFFERED,
    NONE,
    NOT_SERVING,
    SERVING,
    STREAMED,
    HealthCheckRequest,
    HealthCheckResponse,
    ProcessingRequest,
)


def three() -> list[Backend]:
    return [Backend("a"), Backend("b"), Backend("c")]


async def test_a_request_goes_to_an_endpoint_that_header_and_metadata_name_alike() -> None:
    backends = three()
    async with picking(*backends) as picker:
        talk = picker.talk()
        sent = chat(stream=True, temperature=0.5, unknown={"kept": [1]})
        await talk.ask(sent, pieces=3)
        picked = await talk.picked()
        places = {endpoint(one) for one in backends}
        assert len(picked.endpoints) == 3
        assert set(picked.endpoints) == places
        assert picked.headers["content-length"] == str(sum(map(len, picked.pieces)))
        asked = json.loads(sent)
        body = picked.body
        body.pop("weighbridge")  # what a server of ours is told beside
        assert body == asked  # and nothing that was not asked for: the answer goes by as it is
        head = await talk.stream(tokens=7, served=picked.endpoints[0])
        await talk.end()
        ticket = picker.ticket(head)
        assert head["x-weighbridge-replica"] == ticket.replica
        assert (ticket.output_tokens, ticket.finish_reason) == (7, "stop")


async def test_a_long_body_comes_back_in_pieces_that_envoy_takes() -> None:
    async with picking(Backend("a")) as picker:
        talk = picker.talk()
        long = [{"role": "user", "content": "word " * 60_000}]
        await talk.ask(chat(messages=long), pieces=9)
        picked = await talk.picked()
        assert max(map(len, picked.pieces)) <= 64 << 10
        assert picked.body["messages"] == long
        await talk.begin_answer(kind="application/json")
        answer = {"choices": [{"message": {"content": "x"}}], "usage": {"completion_tokens": 1}}
        await talk.more_answer(json.dumps(answer).encode(), ends=True)
        await talk.end()


async def test_only_endpoints_of_the_subset_are_picked() -> None:
    backends = three()
    async with picking(*backends) as picker:
        for one in backends:
            talk = picker.talk()
            await talk.ask(chat(), subset=[endpoint(one)])
            assert (await talk.picked()).endpoints == [endpoint(one)]
            talk.hang_up()


@pytest.mark.parametrize("subset", [[], ["10.9.8.7:8000"], ["no address"]])
async def test_a_subset_of_which_none_is_eligible_is_a_503(subset: list[str]) -> None:
    async with picking(Backend("a")) as picker:
        talk = picker.talk()
        await talk.ask(chat(), subset=subset)
        refusal = await talk.refused()
        assert refusal.status == 503
        assert refusal.body["error"]["code"] == "no_replica"
        assert int(refusal.headers["retry-after"]) >= 1


async def test_no_ready_endpoint_is_a_503_at_once() -> None:
    async with picking(Backend("a", load_status=500), wait=False) as picker:
        talk = picker.talk()
        await talk.ask(chat())
        assert (await asyncio.wait_for(talk.refused(), 5)).status == 503


async def test_a_full_queue_is_a_429() -> None:
    top, replica = "queue: {max_requests: 1}", ", capacity: {max_sequences: 1}"
    async with picking(Backend("a"), top=top, replica=replica) as picker:
        running, waiting, late = picker.talk(), picker.talk(), picker.talk()
        await running.ask(chat())
        await running.picked()
        await waiting.ask(chat())
        await until(lambda: len(picker.gateway.pools["m"].dispatcher.queue) == 1)
        await late.ask(chat())
        refusal = await late.refused()
        assert (refusal.status, refusal.body["error"]["code"]) == (429, "queue_full")
        running.hang_up()
        await waiting.picked()  # the seat is its own now
        waiting.hang_up()


async def test_who_hangs_up_while_it_waits_is_forgotten() -> None:
    async with picking(Backend("a"), replica=", capacity: {max_sequences: 1}") as picker:
        running, waiting = picker.talk(), picker.talk()
        await running.ask(chat())
        await running.picked()
        await waiting.ask(chat())
        queue = picker.gateway.pools["m"].dispatcher.queue
        await until(lambda: len(queue) == 1)
        waiting.hang_up()
        await until(lambda: len(queue) == 0)
        running.hang_up()


@pytest.mark.parametrize("answered", [False, True])
async def test_a_client_that_goes_away_frees_its_seat(answered: bool) -> None:
    async with picking(Backend("a")) as picker:
        talk = picker.talk()
        await talk.ask(chat(stream=True))
        await talk.picked()
        assert picker.requests() == {"a": 1}
        if answered:
            await talk.begin_answer()
            await talk.more_answer(b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n')
        talk.hang_up()
        await until(lambda: picker.requests() == {"a": 0})
        assert picker.gateway.member("a")[1].usable(picker.gateway.clock())  # it is not to blame


async def test_tokens_are_drawn_down_as_they_go_by() -> None:
    async with picking(Backend("a")) as picker:
        talk = picker.talk()
        await talk.ask(chat(stream=True, max_tokens=50))
        await talk.picked()
        state = picker.gateway.member("a")[1].state
        await talk.begin_answer()
        for count in range(1, 4):  # an event in two pieces is one event
            event = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
            await talk.more_answer(event[:20])
            await talk.more_answer(event[20:])
            await until(lambda count=count: state.produced == count)
        await talk.more_answer(b"data: [DONE]\n\n", ends=True)
        await talk.end()


async def test_an_endpoint_out_of_reach_is_known_by_who_served() -> None:
    backends = three()
    async with picking(*backends) as picker:
        talk = picker.talk()
        await talk.ask(chat(stream=True))
        first, second, _ = (await talk.picked()).endpoints
        head = await talk.stream(served=second)
        await talk.end()
        names = {endpoint(one): one.name for one in backends}
        ticket = picker.ticket(head)
        assert head["x-weighbridge-replica"] == ticket.replica == names[second]
        assert picker.gateway.member(names[first])[1].counts.failures == 1
        assert picker.gateway.member(names[second])[1].counts.finished == 1


async def test_no_fallbacks_where_none_are_wanted_or_the_body_would_be_another() -> None:
    async with picking(*three(), fallbacks=0) as picker:
        talk = picker.talk()
        await talk.ask(chat())
        assert len((await talk.picked()).endpoints) == 1
        talk.hang_up()
    backends = [Backend("a"), Backend("b", dialect="vllm", page=b"vllm:num_requests_running 0\n")]
    async with picking(*backends) as picker:
        talk = picker.talk()
        await talk.ask(chat())
        assert len((await talk.picked()).endpoints) == 1
        talk.hang_up()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (chat(messages="words"), 400),
        (chat(model="another"), 404),
        (chat(messages=[{"role": "user", "content": "x" * 70_000}]), 413),
    ],
)
async def test_a_bad_request_is_refused_in_words(body: bytes, status: int) -> None:
    async with picking(Backend("a"), top="max_body: 64KiB") as picker:
        talk = picker.talk()
        await talk.ask(body, pieces=3)
        refusal = await talk.refused()
        assert refusal.status == status
        assert refusal.body["error"]["message"]
        assert refusal.headers["content-type"] == "application/json"


async def test_a_body_may_come_in_one_piece_and_its_answer_be_looked_at_only() -> None:
    async with picking(Backend("a"), replica=", model: theirs") as picker:
        talk = picker.talk(BUFFERED, STREAMED)
        await talk.ask(chat(stream=True))
        picked = await talk.picked()
        assert picked.body["model"] == "theirs"
        assert picked.headers["content-length"] == str(len(picked.pieces[0]))
        head = await talk.stream(tokens=4)
        await talk.end()
        assert picker.ticket(head).output_tokens == 4


async def test_an_answer_that_is_not_shown_holds_its_seat_until_the_end() -> None:
    async with picking(Backend("a")) as picker:
        talk = picker.talk(answer_mode=NONE)
        await talk.ask(chat(stream=True))
        await talk.picked()
        await talk.begin_answer()
        await brief()
        assert picker.requests() == {"a": 1}
        await talk.call.done_writing()
        await talk.end()
        await until(lambda: picker.requests() == {"a": 0})
        assert picker.gateway.member("a")[1].counts.failures == 0


async def test_a_body_that_cannot_be_waited_for_is_a_fault_of_the_configuration() -> None:
    async with picking(Backend("a")) as picker:
        talk = picker.talk(STREAMED)
        await talk.ask(chat())
        refusal = await talk.refused()
        assert refusal.status == 500
        assert "request_body_mode" in refusal.body["error"]["message"]


async def test_an_older_envoy_says_nothing_of_modes_and_may_send_trailers() -> None:
    async with picking(Backend("a")) as picker:
        talk = picker.talk()
        await talk.ask(chat(), says_modes=False, trailers=True)
        assert (await talk.picked(trailers=True)).body["model"] == "m"
        talk.hang_up()


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/models"), ("POST", "/pooling")])
async def test_what_is_not_weighed_goes_to_the_least_busy(method: str, path: str) -> None:
    async with picking(*three()) as picker:
        busy, talk = picker.talk(), picker.talk()
        await busy.ask(chat())
        taken = (await busy.picked()).endpoints[0]
        await talk.ask(b"", path, method=method)
        assert (await talk.picked(with_body=False)).endpoints[0] != taken
        await talk.begin_answer(kind="application/json", ends=True)
        await talk.end()
        busy.hang_up()


async def test_words_that_only_the_replica_reads_go_by_untouched_and_are_weighed() -> None:
    body = {"model": "m", "max_tokens": 9, "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    sent = json.dumps(body, indent=1).encode()
    async with picking(Backend("a")) as picker:
        talk = picker.talk()
        await talk.ask(sent, "/v1/messages")
        assert b"".join((await talk.picked()).pieces) == sent
        head = await talk.begin_answer()
        for kind in ("message_start", "content_block_delta", "message_stop"):
            await talk.more_answer(f'event: {kind}\ndata: {{"type":"{kind}"}}\n\n'.encode())
        await talk.more_answer(b"", ends=True)
        await talk.end()
        ticket = picker.ticket(head)
        assert ticket.prompt_tokens > 0
        assert ticket.finish_reason == "stop"
        assert picker.gateway.member("a")[1].counts.failures == 0


async def test_a_shared_beginning_brings_requests_to_one_replica() -> None:
    async with picking(*three()) as picker:
        places = set()
        for question in range(6):
            system = {"role": "system", "content": "All of these rules hold. " * 200}
            talk = picker.talk()
            await talk.ask(chat(messages=[system, {"role": "user", "content": f"question {question}"}]))
            places.add((await talk.picked()).endpoints[0])
            await talk.begin_answer(kind="application/json")
            await talk.more_answer(b'{"choices": [{"message": {"content": "x"}}]}', ends=True)
            await talk.end()
        assert len(places) == 1


async def test_tenants_take_turns_by_the_name_that_the_gateway_gives_them() -> None:
    async with picking(Backend("a"), replica=", capacity: {max_sequences: 1}") as picker:
        first = picker.talk()
        await first.ask(chat())
        await first.picked()
        queue = picker.gateway.pools["m"].dispatcher.queue
        lines = []
        for tenant in ("many", "many", "many", "one"):
            lines.append(picker.talk())
            await lines[-1].ask(chat(), headers={"x-gateway-inference-fairness-id": tenant})
            await until(lambda: len(queue) == len(lines))
        order: list[str] = []

        async def served(line: Any, name: str) -> None:
            await line.picked()
            order.append(name)
            line.hang_up()

        names = ("many", "many", "many", "one")
        waits = [asyncio.create_task(served(line, name)) for line, name in zip(lines, names, strict=True)]
        first.hang_up()
        await asyncio.gather(*waits)
        assert order.index("one") <= 1


async def test_keys_are_asked_for_and_replicas_get_their_own() -> None:
    top = "tenants: {team: {keys: [{key: a-key-of-the-team}]}}"
    async with picking(Backend("a", key="theirs"), top=top, replica=", key: theirs") as picker:
        talk = picker.talk()
        await talk.ask(chat())
        assert (await talk.refused()).status == 401
        talk = picker.talk()
        sent = {"authorization": "Bearer a-key-of-the-team", "x-api-key": "y", "accept-encoding": "gzip"}
        await talk.ask(chat(), headers={**sent, "x-weighbridge-session": "s"})
        picked = await talk.picked()
        assert picked.headers["authorization"] == "Bearer theirs"
        assert sorted(picked.removed) == ["accept-encoding", "x-api-key", "x-weighbridge-session"]
        talk.hang_up()


async def test_who_asks_is_nothing_to_a_replica_either_where_nothing_is_weighed() -> None:
    top = "tenants: {team: {keys: [{key: a-key-of-the-team}]}}"
    async with picking(Backend("a"), top=top) as picker:
        talk = picker.talk()
        sent = {
            "authorization": "Bearer a-key-of-the-team",
            "x-weighbridge-tenant": "other",
            "x-api-key": "y",
        }
        await talk.ask(b"", "/v1/models", method="GET", headers=sent)
        picked = await talk.picked(with_body=False)
        assert sorted(picked.removed) == ["authorization", "x-api-key", "x-weighbridge-tenant"]
        talk.hang_up()


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat%2Fcompletions", "/%761/chat/completions", "/v1/%63hat/completions?a=b", "//v1/chat/completions",
        "/v1//chat/completions/", "/v1/./chat/completions", "/v1/x/../chat/completions", "/v1/chat/completions#x",
    ],
)  # fmt: skip
async def test_a_chat_is_weighed_however_its_path_is_written(path: str) -> None:
    async with picking(Backend("a")) as picker:
        talk = picker.talk()
        await talk.ask(chat(), path)
        assert (await talk.picked()).body["model"] == "m"
        head = await talk.begin_answer(kind="application/json", ends=True)
        await talk.end()
        assert picker.ticket(head).prompt_tokens > 0


async def test_an_error_of_a_replica_goes_by_and_is_noted() -> None:
    async with picking(*three()) as picker:
        talk = picker.talk()
        await talk.ask(chat())
        await talk.picked()
        head = await talk.begin_answer(503, "application/json")
        await talk.more_answer(b'{"error": {"message": "too busy"}}', ends=True)
        await talk.end()
        member = picker.gateway.member(head["x-weighbridge-replica"])[1]
        assert member.counts.failures == 1
        assert picker.ticket(head).finish_reason == "error"


async def test_health_is_told_in_grpcs_own_way() -> None:
    async with picking(Backend("a")) as picker:
        as_bytes = HealthCheckRequest.SerializeToString, HealthCheckResponse.FromString
        check = picker.channel.unary_unary("/grpc.health.v1.Health/Check", *as_bytes)
        watch = picker.channel.unary_stream("/grpc.health.v1.Health/Watch", *as_bytes)
        services = ("", "liveness", "readiness", "envoy.service.ext_proc.v3.ExternalProcessor")
        for service in services:
            assert (await check(HealthCheckRequest(service=service))).status == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await check(HealthCheckRequest(service="something.else"))
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
        watched = watch(HealthCheckRequest(service="readiness"))
        assert (await watched.read()).status == SERVING
        picker.gateway.draining = True
        told = [(await check(HealthCheckRequest(service=service))).status for service in services]
        assert told == [SERVING, SERVING, NOT_SERVING, NOT_SERVING]
        assert (await watched.read()).status == NOT_SERVING
        watched.cancel()
        talk = picker.talk()
        await talk.ask(chat(), CHATS)
        assert (await talk.refused()).status == 503


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
async def test_envoy_may_ask_over_tls(tmp_path: Path) -> None:
    certificate, _ = self_signed(tmp_path)
    async with picking(Backend("a"), certificate=(certificate, tmp_path / "key.pem")) as picker:
        trusted = grpc.ssl_channel_credentials(certificate.read_bytes())
        async with grpc.aio.secure_channel(f"localhost:{picker.server.port}", trusted) as channel:
            talk = Talk(channel)
            await talk.ask(chat(messages=[{"role": "user", "content": "word " * 50_000}], stream=True))
            assert len((await talk.picked()).pieces) > 1
            await talk.stream()
            await talk.end()


async def test_a_certificate_that_does_not_do_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nowhere\.pem"):
        async with picking(Backend("a"), certificate=(tmp_path / "nowhere.pem", tmp_path / "key.pem")):
            pass


async def test_a_port_that_is_taken_is_said() -> None:
    async with picking(Backend("a")) as picker:
        with pytest.raises(BadInput, match=f"cannot listen on 127.0.0.1:{picker.server.port}"):
            await PickerServer(picker.server._door, "127.0.0.1", picker.server.port, max_body=1).start()


async def test_pieces_that_came_together_are_all_counted() -> None:
    """They go by at once, and are looked at together."""
    async with picking(Backend("a")) as picker:
        talk = picker.talk()
        await talk.ask(chat(stream=True))
        await talk.picked()
        head = await talk.begin_answer()
        told = events(40)
        for event in told:
            message = ProcessingRequest()
            message.response_body.body = event
            await talk.call.write(message)
        for event in told:
            said = await talk.call.read()
            assert said.response_body.response.body_mutation.streamed_response.body == event
        await talk.more_answer(b"data: [DONE]\n\n", ends=True)
        await talk.end()
        ticket = picker.ticket(head)
        assert (ticket.output_tokens, ticket.finish_reason) == (40, "stop")


async def test_a_first_message_without_headers_ends_the_conversation() -> None:
    async with picking(Backend("a")) as picker:
        talk = picker.talk()
        message = ProcessingRequest()
        message.request_body.body = b"x"
        await talk.call.write(message)
        with pytest.raises(grpc.aio.AioRpcError):
            await talk.call.read()


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("http://10.0.0.1:8000", "10.0.0.1:8000"),
        ("http://10.0.0.1", "10.0.0.1:80"),
        ("https://[fd00::1]", "[fd00::1]:443"),
        ("http://localhost:8000", "127.0.0.1:8000"),
        ("http://no-such-host.invalid:8000", ""),
    ],
)
async def test_an_endpoint_is_an_address_and_a_port(url: str, found: str) -> None:
    addresses = Addresses(lambda: [url])
    await addresses.start()
    assert addresses.endpoint(url) == found
    await addresses.close()
