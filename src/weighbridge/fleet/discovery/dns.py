"""A name in DNS as a source of replicas: its addresses, or the servers of its SRV records, asked again as they age."""

from __future__ import annotations

import asyncio
import random
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path

from weighbridge.fleet.discovery.dns_messages import (
    AAAA,
    NO_ERROR,
    NO_SUCH_NAME,
    SRV,
    TCP_BYTES,
    A,
    DnsAnswer,
    MalformedAnswer,
    query,
    read,
)
from weighbridge.fleet.discovery.found import MOST_FOUND, FoundServer, SourceFailed, Tell

#: Seconds for an answer of one name server, and how often each is asked.
ANSWERS_WITHIN, TRIES = 2.0, 2
#: Seconds between two questions at least, whatever the records' time to live.
SHORTEST = 1.0
#: Characters of a name; a longer one of a short one's stands for nothing.
LONGEST_NAME = 253
RESOLV_CONF = Path("/etc/resolv.conf")


@dataclass(frozen=True, slots=True)
class Resolvers:
    """Name servers, each an address and a port; what is added to short names, and to which."""

    servers: tuple[tuple[str, int], ...]
    search: tuple[str, ...] = ()
    dots: int = 1

    def candidates(self, name: str) -> list[str]:
        """What a name may stand for, in order."""
        if name.endswith("."):
            return [name]
        longer = [f"{name}.{domain}" for domain in self.search if len(name) + len(domain) < LONGEST_NAME]
        return [name, *longer] if name.count(".") >= self.dots else [*longer, name]


def read_resolv_conf(text: str) -> Resolvers:
    """What `/etc/resolv.conf` says (resolv.conf(5)); what it does not, is left out."""
    servers: list[tuple[str, int]] = []
    search: tuple[str, ...] = ()
    dots = 1
    for line in text.splitlines():
        words = line.split("#")[0].split(";")[0].split()
        if len(words) < 2:
            continue
        if words[0] == "nameserver" and len(servers) < 3:
            servers.append((words[1], 53))
        elif words[0] in ("search", "domain"):
            search = tuple(word.strip(".") for word in words[1:7])
        elif words[0] == "options":
            given = [w.partition(":")[2] for w in words[1:] if w.startswith("ndots:")]
            dots = min(int(given[-1]), 15) if given and given[-1].isdecimal() else dots
    return Resolvers(tuple(servers), search, dots)


class DnsSource:
    """`port`: of every address; None: the name has SRV records, which name ports themselves."""

    def __init__(
        self, name: str, port: int | None, interval: float, server: tuple[str, int] | None = None
    ) -> None:
        """`interval`: seconds after which it is asked again at the latest; `server`: whom; None: the system's."""
        self.where = f"DNS {name}"
        self._name, self._port, self._interval, self._server = name, port, interval, server

    async def watch(self, tell: Tell) -> None:
        while True:
            found, ttl = await self.look()
            tell(found)
            pause = min(max(float(ttl), SHORTEST), self._interval)
            await asyncio.sleep(pause * (0.9 + 0.1 * random.random()))

    async def look(self) -> tuple[frozenset[FoundServer], int]:
        """Whom the name stands for now, and for how many seconds. Raises SourceFailed."""
        resolvers = await asyncio.to_thread(self._resolvers)
        if self._port is not None:
            addresses, ttl = await self._addresses(resolvers, self._name)
            return frozenset(FoundServer(one, self._port) for one in addresses), ttl
        [answer] = await self._asked(resolvers, self._name, SRV)
        if answer.code == NO_SUCH_NAME or not answer.servers:
            return frozenset(), answer.ttl
        best = min(one.priority for one in answer.servers)
        chosen = [one for one in answer.servers if one.priority == best][:MOST_FOUND]
        found: set[FoundServer] = set()
        ttl = answer.ttl
        for one in chosen:
            addresses, age = await self._addresses(resolvers, one.host + ".")
            ttl = min(ttl, age) if addresses else ttl
            found |= {FoundServer(address, one.port) for address in addresses}
        return frozenset(found), ttl

    def _resolvers(self) -> Resolvers:
        if self._server is not None:
            return Resolvers((self._server,))
        try:
            return read_resolv_conf(RESOLV_CONF.read_text("utf-8", "replace"))
        except OSError:
            return Resolvers(())

    async def _addresses(self, resolvers: Resolvers, name: str) -> tuple[list[str], int]:
        """All addresses of a name; where no name server is known, or none knows it, as the system finds them."""
        answers = await self._asked(resolvers, name, A, AAAA) if resolvers.servers else []
        addresses = [address for answer in answers for address in answer.addresses]
        if addresses:
            return addresses, min(answer.ttl for answer in answers if answer.addresses)
        if self._server is not None:
            return [], 0
        try:
            loop = asyncio.get_running_loop()
            known = await loop.getaddrinfo(name.rstrip("."), None, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            if answers:
                return [], 0
            raise SourceFailed(f"{name} cannot be found: {error.strerror}") from None
        return sorted({str(one[4][0]) for one in known}), int(self._interval)

    async def _asked(self, resolvers: Resolvers, name: str, *kinds: int) -> list[DnsAnswer]:
        """What is known of the first name of which something is, of each kind; of another name nothing is mixed in."""
        answers: list[DnsAnswer] = []
        for candidate in resolvers.candidates(name):
            answers = [await self._of_any(resolvers, candidate, kind) for kind in kinds]
            if any(answer.addresses or answer.servers for answer in answers):
                break
        return answers

    async def _of_any(self, resolvers: Resolvers, name: str, kind: int) -> DnsAnswer:
        why = "no name server is known"
        for server in resolvers.servers * TRIES:
            try:
                async with asyncio.timeout(ANSWERS_WITHIN):
                    answer = await _ask(server, name, kind)
            except (OSError, TimeoutError, MalformedAnswer, asyncio.IncompleteReadError) as error:
                why = f"{server[0]}: {str(error) or 'no answer in time'}"
                continue
            if answer.code in (NO_ERROR, NO_SUCH_NAME):
                return answer
            why = f"{server[0]} answers with code {answer.code}"
        raise SourceFailed(f"{name} could not be looked up ({why})")


async def _ask(server: tuple[str, int], name: str, kind: int) -> DnsAnswer:
    """Ask one name server; over TCP where its answer is too long for UDP."""
    number = secrets.randbelow(1 << 16)
    question = query(number, name, kind)
    loop = asyncio.get_running_loop()
    transport, line = await loop.create_datagram_endpoint(_OneAnswer, remote_addr=server)
    try:
        transport.sendto(question)
        while True:
            data = await line.next()
            try:
                answer = read(data, number, name, kind)
                break
            except MalformedAnswer:
                continue  # somebody else's, or a guess: the true one may yet come
    finally:
        transport.close()
    return await _over_tcp(server, question, number, name, kind) if answer.truncated else answer


async def _over_tcp(server: tuple[str, int], question: bytes, number: int, name: str, kind: int) -> DnsAnswer:
    reader, writer = await asyncio.open_connection(*server, limit=TCP_BYTES + 2)
    try:
        writer.write(len(question).to_bytes(2, "big") + question)
        size = int.from_bytes(await reader.readexactly(2), "big")
        return read(await reader.readexactly(size), number, name, kind)
    finally:
        writer.close()


class _OneAnswer(asyncio.DatagramProtocol):
    """What comes back, a bounded number of them."""

    def __init__(self) -> None:
        self._came: asyncio.Queue[bytes | Exception] = asyncio.Queue(64)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if not self._came.full():
            self._came.put_nowait(data)

    def error_received(self, exc: Exception) -> None:
        if not self._came.full():
            self._came.put_nowait(exc)

    async def next(self) -> bytes:
        data = await self._came.get()
        if isinstance(data, Exception):
            raise data
        return data
