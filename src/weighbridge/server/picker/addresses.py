"""The addresses behind the names of replicas: Envoy is told IPs, and a pod that starts again has another one."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

from weighbridge.fleet.config.callee import USUAL_PORTS
from weighbridge.wire.identity.access import in_url, is_address

log = logging.getLogger("weighbridge.fleet")

#: Seconds between two times that names are looked up, and that one may take.
EVERY, LOOKUP = 5.0, 2.0


class Addresses:
    """Names are looked up in the background; `urls` says of which replicas, whenever that is asked."""

    def __init__(self, urls: Callable[[], Iterable[str]]) -> None:
        self._urls = urls
        self._found: dict[str, str] = {}  # by name
        self._endpoints: dict[str, str] = {}  # by URL, as of the last look
        self._said: dict[str, str] = {}
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self._look()
        self._task = asyncio.create_task(self._keep())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def endpoint(self, url: str) -> str:
        """The endpoint of a replica, `IP:port`; empty as long as its name has no address, or several."""
        known = self._endpoints.get(url)
        if known is None:
            known = self._endpoints[url] = self._endpoint(url)
        return known

    def _endpoint(self, url: str) -> str:
        parts = urlsplit(url)
        host = parts.hostname or ""
        address = host if is_address(host) else self._found.get(host, "")
        if not address:
            return ""
        port = parts.port or USUAL_PORTS.get(parts.scheme, 80)
        return f"{in_url(address)}:{port}"

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(EVERY)
            try:
                await self._look()
            except Exception:
                log.exception("looking up the addresses of replicas failed")

    async def _look(self) -> None:
        hosts = {urlsplit(url).hostname or "" for url in self._urls()}
        names = sorted(host for host in hosts if host and not is_address(host))
        found = await asyncio.gather(*(_lookup(name) for name in names))
        for name, addresses in zip(names, found, strict=True):
            if len(addresses) == 1:
                self._found[name] = addresses.pop()
                self._said.pop(name, None)
            elif addresses:
                self._found.pop(name, None)
                self._say(
                    name, "has several addresses, and a replica is one of them: write an entry for each pod"
                )
            else:  # the last address is better than none: the name may be back before its pod is missed
                self._say(name, "has no address now")
        for name in self._found.keys() - set(names):
            del self._found[name]
        self._endpoints.clear()

    def _say(self, name: str, what: str) -> None:
        if self._said.get(name) != what:
            self._said[name] = what
            log.warning("the replica at %s cannot be picked: the name %s", name, what)


async def _lookup(name: str) -> set[str]:
    """The addresses of a name; none where it has none, or nobody says so in time."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(LOOKUP):
            found = await loop.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError, UnicodeError):
        return set()
    by_family = [
        {one[4][0] for one in found if one[0] == family} for family in (socket.AF_INET, socket.AF_INET6)
    ]
    return next((set(map(str, some)) for some in by_family if some), set())
