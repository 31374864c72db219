"""weighbridge.yaml: every complaint points at its line and says what to write; keys never show."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from weighbridge.cli.app import app
from weighbridge.cli.config import plain
from weighbridge.errors import BadInput
from weighbridge.fleet.config.load import load_config, parse_config
from weighbridge.fleet.config.replica import replica_from_json
from weighbridge.secret import Secret

GOOD = """\
listen: 0.0.0.0:9000
admin_key: operator
tenants:
  alice:
    keys:
      - {key: a-secret, expires: 2999-01-01}
    limits: {tokens_per_minute: 1000, usd_per_day: 2.5}
models:
  small:
    aliases: [default, gpt]
    policy: least_tokens
    replicas:
      - url: http://127.0.0.1:8001/v1
        dialect: vllm
        capacity:
          step_cost: {overhead: 0.001, memory: 0.01, per_token: 1.0e-4, per_context_token: 1.0e-7, per_sequence: 0}
      - process: smollm2-135m-instruct
        count: 2
        threads: 1
        options: [--quantize, int8]
"""


def parse(text: str):  # type: ignore[no-untyped-def]
    return parse_config(text, "weighbridge.yaml", Path("."))


def problems(text: str) -> list[str]:
    with pytest.raises(BadInput) as caught:
        parse(text)
    return str(caught.value).splitlines()


def test_a_good_file_is_read() -> None:
    spec = parse(GOOD)
    assert (spec.host, spec.port) == ("0.0.0.0", 9000)
    [model] = spec.models
    url, process = model.replicas
    assert (url.name, url.target, url.dialect) == ("small-0", "http://127.0.0.1:8001", "vllm")
    assert url.capacity.step_cost is not None
    assert url.capacity.step_cost.memory == 0.01
    assert (process.kind, process.count, process.options) == ("process", 2, ("--quantize", "int8"))
    assert process.dialect == "weighbridge"
    assert spec.tenants[0].limits.tokens_per_minute == 1000


def test_options_of_a_process_may_be_a_mapping_of_the_engines() -> None:
    text = GOOD.replace("[--quantize, int8]", "{quantize: int8, kv_cache_memory: 1GiB, speculate: false}")
    process = parse(text).models[0].replicas[1]
    assert process.options == ("--no-speculate", "--quantize", "int8", "--kv-cache-memory", "1GiB")


@pytest.mark.parametrize(
    ("wrong", "line", "said"),
    [
        (GOOD.replace("[--quantize, int8]", "{quantise: int8}"), 20, "did you mean 'quantize'"),
        (GOOD.replace("[--quantize, int8]", "{max_sequences: 0}"), 20, "at least 1"),
        (GOOD.replace("[--quantize, int8]", "{kv_cache_memory: lots}"), 20, "512MiB"),
        (GOOD.replace("policy: least_tokens", "policy: least_token"), 11, "did you mean 'least_tokens'"),
        (GOOD.replace("aliases:", "alias:"), 10, "did you mean 'aliases'"),
        (GOOD.replace("dialect: vllm", "dialect: vlm"), 14, "did you mean 'vllm'"),
        (GOOD.replace("http://127.0.0.1:8001/v1", "127.0.0.1:8001"), 13, "http://127.0.0.1:8000"),
        (GOOD.replace("count: 2", "count: two"), 18, "whole number"),
        (GOOD.replace("threads: 1", "threads: 0"), 19, "at least 1"),
        (GOOD.replace("listen: 0.0.0.0:9000", "listen: 9000"), 1, "must be text"),
        (GOOD.replace("0.0.0.0:9000", "somewhere"), 1, "HOST:PORT"),
        (GOOD.replace("2999-01-01", "soon"), 6, "2027-01-31"),
        (GOOD.replace("usd_per_day: 2.5", "usd_per_day: -1"), 7, "greater than 0"),
        (GOOD.replace("usd_per_day: 2.5", "usd_per_day: 2.5, zone: Europe/Munich"), 7, "Europe/Berlin"),
        (GOOD.replace("usd_per_day: 2.5", "usd_per_day: 2.5, window: week"), 7, "rolling, day"),
        (GOOD.replace("usd_per_day: 2.5", "usd_per_day: 2.5, window: rolling, zone: UTC"), 7, "window: day"),
        (GOOD.replace("usd_per_day: 2.5", "window: day"), 7, "usd_per_day"),
        (GOOD.replace("overhead: 0.001, ", ""), 16, "overhead"),
        (GOOD.replace("        dialect: vllm\n", "        process: x\n"), 14, "exactly one of"),
        (
            GOOD.replace("key: a-secret", "key_env: WEIGHBRIDGE_NO_SUCH_KEY"),
            6,
            "export WEIGHBRIDGE_NO_SUCH_KEY",
        ),
        (GOOD + "  small: {}\n", 21, "twice"),
        (GOOD + "policies: weigh\n", 21, "is not a setting"),
    ],
)
def test_what_is_wrong_has_a_line_and_a_remedy(wrong: str, line: int, said: str) -> None:
    found = problems(wrong)
    assert any(one.startswith(f"weighbridge.yaml:{line}: ") and said in one for one in found), found


@pytest.mark.parametrize(
    ("words", "zone"),
    [
        ("", None),
        (", window: rolling", None),
        (", window: day", "UTC"),
        (", zone: Asia/Kathmandu", "Asia/Kathmandu"),
        (", window: day, zone: Australia/Lord_Howe", "Australia/Lord_Howe"),
    ],
)
def test_money_counts_in_the_last_24_hours_or_by_the_days_of_a_zone(words: str, zone: str | None) -> None:
    spec = parse_config(
        GOOD.replace("usd_per_day: 2.5", f"usd_per_day: 2.5{words}"), "weighbridge.yaml", Path(".")
    )
    assert spec.tenants[0].limits.zone == zone


def test_all_problems_are_told_in_the_order_of_the_file() -> None:
    found = problems("models: {m: {policy: x, replicas: [{url: y}]}}\nlisten: z\nqueue: {max_wait: 0}\n")
    assert [one.split(":")[1] for one in found] == ["1", "1", "2", "3"]


def test_days_and_numbers_that_there_are_not() -> None:
    fleet = "models: {m: {replicas: [{url: 'http://h:1'}]}}\n"
    for day in ("0000-01-01", "2026-02-30", "2026-01-01 25:00:00"):
        found = problems(fleet + f"tenants: {{t: {{keys: [{{key: secret, expires: {day}}}]}}}}")
        assert f"tenants.t.keys[0].expires: '{day}' is no date" in found[0]
    assert "max_wait: must be a number" in problems(fleet + f"queue: {{max_wait: {'9' * 5000}}}")[0]
    assert "is no address" in problems(fleet + f"listen: 'h:{'1' * 5000}'")[0]


@pytest.mark.parametrize(
    "value", ["!!timestamp soon", "!!bool maybe", '!!int ""', '!!float ""', "!!binary é"]
)
def test_what_is_not_of_the_type_that_it_claims(value: str) -> None:
    fleet = "models: {m: {replicas: [{url: 'http://h:1'}]}}\n"
    assert "queue.max_wait: must be a number" in problems(f"{fleet}queue: {{max_wait: {value}}}")[0]


@pytest.mark.parametrize("path", ["\\ud800", "a\\0b", "~nobody-of-this-name/key.pem"])
def test_what_can_be_no_path_is_a_problem_of_its_field(path: str) -> None:
    with pytest.raises(BadInput, match="tls_cert: is no path"):
        parse_config(
            f'models: {{m: {{replicas: [{{url: "http://h:1"}}]}}}}\ntls_cert: "{path}"\n', "w.yaml", Path(".")
        )


def test_files_that_are_no_yaml() -> None:
    assert problems("models: [")[0].startswith("weighbridge.yaml:1: this is no YAML")
    assert "must be a mapping" in problems("just text")[0]
    assert "at least one model" in problems("")[0]
    assert "Python" not in "".join(problems("models: !!python/object/apply:os.system [true]"))


def test_names_must_lead_to_one_thing() -> None:
    two = "models:\n  a: {aliases: [b], replicas: [{url: 'http://h:1', name: r}]}\n"
    two += "  b: {replicas: [{url: 'http://h:2', name: r}]}\n"
    found = "\n".join(problems(two))
    assert "'b' leads to 'a' and to 'b'" in found
    assert "two replicas are called 'r'" in found


def test_two_tenants_must_not_share_a_key() -> None:
    found = problems(GOOD.replace("  alice:\n", "  bob: {key: a-secret}\n  alice:\n"))
    assert "same key" in found[0]
    assert "a-secret" not in found[0]


def test_files_and_names_of_identity_are_checked_where_they_are_written(tmp_path: Path) -> None:
    for line, said in (
        ("tls_cert: none.pem", "tls_cert: .*none.pem does not exist"),
        ("tls_client_ca: .", "tls_client_ca needs tls_cert"),
        ("insecure: maybe", "true or false"),
        ("tls_cert: .\ntls_client_ca: .\nclient_certificates: {IP:1: a}", "DNS:batch.example=batch"),
        ("client_certificates: [CN:a=b]", "need tls_client_ca"),
        ("tls_crt: x", "did you mean 'tls_cert'"),
    ):
        with pytest.raises(BadInput, match=said) as caught:
            parse_config(f"{GOOD}{line}\n", "weighbridge.yaml", tmp_path)
        assert str(caught.value).startswith(f"weighbridge.yaml:{21 + line.count(chr(10))}: ")
    text = "tls_cert: c.pem\ntls_client_ca: c.pem\nclient_certificates: {'URI:spiffe://x': a, CN:b: b}\n"
    (tmp_path / "c.pem").touch()
    spec = parse_config(GOOD + text, "weighbridge.yaml", tmp_path)
    assert spec.tls_cert == tmp_path / "c.pem"
    assert [(one.name, one.tenant) for one in spec.client_certificates] == [
        ("URI:spiffe://x", "a"),
        ("CN:b", "b"),
    ]
    replica = GOOD.replace("dialect: vllm", "tls_ca: c.pem")
    assert (
        parse_config(replica, "weighbridge.yaml", tmp_path).models[0].replicas[0].trust.ca
        == tmp_path / "c.pem"
    )


def test_a_key_may_be_its_hash() -> None:
    """`printf a-secret | sha256sum`."""
    written = "sha256:" + hashlib.sha256(b"a-secret").hexdigest()
    spec = parse(GOOD.replace("a-secret", written).replace("operator", written))
    assert spec.tenants[0].keys[0].secret == Secret(written)
    assert "same key" in problems(GOOD.replace("  alice:\n", f"  bob: {{key: '{written}'}}\n  alice:\n"))[0]
    [found] = problems(GOOD.replace("a-secret", "sha256:canary"))
    assert found.startswith("weighbridge.yaml:6: tenants.alice.keys[0].key: ")
    assert "64 hexadecimal digits" in found
    assert "canary" not in found
    assert "admin_key" in problems(GOOD.replace("operator", "sha256:canary"))[0]


def test_keys_come_from_the_environment_and_never_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUD_KEY", "sk-hidden")
    spec = parse(GOOD.replace("dialect: vllm", "key_env: CLOUD_KEY"))
    key = spec.models[0].replicas[0].key
    assert key is not None
    assert key.reveal() == "sk-hidden"
    assert "sk-hidden" not in repr(spec)
    assert "sk-hidden" not in json.dumps(plain(spec))
    assert "a-secret" not in json.dumps(plain(spec))


def test_a_password_in_a_url_does_not_show() -> None:
    spec = parse(GOOD.replace("http://127.0.0.1", "http://user:hidden@127.0.0.1"))
    replica = spec.models[0].replicas[0]
    assert replica.target == "http://127.0.0.1:8001"
    assert replica.account == Secret("user:hidden")
    assert "hidden" not in json.dumps(plain(spec))


def test_a_replica_in_json_is_read_like_one_in_yaml() -> None:
    spec = replica_from_json({"url": "http://h:1", "limits": {"concurrent_requests": 3}}, "x")
    assert (spec.name, spec.limits.concurrent_requests) == ("x", 3)
    with pytest.raises(BadInput, match=r"the request: dialect: 'q' is not known"):
        replica_from_json({"url": "http://h:1", "dialect": "q"}, "x")
    with pytest.raises(BadInput, match="JSON object"):
        replica_from_json(["http://h:1"], "x")


def test_the_command_line_checks_and_shows(tmp_path: Path) -> None:
    file = tmp_path / "weighbridge.yaml"
    file.write_text(GOOD)
    runner = CliRunner()
    checked = runner.invoke(app, ["config", "check", str(file), "--json"])
    assert json.loads(checked.output) == {"file": str(file), "ok": True, "models": 1, "replicas": 3}
    shown = runner.invoke(app, ["config", "show", str(file), "--json"])
    assert json.loads(shown.output)["models"][0]["replicas"][0]["target"] == "http://127.0.0.1:8001"
    assert "a-secret" not in shown.output
    file.write_text(GOOD.replace("policy:", "polcy:"))
    failed = runner.invoke(app, ["config", "check", str(file)])
    assert isinstance(failed.exception, BadInput)  # main() turns it into one line and exit code 2
    told = runner.invoke(app, ["config", "check", str(file), "--json"])
    assert told.exit_code == 2
    told_problems = json.loads(told.output)
    assert told_problems["ok"] is False
    assert any("polcy" in line for line in told_problems["problems"])


def test_shared_limits_show_without_their_password(tmp_path: Path) -> None:
    file = tmp_path / "weighbridge.yaml"
    file.write_text(GOOD)
    assert "shared_limits: none" in CliRunner().invoke(app, ["config", "show", str(file)]).output
    file.write_text(
        GOOD + "shared_limits: {redis: 'redis://me:hush@10.0.0.9:6379/2?password=hush', prefix: wb}\n"
    )
    shown = CliRunner().invoke(app, ["config", "show", str(file)]).output
    assert "shared_limits: redis redis://10.0.0.9:6379/2, prefix wb, timeout 0.25" in " ".join(shown.split())
    assert "hush" not in shown


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot read the configuration"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(BadInput, match="does not exist"):
        parse("models: {m: {tokenizer: nowhere, replicas: [{url: 'http://h:1'}]}}")


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? ", "[{a: "])
def test_what_is_nested_without_end_is_refused_at_once(opening: str) -> None:
    began = time.thread_time()
    [said] = problems(opening * 4000)
    assert time.thread_time() - began < 0.5
    assert said == "weighbridge.yaml:1: it is nested too deeply: lists and mappings go 64 deep"
    [said] = problems("".join(f"{' ' * depth}a:\n" for depth in range(300)))
    assert said.startswith("weighbridge.yaml:65: it is nested too deeply")


@pytest.mark.parametrize("text", ["models:\n\tm: 1\n", "models:\n  m:\n\treplicas: []\n", "-\t\ta: 1\n\tb"])
def test_a_tab_is_called_one(text: str) -> None:
    assert "there is a tab where YAML takes spaces only" in problems(text)[0]


def test_names_that_are_numbers_are_not_taken_for_numbers_of_lines() -> None:
    twice = (
        "models: {m: {replicas: [{url: 'http://a'}]}}\ntenants: {7: {key: aa}, 7: {key: bb}}\n7: x\n7: y\n"
    )
    said = problems(twice)
    assert "weighbridge.yaml:2: tenants.'7': is given twice; keep one of them" in said
    assert "weighbridge.yaml:4: '7': is given twice; keep one of them" in said


def test_a_name_is_text() -> None:
    assert problems(GOOD + "health: {[1]: 2}\n") == [
        "weighbridge.yaml:21: health: has a name that is a list or a mapping; a name is text"
    ]


def test_the_patience_of_tenants_is_a_setting_of_the_queue() -> None:
    assert parse(GOOD).queue.tenant_patience == 0.5
    assert parse(GOOD + "queue: {tenant_patience: 0}\n").queue.tenant_patience == 0.0
    [said] = problems(GOOD + "queue: {tenant_patience: -1}\n")
    assert "queue.tenant_patience: must be a number of at least 0" in said


def test_keys_that_are_not_keys_are_not_the_same_key() -> None:
    found = problems(
        """
models: {m: {replicas: [{url: "http://127.0.0.1:9"}]}}
tenants:
  a: {key: "x\\ny"}
  b: {key: "z\\ny"}
"""
    )
    assert len(found) == 2, found
    assert all("line break" in one for one in found)
