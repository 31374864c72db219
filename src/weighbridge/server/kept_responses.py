"""OpenAI's Responses with a memory: turns that a client names are put before its own, and answers are kept."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from weighbridge.server.endpoint import Endpoint, HttpService, json_bytes, json_response
from weighbridge.server.responses.jobs import BackgroundJob, EventLog
from weighbridge.server.responses.keeper import Conversation, ResponseKeeper
from weighbridge.server.responses.record import KeptResponse
from weighbridge.server.tokens import TokenEndpoints
from weighbridge.wire.answer import Send
from weighbridge.wire.ask import Ask, Placement
from weighbridge.wire.body import Receive, apart, read_body
from weighbridge.wire.errors import ApiError
from weighbridge.wire.headers import headers_of
from weighbridge.wire.protocol import EVENT_STREAM, AnswerWriter
from weighbridge.wire.protocols.response.items import REFERENCE, Item
from weighbridge.wire.protocols.response_events import ResponsesEncoder
from weighbridge.wire.protocols.responses import PATH, ResponseRequest, ResponsesProtocol, response_encoder

#: Responses under way in the background: of one tenant, and in all.
MAX_TENANT_JOBS, MAX_JOBS = 64, 512

COUNT_PATH = PATH + "/input_tokens"
#: The fields of a chat that are its prompt.
_PROMPT = ("model", "messages", "tools", "tool_choice", "chat_template_kwargs")

_encode, _decode = msgspec.json.encode, msgspec.json.decode


class KeptResponses(ResponsesProtocol):
    """The protocol of one server, and the endpoints of what it keeps."""

    def __init__(self, service: HttpService, keeper: ResponseKeeper) -> None:
        self._service = service
        self._keeper = keeper
        self._jobs: dict[str, BackgroundJob] = {}
        self._starting: Counter[str] = Counter()  # by tenant: jobs that wait to be admitted
        self._tokens = TokenEndpoints(service)

    # -- requests --------------------------------------------------------------------------------------

    async def recall(self, ask: Ask, owner: str | None) -> None:
        own: ResponseRequest = ask.own
        self._keeper.start()
        if own.background and own.written.store is False:
            message = "background: an answer that may not be kept cannot be fetched; leave `store` out"
            raise ApiError(400, message, param="background")
        if not own.is_remembered:
            return
        told = Conversation()
        if own.written.previous_response_id is not None:
            self._check_is_over(own.written.previous_response_id, owner)
            told = await self._keeper.conversation(own.written.previous_response_id, owner)
        own.previous = told.items
        if any(item["type"] == REFERENCE for item in own.items):
            own.take([await self._meant(item, owner, told) for item in own.items])
        ask.labels |= told.labels
        ask.off_disk = ask.off_disk or told.private
        if told.only_edge:
            ask.placement = Placement.ONLY_EDGE
        await apart(told.size + len(own.input), own.complete, ask)
        own.previous = []  # they are in the chat now, which may wait for long

    async def _meant(self, item: Item, owner: str | None, told: Conversation) -> Item:
        return item if item["type"] != REFERENCE else await self._keeper.item(item["id"], owner, told)

    def _check_is_over(self, name: str, owner: str | None) -> None:
        job = self._jobs.get(name)
        if job is not None and owner in (None, job.ask.tenant):
            message = f"previous_response_id: {name!r} is still being made; wait for it, or cancel it"
            raise ApiError(400, message, code="response_in_progress", param="previous_response_id")

    def encoder(self, ask: Ask) -> ResponsesEncoder:
        own: ResponseRequest = ask.own
        return response_encoder(ask, None if own.written.store is False else partial(self._keep, ask))

    def _keep(self, ask: Ask, response: dict[str, Any], log: EventLog | None = None) -> None:
        own: ResponseRequest = ask.own
        names = [item.get("id") for item in (*own.items, *response["output"])]
        record = KeptResponse(
            own.id,
            ask.tenant,
            own.made_at,
            _encode(response),
            own.input,
            own.written.previous_response_id,
            ask.labels,
            ask.placement is Placement.ONLY_EDGE,
            ask.off_disk,
            log.events if log is not None else None,
            tuple(name for name in names if isinstance(name, str)),
        )
        self._keeper.keep(record, own.written.store)

    # -- in the background -----------------------------------------------------------------------------

    async def detach(self, ask: Ask) -> AnswerWriter | None:
        own: ResponseRequest = ask.own
        if not own.background:
            return None
        self._check_room(ask.tenant)
        self._starting[ask.tenant] += 1
        try:
            job = await self._begun(ask)
        finally:
            self._starting[ask.tenant] -= 1
            self._starting = +self._starting
        self._jobs[own.id] = job
        job.start(self._ended)
        return partial(self._tell, job)

    async def _begun(self, ask: Ask) -> BackgroundJob:
        journey = await self._service.admit(ask)
        ask.tell(journey.ticket)
        try:
            return BackgroundJob(ask, journey, response_encoder(ask).writer, self._keeper.memory)
        except ApiError as error:  # no room for its first event: what was queued gives its place back
            await journey.close(str(error))
            raise

    def _check_room(self, tenant: str) -> None:
        running = self._starting + Counter(job.ask.tenant for job in self._jobs.values())
        if running[tenant] >= MAX_TENANT_JOBS or running.total() >= MAX_JOBS:
            message = (
                f"background: {running[tenant]} responses of this tenant are under way, and {running.total()} in all; "
                f"at most {MAX_TENANT_JOBS} and {MAX_JOBS} may be"
            )
            raise ApiError(429, message, code="too_many_responses", param="background", retry_after=5.0)

    def _ended(self, job: BackgroundJob) -> None:
        own: ResponseRequest = job.ask.own
        self._jobs.pop(own.id, None)
        job.give_back()
        self._keep(job.ask, job.writer.snapshot(), job.log)

    async def _tell(self, job: BackgroundJob, receive: Receive, send: Send) -> int:
        """Answer the request that began a job: with its events, or with what there is to fetch."""
        headers = [*self._service.limit_headers(job.ask.tenant)]
        headers.append((b"x-weighbridge-ticket", job.ticket_id.encode()))
        streamed = bool(job.ask.own.written.stream)
        response = _stream(job.log, -1) if streamed else json_response(job.writer.snapshot())
        response.raw_headers.extend(headers)
        await response({"type": "http", "asgi": {"spec_version": "2.3"}}, receive, send)
        return 200

    # -- endpoints -------------------------------------------------------------------------------------

    def endpoints(self) -> list[Endpoint]:
        one = PATH + "/{response}"
        return [
            Endpoint("GET", one, self.retrieve),
            Endpoint("DELETE", one, self.delete),
            Endpoint("POST", one + "/cancel", self.cancel),
            Endpoint("GET", one + "/input_items", self.input_items),
            Endpoint("POST", COUNT_PATH, self.count, speaks=self),
        ]

    async def count(self, request: Request) -> Response:
        """Tokens of the prompt that a request would be, the turns before it included."""
        body = await read_body(request.receive, headers_of(request.headers.raw), self._service.max_body)
        ask = await apart(len(body), self.read, body)
        await self.recall(ask, request.state.tenant)
        fields = {name: ask.fields[name] for name in _PROMPT if name in ask.fields}
        tokens = await self._tokens.counted(_encode(fields))
        return json_response({"object": "response.input_tokens", "input_tokens": tokens})

    async def retrieve(self, request: Request) -> Response:
        """A response as it is now, or with `stream=true` its events behind number `starting_after`."""
        name, job, record = await self._named(request)
        query = request.query_params
        if query.get("stream", "false").lower() not in ("true", "1"):
            return json_bytes(record.response) if record is not None else json_response(job.writer.snapshot())
        after = query.get("starting_after", "-1")
        if not (after.removeprefix("-").isdecimal() and len(after) <= 9 and int(after) >= -1):
            raise ApiError(400, "starting_after: must be an event's number", param="starting_after")
        if record is None:
            return _stream(job.log, int(after))
        if record.events is None:
            message = f"stream: the events of {name!r} are not kept: they are of responses that `background: true` made"
            raise ApiError(400, message, param="stream")
        return _stream(EventLog(record.events, over=True), int(after))

    async def delete(self, request: Request) -> Response:
        name, job, _ = await self._named(request)
        if job is not None:
            await job.cancel()
        await self._keeper.erase(name, request.state.tenant)
        return json_response({"id": name, "object": "response", "deleted": True})

    async def cancel(self, request: Request) -> Response:
        name, job, record = await self._named(request)
        if job is not None:
            await job.cancel()
            return json_response(job.writer.snapshot())
        if not record.shown["background"]:
            message = f"{name!r} was not made in the background; close its connection to cancel one like it"
            raise ApiError(400, message, param="response")
        return json_bytes(record.response)

    async def input_items(self, request: Request) -> Response:
        """The items that a request brought, the newest first unless `order=asc`."""
        _, job, record = await self._named(request)
        given = job.ask.own.input if record is None else record.input
        return json_bytes(await apart(len(given), _page, given, request.query_params))

    async def _named(self, request: Request) -> tuple[str, Any, Any]:
        """The job of a name, or what is kept of it. Raises ApiError 404 where the caller has none."""
        name, owner = request.path_params["response"], request.state.tenant
        job = self._jobs.get(name)
        if job is not None and owner in (None, job.ask.tenant):
            return name, job, None
        record = await self._keeper.find(name, owner) if job is None else None
        if record is None:
            message = (
                f"there is no response {name[:80]!r}; they are kept for an hour, or longer with `store: true`"
            )
            raise ApiError(404, message, code="response_not_found")
        return name, None, record

    async def close(self) -> None:
        """Cancel what still runs, and write down what is to be."""
        await asyncio.gather(*(job.cancel() for job in list(self._jobs.values())))
        await self._keeper.close()


def _stream(log: EventLog, after: int) -> Response:
    headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
    return StreamingResponse(log.after(after), media_type=EVENT_STREAM, headers=headers)


def _page(given: bytes, query: Any) -> bytes:
    return _encode(page(_decode(given), query))


def page(items: list[Item], query: Any) -> dict[str, Any]:
    """Some of the items as a list. Raises ApiError naming the parameter that is wrong."""
    order, limit, after = query.get("order", "desc"), query.get("limit", "20"), query.get("after") or None
    if order not in ("asc", "desc"):
        raise ApiError(400, "order: must be asc or desc", param="order")
    if not (limit.isdecimal() and len(limit) <= 3 and 1 <= int(limit) <= 100):
        raise ApiError(400, "limit: must be a number from 1 to 100", param="limit")
    ordered = items if order == "asc" else items[::-1]
    if after is not None:
        position = next((index for index, item in enumerate(ordered) if item["id"] == after), None)
        if position is None:
            raise ApiError(400, f"after: there is no item {after[:80]!r} in it", param="after")
        ordered = ordered[position + 1 :]
    shown = ordered[: int(limit)]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else "",
        "last_id": shown[-1]["id"] if shown else "",
        "has_more": len(ordered) > len(shown),
    }
