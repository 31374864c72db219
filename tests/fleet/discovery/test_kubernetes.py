"""Replicas that are the endpoints of a Kubernetes service: an API server over real sockets that plays a script."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fleet.backends import Backend, all_served, fleet, serving, until
from weighbridge.fleet.discovery import found, kubernetes
from weighbridge.fleet.discovery.found import FoundServer
from weighbridge.fleet.discovery.slices import Expired, MalformedSlices, SliceBook


def slice_of(name: str, version: int, *addresses: str, port: int = 8000, **conditions: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "resourceVersion": str(version), "labels": {"x": "y"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [one], "conditions": conditions, "nodeName": "n"} for one in addresses],
        "ports": [{"name": "metrics", "port": 9000}, {"name": "http", "port": port, "protocol": "TCP"}],
    }


class ApiServer:
    """Lists `slices`, and sends what is put into `events` to whoever watches; None ends the watch."""

    def __init__(self) -> None:
        self.slices: list[dict[str, Any]] = []
        self.version = 10
        self.events: asyncio.Queue[Any] = asyncio.Queue()
        self.asked: list[dict[str, str]] = []
        self.token = "t0ken"
        self.status = 200
        self.page = 100

    @property
    def watches(self) -> list[dict[str, str]]:
        return [one for one in self.asked if "watch" in one]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        query = {name: values[0] for name, values in parse_qs(scope["query_string"].decode()).items()}
        assert scope["path"] == "/apis/discovery.k8s.io/v1/namespaces/ns/endpointslices"
        assert query["labelSelector"] == "kubernetes.io/service-name=engines"
        allowed = dict(scope["headers"]).get(b"authorization") == f"Bearer {self.token}".encode()
        status = 401 if not allowed else self.status
        self.asked.append(query)
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        if status != 200:
            await send({"type": "http.response.body", "body": b'{"message": "no"}'})
        elif "watch" not in query:
            start = int(query.get("continue", "0"))
            more = {"continue": str(start + self.page)} if start + self.page < len(self.slices) else {}
            meta = {"resourceVersion": str(self.version), **more}
            page = {"kind": "EndpointSliceList", "metadata": meta, "items": self.slices[start:][: self.page]}
            await send({"type": "http.response.body", "body": json.dumps(page).encode()})
        else:
            await self._watch(receive, send)

    async def _watch(self, receive: Any, send: Any) -> None:
        gone = asyncio.create_task(self._gone(receive))
        while True:
            event = asyncio.create_task(self.events.get())
            await asyncio.wait({event, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not event.done():
                event.cancel()
                return
            if event.result() is None:
                break
            line = json.dumps(event.result()).encode() + b"\n"
            for piece in (line[:7], line[7:]):  # events come in whatever pieces
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        gone.cancel()
        await send({"type": "http.response.body", "body": b""})

    async def _gone(self, receive: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass


async def test_endpoints_are_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("LOOK_S", "RETRY_S"):
        monkeypatch.setattr(found, name, 0.05)
    monkeypatch.setattr(kubernetes, "SHORTEST_WATCH_S", 0.02)
    api, backend = ApiServer(), Backend("first")
    (tmp_path / "token").write_text("t0ken\n")
    async with all_served((backend,)), serving(api) as url:
        port = int(backend.url.rpartition(":")[2])
        names = {n: f"m-127.0.0.{n}:{port}" for n in range(1, 6)}
        api.slices = [slice_of(f"s{n}", n, f"127.0.0.{n}", port=port) for n in (1, 2, 3)]
        api.page = 2
        text = (
            "health: {interval: 0.05, slow_start: 0}\nmodels: {m: {discover: [{kubernetes: ns/engines, port: http, "
            f"api: '{url}', account: '{tmp_path}', replica: {{dialect: weighbridge}}}}]}}}}"
        )
        async with fleet(config=text) as front:
            members = front.gateway.pools["m"].members
            await until(lambda: set(members) == {names[1], names[2], names[3]})
            async with front.post() as answer:
                assert answer.status == 200
            await until(lambda: len(api.watches) == 1)
            assert api.watches[0]["resourceVersion"] == "10"
            # One more, one that is not ready, one that finishes what it has.
            api.events.put_nowait({"type": "ADDED", "object": slice_of("s4", 11, "127.0.0.4", port=port)})
            gone = slice_of("s1", 12, "127.0.0.1", port=port, ready=False)
            leaving = slice_of("s2", 13, "127.0.0.2", port=port, ready=False, serving=True, terminating=True)
            api.events.put_nowait({"type": "MODIFIED", "object": gone})
            api.events.put_nowait({"type": "MODIFIED", "object": leaving})
            await until(lambda: set(members) == {names[2], names[3], names[4]})
            await until(lambda: members[names[2]].draining)
            api.events.put_nowait({"type": "DELETED", "object": leaving})
            await until(lambda: set(members) == {names[3], names[4]})
            # A watch that ends is resumed from the last version, which a bookmark may have told.
            mark = {"metadata": {"resourceVersion": "77"}}
            api.events.put_nowait({"type": "BOOKMARK", "object": mark})
            api.events.put_nowait(None)
            await until(lambda: len(api.watches) == 2)
            assert api.watches[1]["resourceVersion"] == "77"
            # What is too long ago is listed anew.
            api.slices = [slice_of("s5", 80, "127.0.0.5", port=port)]
            api.version = 90
            api.events.put_nowait({"type": "ERROR", "object": {"kind": "Status", "code": 410}})
            await until(lambda: set(members) == {names[5]})
            await until(lambda: api.watches[-1]["resourceVersion"] == "90")
            # The token is renewed, and a server that has no right says which.
            api.token = "renewed"
            api.events.put_nowait(None)
            await until(lambda: "needs get, list and watch of endpointslices" in caplog.text)
            assert set(members) == {names[5]}
            (tmp_path / "token").write_text("renewed")
            looked = len(api.watches)
            await until(lambda: len(api.watches) > looked)
            api.events.put_nowait({"type": "ADDED", "object": slice_of("s1", 91, "127.0.0.1", port=port)})
            await until(lambda: set(members) == {names[1], names[5]})


WORDS = ["type", "object", "metadata", "endpoints", "ports", "addresses", "port", "items"]
SOMEWHAT = st.recursive(
    st.none() | st.text(max_size=3) | st.integers(),
    lambda inner: st.dictionaries(st.sampled_from(WORDS), inner | st.lists(inner, max_size=2), max_size=4),
)


@given(st.binary(max_size=100) | SOMEWHAT.map(lambda value: json.dumps(value).encode()))
def test_what_is_no_event_is_refused(line: bytes) -> None:
    book = SliceBook(None)
    for take in (book.heard, book.listed):
        try:
            take(line)
        except (MalformedSlices, Expired):
            continue
    assert all(one.port for one in book.found())


@pytest.mark.parametrize("port", [None, "http", 8000])
def test_a_port_that_is_none_of_tcp_is_nobodys(port: str | int | None) -> None:
    odd = slice_of("a", 1, "10.0.0.1")
    odd["ports"] = [
        {"name": "http", "port": 8000, "protocol": "UDP"},
        {"name": "http", "port": 99_999},
        {"name": "http", "port": 8000, "protocol": "SCTP"},
    ]
    book = SliceBook(port)
    page = {"metadata": {"resourceVersion": "1"}, "items": [odd, slice_of("b", 1, "10.0.0.2")]}
    book.listed(json.dumps(page).encode())
    assert {one.address for one in book.found()} == {"10.0.0.2"}


def test_who_serves_in_one_slice_serves() -> None:
    book = SliceBook("http")
    book.listed(json.dumps({"metadata": {"resourceVersion": "1"}, "items": [
        slice_of("a", 1, "10.0.0.1", ready=False, serving=True, terminating=True),
        slice_of("b", 1, "10.0.0.1", "not an address"),
        slice_of("c", 1, "10.0.0.2", ready=None, port=0),
        {**slice_of("d", 1, "10.0.0.3"), "addressType": "FQDN"},
    ]}).encode())  # fmt: skip
    assert book.found() == {FoundServer("10.0.0.1", 8000)}
