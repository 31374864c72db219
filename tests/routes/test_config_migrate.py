"""Old settings are rewritten where they stand, and mean what they meant."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from weighbridge.errors import BadInput
from weighbridge.routes.config import Configuration, modernised, parse_configuration

OLD = """\
# Who may use it
keys:            # of the team
  jane: {key: jane-secret-key-0123456789}
routes:
  auto:
    # the small one
    edge:
      url: http://127.0.0.1:8001/api   # behind a proxy
      model: small
      context: 4096  # tokens
      step_cost: default
      connect_timeout: 2   # seconds
      first_chunk_timeout: 20
      idle_timeout: 9      # between events
      reports_load: true   # ours
    cloud: {url: "https://api.example.com/v1", model: big, reports_load: false,
            price: {input: 2.5, output: 10, cached: 0.5}}   # of May
    threshold: 0.7
budgets: {usd_per_day: 5}
"""

NEW = """\
# Who may use it
tenants:            # of the team
  jane: {key: jane-secret-key-0123456789}
routes:
  auto:
    # the small one
    edge:
      url: http://127.0.0.1:8001/api   # behind a proxy
      prefix: ''
      model: small
      capacity: {step_cost: COST, max_model_len: 4096}  # tokens
      timeouts: {connect: 2, first_byte: 20, idle: 9}   # seconds
      # between events
      dialect: weighbridge   # ours
    cloud: {url: "https://api.example.com/v1", model: big,
            price: {input_usd_per_million: 2.5, output_usd_per_million: 10, cached_usd_per_million: 0.5}}   # of May
    threshold: 0.7
budgets: {usd_per_day: 5}
"""


def read(text: str) -> Configuration:
    return parse_configuration(text, "weighbridge.yaml", Path("."))


def migrated(text: str) -> str:
    return modernised(text, "weighbridge.yaml", Path("."))


def test_a_url_that_is_none_is_refused_with_its_line() -> None:
    with pytest.raises(BadInput, match=r":8: routes.auto.edge.url: 'https://\[x' is no URL"):
        read(OLD.replace("http://127.0.0.1:8001/api   # behind a proxy", "'https://[x'"))


def test_an_old_file_is_rewritten_and_its_comments_stay(caplog: pytest.LogCaptureFixture) -> None:
    new = migrated(OLD)
    assert read(new) == read(OLD)
    assert new.count("#") == OLD.count("#")
    caplog.clear()
    read(new)
    assert not caplog.records, "nothing is old any more"
    assert migrated(new) == new
    cost = yaml.safe_load(new)["routes"]["auto"]["edge"]["capacity"]["step_cost"]
    shown = new.replace(
        yaml.safe_dump(cost, default_flow_style=True, width=10**9, sort_keys=False).strip(), "COST"
    )
    assert sorted(shown.split()) == sorted(NEW.split())
    untouched = [
        line for line in OLD.splitlines() if "threshold" in line or "jane" in line or "budgets" in line
    ]
    assert all(line in new.splitlines() for line in untouched)


def test_what_is_not_old_is_left_as_it_is() -> None:
    text = "models:\n  small:   {replicas: [{url: 'http://127.0.0.1:1'}]}   # as it was\n"
    assert migrated(text) == text


def test_a_file_that_is_wrong_is_not_rewritten() -> None:
    with pytest.raises(BadInput, match="threshhold"):
        migrated(OLD.replace("threshold", "threshhold"))
    with pytest.raises(BadInput, match=r"is given beside .*capacity.max_model_len"):
        migrated(
            OLD.replace("      model: small\n", "      model: small\n      capacity: {max_model_len: 1}\n")
        )


def test_what_an_alias_stands_for_is_rewritten_once() -> None:
    small = "      model: small\n"
    text = OLD.replace("price: {input: 2.5, output: 10, cached: 0.5}", "price: *usual")
    text = text.replace(small, f"{small}      price: &usual {{input: 2.5, output: 10}}\n")
    new = migrated(text)
    assert read(new) == read(text)
    assert new.count("input_usd_per_million") == 1


@pytest.mark.parametrize("name", ["context", "connect_timeout"])
def test_an_alias_in_the_place_of_an_old_setting_is_said_to_be_changed_by_hand(name: str) -> None:
    text = OLD.replace("usd_per_day: 5", "usd_per_day: &n 5")
    old = next(line for line in text.splitlines() if f" {name}:" in line)
    budgets = text.splitlines()[-1]
    text = text.replace(old, f"      {name}: *n").replace(f"{budgets}\n", "")
    with pytest.raises(BadInput, match=rf"{name} is an alias .*change it by hand"):
        migrated(f"{budgets}\n{text}")


# -- any style -----------------------------------------------------------------------------------------------

_SIDE = {
    "context": st.sampled_from(["4096", "8192"]),
    "connect_timeout": st.just("2"),
    "first_chunk_timeout": st.just("20"),
    "idle_timeout": st.just("9"),
    "reports_load": st.sampled_from(["true", "false"]),
    "step_cost": st.just("default"),
    "price": st.sampled_from(["{input: 1, output: 2}", "{output: 2, cached: 0.5, input: 3}"]),
    "max_tokens": st.just("77"),
    "abilities": st.just("[tools]"),
}
_HOMES = ["timeouts: {total: 9}", "timeouts: {}", "capacity: {max_sequences: 4}"]


@st.composite
def sides(draw: st.DrawFn) -> tuple[list[str], bool]:
    """The settings of a side in any order, and whether they are written on one line."""
    names = draw(st.lists(st.sampled_from(sorted(_SIDE)), unique=True))
    written = [f"{name}: {draw(_SIDE[name])}" for name in names]
    path = draw(st.sampled_from(["", "/v1", "/api"]))
    written += [f"url: http://127.0.0.1:1{path}", "model: m"]
    written += draw(st.lists(st.sampled_from(_HOMES), max_size=2, unique_by=lambda home: home.split(":")[0]))
    return draw(st.permutations(written)), draw(st.booleans())


def _in_yaml(name: str, written: list[str], is_flow: bool, comments: bool) -> str:
    if is_flow:
        return f"    {name}: {{{', '.join(written)}}}\n"
    lines = [f"      {one}{f'  # about {n}' if comments else ''}" for n, one in enumerate(written)]
    return f"    {name}:\n" + "\n".join(lines) + "\n"


@given(edge=sides(), cloud=sides(), comments=st.booleans(), ends=st.booleans(), listed=st.booleans())
def test_any_old_file_means_the_same_afterwards(
    edge: tuple[list[str], bool], cloud: tuple[list[str], bool], comments: bool, ends: bool, listed: bool
) -> None:
    if listed:
        entries = []
        for level, (written, is_flow) in (("edge", edge), ("cloud", cloud)):
            inside = [*written, f"name: {level}", f"level: {level}"]
            flow, block = f"{{{', '.join(inside)}}}", "\n        ".join(inside)
            entries.append(f"      - {flow if is_flow else block}\n")
        text = "routes:\n  auto:\n    places:\n" + "".join(entries)
    else:
        text = "routes:\n  auto:\n" + _in_yaml("edge", *edge, comments) + _in_yaml("cloud", *cloud, comments)
    text = text if ends else text.rstrip("\n")
    try:
        before = read(text)
    except BadInput:
        return
    new = migrated(text)
    assert read(new) == before
    assert migrated(new) == new
    assert new.count("# about") == text.count("# about")


# -- the command ---------------------------------------------------------------------------------------------


def command(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "weighbridge", "config", "migrate", *words],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_command_shows_the_difference_and_writes_when_told(tmp_path: Path) -> None:
    file = tmp_path / "weighbridge.yaml"
    file.write_text(OLD)
    file.chmod(0o640)
    shown = command(tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "-keys:            # of the team" in shown.stdout
    assert "+tenants:            # of the team" in shown.stdout
    assert "jane-secret-key" not in shown.stdout
    assert "--write changes it" in shown.stdout
    assert file.read_text() == OLD
    written = json.loads(command(tmp_path, "--write", "--json").stdout)
    assert (written["changed"], written["written"]) == (True, True)
    assert read(file.read_text()) == read(OLD)
    assert file.stat().st_mode & 0o777 == 0o640
    assert "nothing is old" in command(tmp_path).stdout


def test_a_residency_in_capitals_is_told_which_one_it_is() -> None:
    rule = "rules: [{name: a, labels: [b], residency: Never_Leaves}]"
    with pytest.raises(
        BadInput, match=r"residency: 'Never_Leaves' is not known \(did you mean 'never_leaves'\?\)"
    ):
        read(f"routes: {{auto: {{edge: {{url: http://a}}, cloud: {{url: http://b}}, {rule}}}}}")
