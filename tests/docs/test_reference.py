"""The reference is as the code is: nothing is missing on its pages, and what they say without code has its place."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tools.reference import commands, configuration, environment, flows, http, keys, metrics
from tools.reference.__main__ import main, stale, write
from tools.reference.recording import THERE, record

import weighbridge.flow
from tests.deploy.test_deploy import exposed
from weighbridge.server.openapi.operations import OPERATIONS


def test_every_page_is_as_the_code_is(capsys: pytest.CaptureFixture[str]) -> None:
    """If this fails: `python -m tools.reference --write`."""
    assert main([]) == 0, capsys.readouterr().out


def test_a_stale_page_is_found(tmp_path: Path) -> None:
    write(tmp_path)
    assert stale(tmp_path) == []
    page = tmp_path / "cli.md"
    page.write_text(page.read_text().replace("--itl-target", "--no-such-flag"))
    (tmp_path / "flow.md").unlink()
    assert stale(tmp_path) == ["cli.md", "flow.md"]


def test_every_key_of_the_configuration_has_words_and_no_words_are_left_over() -> None:
    found = record()
    assert configuration.left_out(found) == set()
    told = configuration.merged(found)
    assert set(told) == set(keys.SECTIONS)
    asked = {
        f"{place}.{key}".lstrip("."): one for place, all_of in told.items() for key, one in all_of.items()
    }
    assert [path for path, one in asked.items() if one.kind == THERE] == []
    plain = {path for path, one in asked.items() if one.knob is None}
    assert plain == set(keys.WORDS)
    assert set(keys.KINDS) <= plain


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("itl_target", "number, at least 1 | | ms"),
        ("score_wait_ms", "number, more than 0 | `500` | ms"),
        ("connect", "number, more than 0 | `2` | s"),
        ("max_body", "size, such as 8MiB | `8MiB` | bytes"),
        ("level", "`edge`, `cloud`"),
        ("admin_key_env", "name of a variable"),
        ("cloud_share", "share"),
    ],
)
def test_keys_are_told_with_type_default_and_unit(line: str, words: str) -> None:
    rows = [row for row in configuration.page().splitlines() if row.startswith(f"| `{line}` |")]
    assert any(words in row for row in rows), rows


def test_every_command_and_flag_is_told() -> None:
    page = commands.page()
    table = json.loads(commands.OPTIONS.read_text())
    for path, command in table.items():
        parent, _, name = path.rpartition(" ")
        if parent and name not in table[parent]["commands"]:
            continue
        section = re.split(rf"^#+ {re.escape(path)}$", page, flags=re.MULTILINE)[1].split("\n## ")[0]
        for option, of in command["parameters"].items():
            if of["kind"] == "option":
                assert all(f"`{flag}`" in section for flag in option.split()), (path, option)


def test_every_endpoint_is_told() -> None:
    page = http.page()
    assert [key for key in OPERATIONS if f"### {key}\n" not in page] == []


async def test_every_metric_that_is_shown_is_told() -> None:
    """Those of a real gateway and a real server, after a request."""
    told = set(re.findall(r"^\| `(weighbridge_\w+)`", metrics.page(), re.MULTILINE))
    shown = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in await exposed()}
    ours = {name for name in shown if name.startswith("weighbridge_")}
    beside = {f"{name.removesuffix('_total')}" for name in told}
    assert {name for name in ours if name not in told and name.removesuffix("_total") not in beside} == set()


def test_every_metric_has_a_unit_and_a_meaning() -> None:
    families = [*metrics.engine_families(), *metrics.expert_families(), *metrics.gateway_families()]
    assert [one.name for one in families if not one.unit or not one.text] == []


def test_every_variable_has_words_and_no_words_are_left_over() -> None:
    assert set(environment.found()) == set(environment.WORDS)


def test_every_name_of_flows_is_told() -> None:
    page = flows.page()
    assert [name for name in weighbridge.flow.__all__ if f"### {name}\n" not in page] == []
