"""The lane of real clients: every one takes every step that it knows, at every door."""

from __future__ import annotations

import shutil

import pytest

from tests.clients.lane.run import Found, faults, in_namespace
from tests.clients.lane.site import DOORS
from tests.clients.lane.table import CLIENTS

pytestmark = [pytest.mark.proof, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest) -> Found:
    """What became of the clients that this run looks at."""
    if shutil.which("unshare") is None or shutil.which("npm") is None:
        pytest.skip("unshare and npm are needed")
    items = [item for item in request.session.items if isinstance(item, pytest.Function)]
    asked = [item.callspec.params["client"] for item in items if "found" in item.fixturenames]
    return in_namespace(list(dict.fromkeys(asked)))


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_takes_every_step_that_it_knows(client: str, door: str, found: Found) -> None:
    wrong = dict(faults(found[client][door]))
    assert not wrong, wrong
