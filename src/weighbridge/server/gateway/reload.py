"""weighbridge.yaml is read again while the gateway serves: replicas come, go and change, open requests go on."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from weighbridge.errors import WeighbridgeError
from weighbridge.fleet.config.difference import FleetTransition, difference
from weighbridge.fleet.config.spec import FleetSpec
from weighbridge.fleet.gateway import Gateway
from weighbridge.fleet.peers.membership import is_shared
from weighbridge.fleet.peers.peers import Peers
from weighbridge.fleet.peers.records import Rest
from weighbridge.routes.settings import RoutesSettings
from weighbridge.server.gateway.changes import ChangeLog, FleetAct, FleetChange, NotWritten

log = logging.getLogger("weighbridge.fleet")

#: Reads the configuration anew. Raises BadInput with everything that is wrong.
Source = Callable[[], tuple[FleetSpec, RoutesSettings]]


class Reloading:
    """Holds what is configured now. Several wishes to reload follow each other."""

    def __init__(
        self,
        gateway: Gateway,
        changes: ChangeLog,
        peers: Peers | None,
        source: Source,
        routes: RoutesSettings,
    ) -> None:
        """`routes`: as they were read at the start; they are not changed without a restart."""
        self._gateway, self._changes, self._peers, self._source = gateway, changes, peers, source
        self._spec, self._routes = gateway.spec, routes
        self._turn = asyncio.Lock()

    async def reload(self, who: str) -> dict[str, Any]:
        """Read the file and make it so. Raises BadInput where it is wrong, and NotWritten; then all is as it was."""
        async with self._turn:
            spec, routes = await asyncio.to_thread(self._source)
            wanted = difference(self._spec, spec)
            later = wanted.later if routes == self._routes else (*wanted.later, "routes")
            wanted = replace(wanted, later=later)
            words = wanted.in_words()
            change = FleetChange(time.time(), who, FleetAct.RELOAD, "", "", None, words)
            await asyncio.to_thread(self._changes.write, change)
            await self._tell_peers(wanted, who)
            failed = self._gateway.become(wanted)
            self._spec = replace(self._spec, models=self._as_they_are())
            for one in failed:
                log.error("%s", one)
            log.warning("the configuration was read again by %s: %s", who, words)
            return _answer(wanted, failed)

    def _as_they_are(self) -> tuple[Any, ...]:
        return tuple(pool.spec for pool in self._gateway.pools.values())

    async def _tell_peers(self, wanted: FleetTransition, who: str) -> None:
        """A replica that the file names now is here, also where one of its name was removed before."""
        if self._peers is None or self._peers.members is None:
            return
        for model in wanted.models:
            for one in model.added:
                known = self._peers.members.roster.get(one.name)
                if known is not None and known.rest is Rest.REMOVED and is_shared(one):
                    await self._peers.change(Rest.HERE, one.name, model.spec.name, who, is_a_files=True)

    async def on_hangup(self) -> None:
        """Reload, for SIGHUP: whatever is wrong is in the log, and all is as it was."""
        try:
            await self.reload("SIGHUP")
        except NotWritten as error:
            log.error("the configuration was not read again: %s", error)
        except WeighbridgeError as error:
            log.error("the configuration is wrong, and the one from before stays in use:\n%s", error)
        except Exception:
            log.exception("the configuration could not be read again; the one from before stays in use")


def _answer(wanted: FleetTransition, failed: list[str]) -> dict[str, Any]:
    return {
        "added": [one.name for model in wanted.models for one in model.added],
        "removed": [name for model in wanted.models for name in model.removed],
        "changed": [one.name for model in wanted.models for one in model.changed],
        "after_restart": list(wanted.later),
        "failed": failed,
        "summary": wanted.in_words(),
    }
