"""The endpoints of a Kubernetes service as a source of replicas: listed once, then watched, and resumed where a watch
ends.

The API server is asked with the service account's token, which is read again for every question: it is renewed now and
then. Rights needed: get, list and watch of endpointslices in the namespace.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from urllib.parse import quote, urlencode

from weighbridge.fleet.discovery.found import SourceFailed, Tell
from weighbridge.fleet.discovery.slices import Expired, MalformedSlices, SliceBook
from weighbridge.wire.client import HttpClient, Response, Trust
from weighbridge.wire.identity.access import in_url

#: What a pod is given of its service account.
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
#: Seconds for a connection and for the beginning of an answer; of a watch, and how much longer its end may take.
CONNECT_S, ANSWER_S, WATCH_S, LATE_S = 5.0, 30.0, 240, 30.0
#: Seconds between the beginnings of two watches at least.
SHORTEST_WATCH_S = 1.0
#: Bytes of a page of the list, its entries, and bytes of one event.
LARGEST_PAGE, PAGE_ENTRIES, LARGEST_EVENT = 16 << 20, 250, 4 << 20


class KubernetesSource:
    """The slices of `service` in `namespace`. `api`: None: that of the cluster that we run in."""

    def __init__(
        self,
        namespace: str,
        service: str,
        port: str | int | None,
        api: str | None = None,
        account: Path = ACCOUNT,
    ) -> None:
        self.where = f"Kubernetes {namespace}/{service}"
        self._path = f"/apis/discovery.k8s.io/v1/namespaces/{quote(namespace, safe='')}/endpointslices"
        self._label = f"kubernetes.io/service-name={service}"
        self._api, self._account, self._port = api, account, port

    async def watch(self, tell: Tell) -> None:
        book, client, loop = SliceBook(self._port), self._client(), asyncio.get_running_loop()
        try:
            while True:
                await self._list(client, book)
                tell(book.found())
                try:
                    while True:
                        began = loop.time()
                        await self._follow(client, book, tell)
                        await asyncio.sleep(max(began + SHORTEST_WATCH_S - loop.time(), 0.0))
                except Expired:
                    await asyncio.sleep(SHORTEST_WATCH_S)
        except MalformedSlices as error:
            raise SourceFailed(str(error)) from error
        except (OSError, TimeoutError) as error:
            raise SourceFailed(
                f"the API server cannot be asked: {str(error) or 'no answer in time'}"
            ) from error
        finally:
            client.close()

    def _client(self) -> HttpClient:
        api, ca = self._api, self._account / "ca.crt"
        if api is None:
            host = os.environ.get("KUBERNETES_SERVICE_HOST", "")
            if not host:
                raise SourceFailed(
                    "this is no pod of a cluster (KUBERNETES_SERVICE_HOST is not set); give `api`"
                )
            api = f"https://{in_url(host)}:{os.environ.get('KUBERNETES_SERVICE_PORT', '443')}"
        return HttpClient(api, CONNECT_S, trust=Trust(ca=ca if ca.exists() else None))

    async def _list(self, client: HttpClient, book: SliceBook) -> None:
        book.begin()
        token: str | None = None
        while True:
            asked = {"labelSelector": self._label, "limit": str(PAGE_ENTRIES)}
            answer = await self._ask(client, {**asked, "continue": token} if token else asked)
            data = await answer.whole(LARGEST_PAGE + 1)
            if len(data) > LARGEST_PAGE:
                raise MalformedSlices("a page of the list is too large")
            token = book.listed(data)
            if token is None:
                return

    async def _follow(self, client: HttpClient, book: SliceBook, tell: Tell) -> None:
        """Watch until the API server ends it, as it does every few minutes. A connection that breaks is the same."""
        asked = {
            "labelSelector": self._label,
            "watch": "1",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_S),
            "resourceVersion": book.version,
        }
        answer = await self._ask(client, asked)
        rest = b""
        try:
            async with asyncio.timeout(WATCH_S + LATE_S):
                while data := await answer.read():
                    *lines, rest = (rest + data).split(b"\n")
                    if len(rest) > LARGEST_EVENT:
                        raise MalformedSlices("an event is too large")
                    changed = [book.heard(line) for line in lines if line.strip()]  # each is to be heard
                    if any(changed):
                        tell(book.found())
        except ConnectionError:
            pass  # resumed from the last version
        finally:
            answer.close()

    async def _ask(self, client: HttpClient, asked: dict[str, str]) -> Response:
        headers = {"Accept": "application/json"}
        token = await asyncio.to_thread(self._token)
        if token:
            headers["Authorization"] = f"Bearer {token}"
        answer = await client.send(client.head("GET", f"{self._path}?{urlencode(asked)}", headers))
        await answer.begin(ANSWER_S)
        if answer.status == 200:
            return answer
        why = (await answer.whole(4096)).decode("utf-8", "replace")[:200]
        if answer.status == 410:
            raise Expired
        if answer.status in (401, 403):
            raise SourceFailed(
                f"the API server answers {answer.status}: the service account needs get, list and watch of "
                "endpointslices (apiGroups: discovery.k8s.io) in this namespace"
            )
        raise SourceFailed(f"the API server answers {answer.status}: {why}")

    def _token(self) -> str:
        try:
            return (self._account / "token").read_text("utf-8").strip()
        except OSError:
            return ""
