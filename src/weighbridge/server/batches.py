"""`/v1/files` and `/v1/batches`, in OpenAI's shapes."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from weighbridge.errors import BadInput, words_of
from weighbridge.fleet.config.keeping import KeepSettings
from weighbridge.server.batch.answering import LineAnswers
from weighbridge.server.batch.lines import restricted_models, unknown_endpoint, window_seconds
from weighbridge.server.batch.records import (
    BATCH,
    CANCELLING,
    IN_MEMORY,
    ON_DISK,
    PURPOSES,
    BatchRecord,
    CreateBatch,
    FileRecord,
)
from weighbridge.server.batch.runner import BatchWork
from weighbridge.server.batch.store import BatchStore, NoRoom, NoSuchRow
from weighbridge.server.batch.upload import boundary_of, read_form
from weighbridge.server.endpoint import Endpoint, HttpService, json_response
from weighbridge.state.believed_time import believed_time
from weighbridge.state.database import StateError
from weighbridge.wire.body import apart, decode, read_body
from weighbridge.wire.errors import ApiError
from weighbridge.wire.extension import our_headers
from weighbridge.wire.headers import OURS, Headers, headers_of
from weighbridge.wire.protocol import WireProtocol

log = logging.getLogger("weighbridge.server")

FILES, ALL_BATCHES = "/v1/files", "/v1/batches"
#: What lines of a batch may ask.
ASKED = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages")
#: Batches of a tenant that are not over.
MOST_OPEN = 32
#: Seconds between two looks at what has expired.
SWEEP_S = 30.0
#: Bytes of a form beside its file.
FORM_BYTES = 1 << 20
#: Headers of ours that say how all lines of a batch are to be treated, and those of them that restrict.
HEADERS = frozenset(OURS + name for name in ("labels", "placement", "max-usd", "route", "session", "tenant"))
RESTRICTING = frozenset(OURS + name for name in ("labels", "placement"))

_DAY = 86_400.0
T = TypeVar("T")


class Batches:
    """Files and batches of one server: in its memory, and in a file where one is configured."""

    def __init__(
        self,
        service: HttpService,
        protocols: Sequence[WireProtocol],
        clock: Callable[[], float],
        *,
        wall: Callable[[], float] = believed_time,
    ) -> None:
        """Raises BadInput for a file that cannot be used."""
        self._service = service
        self._wall = wall
        self._settings: KeepSettings = service.keeping
        self._keep_s = self._settings.batches_days * _DAY
        asked = [one for one in protocols if one.path in ASKED]
        self._known = {one.path for one in asked}
        self._answers = LineAnswers(service, asked, clock)
        self._clock = clock
        self._stores: dict[str, tuple[BatchStore, BatchWork]] = {}
        if self._settings.batches_file is not None:
            self._open(ON_DISK)
        self._sweeping: asyncio.Task[None] | None = None

    def _open(self, kept: str) -> tuple[BatchStore, BatchWork]:
        if kept not in self._stores:
            on_disk = kept == ON_DISK
            path = self._settings.batches_file if on_disk else None
            whole = self._settings.batches_disk if on_disk else self._settings.batches_memory
            store = BatchStore(path, tenant_bytes=max(whole // 8, 1), all_bytes=whole)
            runner = BatchWork(
                store,
                self._service,
                self._answers,
                self._keep_s,
                late_share=self._service.keeping.batch_late_share,
                clock=self._clock,
                wall=self._wall,
            )
            self._stores[kept] = store, runner
        return self._stores[kept]

    async def start(self) -> None:
        """Go on with the batches of before."""
        for _, runner in self._stores.values():
            runner.start()
            self._sweep_from_now_on()

    async def close(self) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.gather(self._sweeping, return_exceptions=True)
        for store, runner in self._stores.values():
            await runner.close()
            await asyncio.to_thread(store.close)

    def _sweep_from_now_on(self) -> None:
        if self._sweeping is None:
            self._sweeping = asyncio.create_task(self._sweep())

    async def _sweep(self) -> None:
        while True:
            for store, _ in list(self._stores.values()):
                try:
                    await asyncio.to_thread(store.purge, self._wall())
                except StateError as error:
                    log.error("files and batches that have expired could not be erased: %s", error)
            await asyncio.sleep(SWEEP_S)

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint("POST", FILES, self.upload),
            Endpoint("GET", FILES, self.list_files),
            Endpoint("GET", FILES + "/{file}", self.show_file),
            Endpoint("DELETE", FILES + "/{file}", self.delete_file),
            Endpoint("GET", FILES + "/{file}/content", self.content),
            Endpoint("POST", ALL_BATCHES, self.create),
            Endpoint("GET", ALL_BATCHES, self.list_batches),
            Endpoint("GET", ALL_BATCHES + "/{batch}", self.show_batch),
            Endpoint("POST", ALL_BATCHES + "/{batch}/cancel", self.cancel),
        ]

    # -- files -----------------------------------------------------------------------------------------

    async def upload(self, request: Request) -> Response:
        headers = headers_of(request.headers.raw)
        our_headers(headers)  # a misspelt restriction must not be ignored
        boundary = boundary_of(headers.get("content-type", ""))
        if boundary is None:
            raise ApiError(400, "send multipart/form-data with the fields `purpose` and `file`")
        most = self._settings.max_upload
        body = await read_body(request.receive, headers, most + FORM_BYTES)
        try:
            form = await apart(len(body), read_form, body, boundary)
        except ValueError as error:
            raise ApiError(400, f"{error}; send multipart/form-data as HTTP has it", param="file") from None
        del body
        purpose = form.fields.get("purpose")
        if purpose not in PURPOSES:
            message = f"purpose: must be {' or '.join(PURPOSES)}, which is all that files are for here"
            raise ApiError(400, message, param="purpose")
        if form.file is None:
            raise ApiError(400, "file: is missing; send the file's content in it", param="file")
        name, content = form.file
        if len(content) > most:
            message = f"file: has {len(content)} bytes; at most {most} can be uploaded"
            raise ApiError(413, message, code="file_too_large", param="file")
        now = self._wall()
        record = FileRecord(
            f"file-{uuid.uuid4().hex}",
            self._tenant(request, headers),
            name[:256],
            purpose,
            len(content),
            int(now),
            int(now + self._expiry(form.fields)),
        )
        kept = await self._place(content, purpose, headers)
        store, _ = self._open(kept)
        await self._stored(partial(store.add_file, record, content))
        self._sweep_from_now_on()
        return json_response(record.shown(kept))

    async def _place(self, content: bytes, purpose: str, headers: Headers) -> str:
        """Where a file is kept: nowhere but in memory what may have to stay off the disk."""
        if self._settings.batches_file is None:
            return IN_MEMORY
        restricted = any(headers.get(name) for name in RESTRICTING)
        if purpose != BATCH:
            return IN_MEMORY if restricted else ON_DISK
        named = await apart(len(content), restricted_models, content, self._service.max_body)
        may = named is not None and all(
            self._service.may_write(one, restricted or itself) for one, itself in named
        )
        return ON_DISK if may else IN_MEMORY

    def _expiry(self, fields: Mapping[str, str]) -> float:
        """Seconds until a file is erased: as its client says, within what the operator allows."""
        asked = fields.get("expires_after[seconds]")
        if asked is None:
            return self._keep_s
        if not (asked.isascii() and asked.isdigit() and len(asked) <= 9 and int(asked) >= 1):
            message = "expires_after.seconds: must be a number of seconds"
            raise ApiError(400, message, param="expires_after")
        return min(float(asked), self._keep_s)

    async def list_files(self, request: Request) -> Response:
        query, owner, now = request.query_params, request.state.tenant, self._wall()
        limit, order = _limit(query, 10_000, 10_000), query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise ApiError(400, "order: must be asc or desc", param="order")
        look = partial(
            BatchStore.files,
            tenant=owner,
            now=now,
            purpose=query.get("purpose"),
            limit=limit + 1,
            asc=order == "asc",
        )
        return await self._list(
            look, query.get("after") or None, limit, lambda one: one.created_at, order == "asc"
        )

    async def show_file(self, request: Request) -> Response:
        record, kept = await self._file(request)
        return json_response(record.shown(kept))

    async def delete_file(self, request: Request) -> Response:
        record, kept = await self._file(request)
        if not await self._stored(partial(self._open(kept)[0].remove_file, record.id)):
            message = f"a batch that is not over reads {record.id!r}; cancel the batch first"
            raise ApiError(409, message, code="file_in_use", param="file")
        return json_response({"id": record.id, "object": "file", "deleted": True})

    async def content(self, request: Request) -> Response:
        record, kept = await self._file(request)
        store, _ = self._open(kept)

        async def pieces() -> AsyncIterator[bytes]:
            number = 0
            while (piece := await self._stored(partial(store.piece, record.id, number))) is not None:
                yield piece
                number += 1

        headers = {"content-length": str(record.size)}
        return StreamingResponse(pieces(), media_type="application/octet-stream", headers=headers)

    async def _file(self, request: Request) -> tuple[FileRecord, str]:
        name = request.path_params["file"]
        record, kept = await self._find(request, partial(BatchStore.file, name=name, now=self._wall()))
        if record is None:
            message = (
                f"there is no file {name[:80]!r}; files are kept for {self._settings.batches_days:g} days"
            )
            raise ApiError(404, message, code="file_not_found", param="file")
        return record, kept

    # -- batches ---------------------------------------------------------------------------------------

    async def create(self, request: Request) -> Response:
        headers = headers_of(request.headers.raw)
        body = await read_body(request.receive, headers, self._service.max_body)
        asked, now = decode(body, CreateBatch), self._wall()
        if asked.endpoint not in self._known:
            raise ApiError(400, unknown_endpoint(asked.endpoint, self._known), param="endpoint")
        window = window_seconds(asked.completion_window)
        if window is None:
            message = "completion_window: must be a time such as 24h or 30m, of at most 7d"
            raise ApiError(400, message, param="completion_window")
        look = partial(BatchStore.file, name=asked.input_file_id, now=now)
        file, kept = await self._find(request, look)
        if file is None or file.purpose != BATCH:
            what = "there is no file" if file is None else "purpose `batch` is not that of the file"
            message = f"input_file_id: {what} {asked.input_file_id[:80]!r}; upload it with purpose `batch`"
            raise ApiError(400, message, code="file_not_found", param="input_file_id")
        our_headers(headers)
        ours = {name: value for name, value in headers.items() if name in HEADERS}
        if kept == ON_DISK and any(ours.get(name) for name in RESTRICTING):
            await self._check_may_stay(file)
        record = BatchRecord(
            f"batch_{uuid.uuid4().hex}",
            self._tenant(request, headers),
            request.state.tenant is not None,
            asked.endpoint,
            file.id,
            asked.completion_window,
            int(now),
            int(now) + window,
            headers=ours,
            metadata=asked.metadata,
        )
        store, runner = self._open(kept)
        expires = now + window + self._keep_s
        if not await self._stored(partial(store.add_batch, record, expires, MOST_OPEN)):
            message = f"{MOST_OPEN} batches of this tenant are not over; wait for one, or cancel one"
            raise ApiError(429, message, kind="rate_limit_error", code="too_many_batches", retry_after=60.0)
        runner.look_now()
        return json_response(record.shown(kept))

    async def _check_may_stay(self, file: FileRecord) -> None:
        """Raises ApiError where a batch restricts what its file, which is on disk, did not say was restricted."""
        content = await self._stored(partial(self._open(ON_DISK)[0].content, file.id))
        models = await apart(len(content), restricted_models, content, self._service.max_body)
        if models is None or not all(self._service.may_write(model, True) for model, _ in models):
            message = "requests that are restricted may not be on disk; upload the file with the same headers"
            raise ApiError(400, message, code="file_is_on_disk", param="input_file_id")

    async def list_batches(self, request: Request) -> Response:
        query = request.query_params
        limit = _limit(query, 20, 100)
        look = partial(BatchStore.batches, tenant=request.state.tenant, now=self._wall(), limit=limit + 1)
        return await self._list(look, query.get("after") or None, limit, lambda one: one.created_at, False)

    async def show_batch(self, request: Request) -> Response:
        record, kept = await self._batch(request)
        return json_response(record.shown(kept))

    async def cancel(self, request: Request) -> Response:
        record, kept = await self._batch(request)
        store, runner = self._open(kept)
        change = partial(BatchRecord.enter, status=CANCELLING, now=self._wall())
        changed = await self._stored(partial(store.change, record.id, change))
        if changed is None:
            raise ApiError(
                400,
                f"the batch {record.id!r} is {record.status}: it cannot be cancelled any more",
                param="batch",
            )
        runner.look_now()
        return json_response(changed.shown(kept))

    async def _batch(self, request: Request) -> tuple[BatchRecord, str]:
        name = request.path_params["batch"]
        record, kept = await self._find(request, partial(BatchStore.batch, name=name, now=self._wall()))
        if record is None:
            raise ApiError(404, f"there is no batch {name[:80]!r}", code="batch_not_found", param="batch")
        return record, kept

    # -- both ------------------------------------------------------------------------------------------

    def _tenant(self, request: Request, headers: Headers) -> str:
        """Whose it is: the caller's, where that is known; else whose it says it is."""
        return request.state.tenant or (headers.get(OURS + "tenant") or "default")[:200]

    async def _find(self, request: Request, look: Callable[[BatchStore], T | None]) -> tuple[Any, str]:
        """What one of the stores has, if it is the caller's, and which of them."""
        owner = request.state.tenant
        for kept, (store, _) in self._stores.items():
            found: Any = await self._stored(partial(look, store))
            if found is not None and owner in (None, found.tenant):
                return found, kept
        return None, ""

    async def _list(
        self,
        look: Callable[..., list[Any]],
        after: str | None,
        limit: int,
        made: Callable[[Any], int],
        asc: bool,
    ) -> Response:
        """A page over both stores: what is in memory comes before what is on disk, each in its order."""
        shown, missing = list[dict[str, Any]](), after is not None
        for kept in (IN_MEMORY, ON_DISK):
            if kept not in self._stores or len(shown) > limit:
                continue
            try:
                found = await self._stored(
                    partial(look, self._stores[kept][0], after=after if missing else None)
                )
            except NoSuchRow:
                continue
            missing = False
            shown += [one.shown(kept) for one in found]
        if missing:
            raise ApiError(400, f"after: there is no {after!r:.90} in it", param="after")
        page = shown[:limit]
        return json_response(
            {
                "object": "list",
                "data": page,
                "first_id": page[0]["id"] if page else None,
                "last_id": page[-1]["id"] if page else None,
                "has_more": len(shown) > limit,
            }
        )

    async def _stored(self, work: Callable[[], T]) -> T:
        """What a store does on a thread. Raises ApiError where it has no room, or its file cannot be used."""
        try:
            return await asyncio.to_thread(work)
        except NoRoom as full:
            whose = "of yours" if full.mine else "of all tenants"
            message = (
                f"files and batches {whose} may have {full.bound} bytes here, and have them; delete some"
            )
            raise ApiError(507, message, code="storage_full", param="file") from None
        except (StateError, BadInput) as error:
            log.error("%s", error)
            raise ApiError(503, words_of(error), kind="server_error", code="batches_unreadable") from error


def _limit(query: Mapping[str, str], default: int, most: int) -> int:
    text = query.get("limit", str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= most):
        raise ApiError(400, f"limit: must be a number from 1 to {most}", param="limit")
    return int(text)
