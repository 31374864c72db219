"""Keys and limits of tenants that an operator changes while the gateway runs."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.fleet.backends import Backend, Front, all_served, fleet
from weighbridge.cli.app import app
from weighbridge.errors import BadInput
from weighbridge.fleet.limits.stated import in_words, limits_of, written
from weighbridge.fleet.limits.tenant import TenantLimits
from weighbridge.server.gateway.changes import ChangeLog, FleetAct, FleetChange, read_changes
from weighbridge.server.gateway.tenants import MadeKey, TenantAct, TenantChange

ADMIN, ANN = "a-long-key-of-the-operator", "a-long-key-of-ann-alone"
OPERATOR = {"authorization": f"Bearer {ADMIN}"}
ANNS = f"tenants: {{ann: {{key: {ANN}, limits: {{requests_per_minute: 2}}}}}}"


@asynccontextmanager
async def gateway(
    backend: Backend, file: Path | None = None, tenants: str = ANNS, more: str = ""
) -> AsyncIterator[Front]:
    text = f"admin_key: {ADMIN}\n{tenants}\n{more}\nhealth: {{interval: 0.05, slow_start: 0}}\n"
    text += f"changes_file: '{file}'\n" if file is not None else ""
    entry = f"{{name: first, url: '{backend.url}', dialect: weighbridge}}"
    async with fleet(config=f"{text}models: {{m: {{replicas: [{entry}]}}}}\n") as front:
        yield front


async def admin(front: Front, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    url = f"{front.url}/admin/tenants{path}"
    async with front.client.request(method, url, json=body, headers=OPERATOR) as answer:
        return answer.status, await answer.json()


async def told(front: Front, tenant: str) -> dict[str, Any]:
    _, page = await admin(front, "GET", "")
    (found,) = [one for one in page["data"] if one["tenant"] == tenant]
    return dict(found)


async def asked(front: Front, key: str) -> tuple[int, Any]:
    async with front.post(headers={"authorization": f"Bearer {key}"}) as answer:
        return answer.status, (await answer.json()).get("error", {}).get("code")


async def test_a_key_is_told_once_opens_at_once_and_is_revoked_at_once(tmp_path: Path) -> None:
    file, backend = tmp_path / "changes.jsonl", Backend()
    async with all_served((backend,)):
        async with gateway(backend, file) as front:
            status, made = await admin(front, "POST", "/bob/keys", {"expires": "2999-01-31"})
            assert status == 400, "in more than a hundred years nobody knows what it was"
            status, made = await admin(front, "POST", "/bob/keys", {})
            key = made["key"]
            assert (status, made["tenant"], made["expires"]) == (201, "bob", None)
            assert await asked(front, key) == (200, None)
            assert (await front.get("/v1/tickets", OPERATOR))["data"][0]["tenant"] == "bob"
            shown = await told(front, "bob")
            assert [one["id"] for one in shown["keys"]] == [made["id"]]
            changes = await front.get("/admin/changes", OPERATOR)
            for page in (shown, changes, file.read_text()):
                assert key not in json.dumps(page)
            assert changes["data"][0]["act"] == "create_key"
            assert changes["data"][0]["changed_by"] == "operator at 127.0.0.1"
            status, answer = await admin(front, "DELETE", f"/bob/keys/{made['id']}")
            assert (status, answer["keys_left"]) == (200, 0)
            assert await asked(front, key) == (401, "revoked_api_key")
            assert await asked(front, ANN) == (200, None)
        async with gateway(backend, file) as front:
            assert await asked(front, key) == (401, "revoked_api_key")


async def test_a_key_outlives_a_restart_until_it_expires(tmp_path: Path) -> None:
    file, backend = tmp_path / "changes.jsonl", Backend()
    async with all_served((backend,)):
        async with gateway(backend, file) as front:
            soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 2))
            brief = (await admin(front, "POST", "/bob/keys", {"expires": soon}))[1]["key"]
            lasting = (await admin(front, "POST", "/bob/keys"))[1]["key"]
            assert await asked(front, brief) == (200, None)
        async with gateway(backend, file) as front:
            assert await asked(front, lasting) == (200, None)
            ends = time.mktime(time.strptime(soon, "%Y-%m-%dT%H:%M:%SZ")) - time.timezone
            await asyncio.sleep(max(ends - time.time(), 0.0))
            assert await asked(front, brief) == (401, "expired_api_key")
        async with gateway(backend, file, tenants="") as front:  # a file without keys opens no door
            assert await asked(front, "nobody's") == (401, "invalid_api_key")


async def test_two_keys_for_the_time_of_a_change_and_no_third(tmp_path: Path) -> None:
    backend = Backend()
    async with all_served((backend,)), gateway(backend) as front:
        status, second = await admin(front, "POST", "/ann/keys")
        assert status == 201
        status, refused = await admin(front, "POST", "/ann/keys")
        assert (status, refused["error"]["code"]) == (409, "too_many_keys")
        old = next(one for one in (await told(front, "ann"))["keys"] if one["from"] == "configuration")
        assert (await admin(front, "DELETE", f"/ann/keys/{old['id']}"))[0] == 200
        assert await asked(front, ANN) == (401, "revoked_api_key")
        assert await asked(front, second["key"]) == (200, None)
        assert (await admin(front, "POST", "/ann/keys"))[0] == 201


async def test_a_revoked_key_stays_so_though_the_configuration_names_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, backend = tmp_path / "changes.jsonl", Backend()
    async with all_served((backend,)):
        async with gateway(backend, file) as front:
            (key,) = (await told(front, "ann"))["keys"]
            assert (await admin(front, "DELETE", f"/ann/keys/{key['id']}"))[0] == 200
        async with gateway(backend, file) as front:
            assert await asked(front, ANN) == (401, "revoked_api_key")
            assert await asked(front, "anything") == (401, "invalid_api_key")
    assert f"key {key['id']} of tenant ann was revoked and stays so" in caplog.text


async def test_who_asks_nobody_for_a_key_is_not_closed_by_one() -> None:
    backend = Backend()
    async with all_served((backend,)), gateway(backend, tenants="") as front:
        status, refused = await admin(front, "POST", "/bob/keys")
        assert (status, refused["error"]["code"]) == (409, "keys_not_asked")
        async with front.post() as answer:
            assert answer.status == 200


async def test_limits_hold_from_the_next_request_on_and_over_a_restart(tmp_path: Path) -> None:
    file, backend = tmp_path / "changes.jsonl", Backend()
    async with all_served((backend,)):
        async with gateway(backend, file) as front:
            assert [await asked(front, ANN) for _ in range(3)][-1][0] == 429
            status, now = await admin(front, "PUT", "/ann/limits", {"requests_per_minute": 4})
            assert (status, now["limits"], now["limits_from"]) == (
                200,
                {"requests_per_minute": 4},
                "operator",
            )
            assert now["configured_limits"] == {"requests_per_minute": 2}
            assert now["used"]["requests_per_minute"] == 2
            assert [(await asked(front, ANN))[0] for _ in range(3)] == [200, 200, 429]
            (change,) = (await front.get("/admin/changes", OPERATOR))["data"]
            assert (change["before"], change["after"]) == ("2 requests a minute", "4 requests a minute")
        async with gateway(backend, file) as front:
            assert (await told(front, "ann"))["limits"] == {"requests_per_minute": 4}
            status, now = await admin(front, "DELETE", "/ann/limits")
            assert (status, now["limits"], now["limits_from"]) == (
                200,
                {"requests_per_minute": 2},
                "configuration",
            )
            assert (await admin(front, "DELETE", "/ann/limits"))[0] == 404
        async with gateway(backend, file) as front:
            assert (await told(front, "ann"))["limits"] == {"requests_per_minute": 2}


async def test_where_the_file_says_others_since_it_holds_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, backend = tmp_path / "changes.jsonl", Backend()
    async with all_served((backend,)):
        async with gateway(backend, file) as front:
            assert (await admin(front, "PUT", "/ann/limits", {"requests_per_minute": 4}))[0] == 200
            assert (await admin(front, "PUT", "/bob/limits", {"usd_per_day": 1.5, "zone": "UTC"}))[0] == 200
        other = ANNS.replace("requests_per_minute: 2", "requests_per_minute: 9")
        async with gateway(backend, file, tenants=other) as front:
            assert (await told(front, "ann"))["limits"] == {"requests_per_minute": 9}
            assert (await told(front, "bob"))["limits"] == {"usd_per_day": 1.5, "zone": "UTC"}
    assert "limits of tenant ann had been set by an operator" in caplog.text
    assert "tenant bob" not in caplog.text


async def test_limits_of_whoever_is_not_named_hold_again_once_they_are_reset() -> None:
    backend = Backend()
    more = "limits: {tokens_per_minute: 5000}"
    async with all_served((backend,)), gateway(backend, more=more) as front:
        name = quote("group/team ü", safe="")
        status, now = await admin(front, "PUT", f"/{name}/limits", {"tokens_per_minute": None})
        assert (status, now["limits"], now["tenant"]) == (200, {}, "group/team ü")
        status, now = await admin(front, "DELETE", f"/{name}/limits")
        assert (now["limits"], now["limits_from"]) == ({"tokens_per_minute": 5000}, "others")


HOSTILE_LIMITS = [
    {"requests_per_minute": 0},
    {"requests_per_minute": -1},
    {"requests_per_minute": 1.5},
    {"requests_per_minute": "2"},
    {"requests_per_minute": True},
    {"requests_per_minute": 10**16},
    {"usd_per_day": 0},
    {"usd_per_day": 1e300},
    {"zone": "UTC"},
    {"usd_per_day": 1, "zone": "../../etc/passwd"},
    {"usd_per_day": 1, "zone": "Nowhere/At All"},
    {"usd_per_day": 1, "zone": ""},
    {"nothing": 1},
    [],
    "text",
]


async def test_hostile_requests_change_nothing(tmp_path: Path) -> None:
    file, backend = tmp_path / "changes.jsonl", Backend()
    async with all_served((backend,)), gateway(backend, file) as front:
        for limits in HOSTILE_LIMITS:
            assert (await admin(front, "PUT", "/ann/limits", limits))[0] == 400, limits
        for expires in ("", "soon", "2027-13-01", "1999-01-01", 5, [], "0001-01-01", "9999-12-31", "9" * 50):
            assert (await admin(front, "POST", "/ann/keys", {"expires": expires}))[0] == 400, expires
        assert (await admin(front, "POST", "/ann/keys", {"tenant": "root"}))[0] == 400
        for name in ("%00", "a%0Ab", "x" * 201, "%E2%80%AE"):
            assert (await admin(front, "POST", f"/{name}/keys"))[0] in (400, 404), name
            assert (await admin(front, "PUT", f"/{name}/limits", {}))[0] in (400, 404), name
        for key in ("nothing", "%2e%2e", "0" * 4000):
            assert (await admin(front, "DELETE", f"/ann/keys/{key}"))[0] == 404
        deep = b"[" * 100_000
        url = f"{front.url}/admin/tenants/ann/limits"
        for body, status in ((deep, 413), (b"[" * 10_000, 400), (b"\xff", 400), (b'{"zone": "\xff"}', 400)):
            async with front.client.put(url, data=body, headers=OPERATOR) as answer:
                assert answer.status == status
        for key in (ANN, "wrong", ""):
            headers = {"authorization": f"Bearer {key}"}
            async with front.client.put(url, json={}, headers=headers) as answer:
                assert answer.status == 401
        assert file.read_bytes() == b""
        assert (await told(front, "ann"))["limits"] == {"requests_per_minute": 2}


async def test_what_cannot_be_written_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, backend = tmp_path / "changes.jsonl", Backend()
    async with all_served((backend,)), gateway(backend, file) as front:

        def full(*_: Any) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("weighbridge.server.gateway.changes.os.fsync", full)
        for method, path in (("POST", "/bob/keys"), ("PUT", "/ann/limits")):
            status, said = await admin(front, method, path, {})
            assert (status, said["error"]["code"]) == (503, "change_not_written")
            assert "key" not in said
        (key,) = (await told(front, "ann"))["keys"]
        assert (await admin(front, "DELETE", f"/ann/keys/{key['id']}"))[0] == 503
        assert (await asked(front, ANN))[0] == 200
        assert (await told(front, "ann"))["limits"] == {"requests_per_minute": 2}


async def test_keys_that_are_asked_for_at_once_are_no_more_than_two() -> None:
    backend = Backend()
    async with all_served((backend,)), gateway(backend) as front:
        answers = await asyncio.gather(*(admin(front, "POST", "/bob/keys") for _ in range(8)))
        assert sorted(status for status, _ in answers) == [201, 201, *[409] * 6]


async def test_the_difference_between_a_file_and_what_runs(tmp_path: Path) -> None:
    backend, file = Backend(), tmp_path / "weighbridge.yaml"
    async with all_served((backend,)), gateway(backend) as front:
        entry = f"{{name: first, url: '{backend.url}', dialect: weighbridge}}"
        file.write_text(f"admin_key: {ADMIN}\n{ANNS}\nmodels: {{m: {{replicas: [{entry}]}}}}\n")

        def diff(*more: str) -> Any:
            words = ["config", "diff", str(file), "--url", front.url, "--admin-key", ADMIN, *more]
            return CliRunner().invoke(app, words)

        same = await asyncio.to_thread(diff, "--exit-code")
        assert (same.exit_code, "as" in same.output) == (0, True), same.output
        made = (await admin(front, "POST", "/bob/keys"))[1]
        await admin(front, "PUT", "/ann/limits", {"tokens_per_minute": 100})
        async with front.client.post(
            f"{front.url}/admin/replicas/first/drain", json={}, headers=OPERATOR
        ) as answer:
            assert answer.status == 200
        shown = await asyncio.to_thread(diff, "--json", "--exit-code")
        assert shown.exit_code == 1
        found = {one["what"] + " " + one["name"]: one for one in json.loads(shown.output)["differences"]}
        assert found[f"key {made['id']} of bob"]["file"] is None
        assert found["limits of ann"]["running"] == "100 tokens a minute"
        assert found["replica first"]["running"].endswith(", draining")
        assert len(found) == 3
        audit = await asyncio.to_thread(
            CliRunner().invoke, app, ["audit", "--url", front.url, "--admin-key", ADMIN]
        )
        assert "set limits of tenant ann: 2 requests a minute -> 100 tokens a minute" in audit.output
        assert "create key of tenant bob" in audit.output


_LIMITS = st.builds(
    TenantLimits,
    tokens_per_minute=st.none() | st.integers(1, 10**15),
    requests_per_minute=st.none() | st.integers(1, 10**15),
    concurrent_tokens=st.none() | st.integers(1, 10**15),
    usd_per_day=st.none() | st.floats(0.001, 1e15),
)


@given(_LIMITS)
def test_limits_are_read_as_they_are_written(limits: TenantLimits) -> None:
    assert limits_of(written(limits)) == limits
    assert limits_of(json.loads(json.dumps(written(limits)))) == limits
    assert in_words(limits)


_DIGESTS = st.sampled_from(["aa" * 32, "bb" * 32, "cc" * 32])
_KEYS = st.builds(MadeKey, _DIGESTS, st.none() | st.floats(1.0, 4e9))


@st.composite
def changes(draw: st.DrawFn) -> TenantChange:
    act, tenant = draw(st.sampled_from(TenantAct)), draw(st.sampled_from(["ann", "bob"]))
    told: dict[str, Any] = {}
    if act in (TenantAct.CREATE_KEY, TenantAct.REVOKE_KEY):
        told["key"] = draw(_KEYS)
    if act is TenantAct.SET_LIMITS:
        told = {"limits": written(draw(_LIMITS)), "configured": draw(st.none() | _LIMITS.map(written))}
        told["version"] = draw(st.none() | st.integers(1, 9))
    return TenantChange(1.0, "somebody", act, tenant, "before", "after", **told)


@given(st.lists(changes(), max_size=12))
def test_a_log_that_was_read_comes_to_the_same_as_one_that_was_written(done: list[TenantChange]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        log = ChangeLog(Path(folder) / "changes.jsonl")
        for change in done:
            log.write(change)
        log.write(FleetChange(2.0, "somebody", FleetAct.DRAIN, "r", "m", "takes requests", "draining"))
        again = ChangeLog(log.path)
        assert again.tenants == log.tenants
        assert again.standing == log.standing
        assert read_changes(Path(folder) / "changes.jsonl")[:-1] == done


@pytest.mark.parametrize(
    "line",
    [
        {"act": "create_key", "key": None},
        {"act": "create_key", "key": {"digest": "zz"}},
        {"act": "revoke_key", "key": {"digest": "aa"}},
        {"act": "set_limits", "limits": {"tokens_per_minute": -1}},
        {"act": "set_limits", "limits": {"more": 1}},
        {"act": "make_rich"},
    ],
)
def test_a_line_that_is_no_change_is_no_silence(tmp_path: Path, line: dict[str, Any]) -> None:
    file = tmp_path / "changes.jsonl"
    whole = {
        "schema": 2,
        "at": 1.0,
        "changed_by": "x",
        "tenant": "ann",
        "before": None,
        "after": None,
        **line,
    }
    file.write_text(json.dumps(whole) + "\n")
    with pytest.raises(BadInput, match="a line is no change"):
        ChangeLog(file)


def test_changes_of_before_are_read(tmp_path: Path) -> None:
    file = tmp_path / "changes.jsonl"
    old = {"schema": 1, "at": 1.0, "changed_by": "x", "act": "drain", "replica": "r", "model": "m"}
    file.write_text(
        json.dumps({**old, "before": "takes requests", "after": "draining", "entry": None}) + "\n"
    )
    assert ChangeLog(file).standing.draining == {"r"}
