"""Take each check of `wire/` out, one at a time, and see that a test fails: `python tools/deletions.py [WORDS]`.

So with those of what models write (`server/styles`) and of what replicas tell of their caches (`fleet/kv`).

Nothing in the tree is changed. The module without the check is written to a scratch folder and imported in place of its
own by every process of the test run. A check is named by the function or class it stands in and by its code, so that a
deletion fails loudly once the code has moved away. With WORDS only the deletions whose name has all of them are made.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
DOORS = ("single", "gateway", "route", "routes")
#: Seconds for one run of a few rows, server starts included.
PATIENCE = 600.0


class Moved(Exception):
    """The code that a deletion names is not there any more, or is there more than once."""


@dataclass(frozen=True, slots=True)
class Deletion:
    """One check and how it is taken out.

    `where` is a module below `package` and what the check stands in ("access:check_site", "ask:Extension"); `code` is
    the check itself: a statement (for `if` and `for` the head alone, with `...` as the body), an `except` clause, an
    expression or a keyword argument. `instead` stands there afterwards; empty: nothing. `rows` are rows of the doors'
    table that must notice, `tests` other tests below tests/doors, or below tests where a folder is named.
    """

    name: str
    where: str
    code: str
    instead: str = ""
    rows: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()
    package: str = "weighbridge.wire"

    @property
    def module(self) -> str:
        return f"{self.package}.{self.where.partition(':')[0]}"

    @property
    def path(self) -> Path:
        return ROOT / "src" / Path(*self.module.split(".")).with_suffix(".py")

    @property
    def scope(self) -> str:
        return self.where.partition(":")[2]

    @property
    def node_ids(self) -> list[str]:
        """What pytest calls the tests that must notice."""
        row = "tests/doors/test_doors.py::test_a_door_answers_as_wanted[{}-{}]"
        return [
            *(row.format(door, name) for name in self.rows for door in DOORS),
            *(f"tests/{name}" if "/" in name else f"tests/doors/{name}" for name in self.tests),
        ]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a test run said: the tests that failed, and what went wrong beside them (empty: nothing)."""

    failed: tuple[str, ...]
    trouble: str = ""


# -- taking a check out ----------------------------------------------------------------------------------


def without(source: str, deletion: Deletion) -> str:
    """`source` without the check. Raises Moved where it is not there exactly once."""
    tree = ast.parse(source)
    scope = _scope(tree, deletion.scope)
    if scope is None:
        raise Moved(f"{deletion.path}: there is no {deletion.scope!r}")
    taking = _Taking(deletion.code, deletion.instead)
    taking.visit(scope)
    if taking.found != 1:
        raise Moved(f"{deletion.path}: {deletion.scope} has {deletion.code!r} {taking.found} times, not once")
    return ast.unparse(ast.fix_missing_locations(tree))


def _scope(tree: ast.Module, name: str) -> ast.AST | None:
    """The class or function called `name`, with dots between those that stand inside each other."""
    here: ast.AST = tree
    for word in name.split(".") if name else ():
        found = [
            node
            for node in ast.iter_child_nodes(here)
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name == word
        ]
        if len(found) != 1:
            return None
        here = found[0]
    return here


class _Taking(ast.NodeTransformer):
    """Takes out what `code` names, and counts how often it did."""

    def __init__(self, code: str, instead: str) -> None:
        self._wanted = _parsed(code)
        self._instead = instead
        self.found = 0

    def visit(self, node: ast.AST) -> ast.AST | list[ast.stmt] | None:
        alone = isinstance(node, ast.Expr) and not self._instead and _is_the_same(node.value, self._wanted)
        if alone or _is_the_same(node, self._wanted):
            self.found += 1
            if self._instead:
                return _parsed(self._instead)
            if isinstance(node, ast.stmt):
                return [*getattr(node, "orelse", ())] or ast.Pass()
            return None  # an `except` clause, a keyword argument
        self.generic_visit(node)
        if isinstance(node, ast.Try) and not node.handlers and not node.finalbody:
            return node.body
        return node


def _parsed(code: str) -> ast.AST:
    """The node that `code` stands for."""
    if code.startswith("except"):
        [statement] = ast.parse(f"try: ...\n{code} ...").body
        assert isinstance(statement, ast.Try)
        return statement.handlers[0]
    [statement] = ast.parse(code).body
    return statement.value if isinstance(statement, ast.Expr) else statement


def _is_the_same(node: ast.AST, wanted: ast.AST) -> bool:
    """Whether two pieces of code read alike; the body of what `wanted` shows the head of does not matter."""
    if isinstance(node, ast.keyword) and isinstance(wanted, ast.Assign):
        return [node.arg] == [getattr(target, "id", None) for target in wanted.targets] and _is_the_same(
            node.value, wanted.value
        )
    if type(node) is not type(wanted):
        return False
    if isinstance(node, ast.ExceptHandler) and isinstance(wanted, ast.ExceptHandler):
        return _text(node.type) == _text(wanted.type)
    if isinstance(node, ast.If | ast.While) and isinstance(wanted, ast.If | ast.While):
        return _text(node.test) == _text(wanted.test)
    return _text(node) == _text(wanted)


def _text(node: ast.AST | None) -> str:
    return "" if node is None else ast.dump(node)


# -- running the tests without it ------------------------------------------------------------------------

#: Runs at the start of every process of a test run and brings the other module in, wherever the package is from.
_HOOK = """
import importlib.abc, importlib.util, pathlib, sys

class Instead(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != {module!r}:
            return None
        pathlib.Path({mark!r}).touch()
        return importlib.util.spec_from_file_location(name, {file!r})

sys.meta_path.insert(0, Instead())
"""


def run(deletion: Deletion) -> Outcome:
    """Run the tests of a deletion without its check; the first that fails ends the run."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        file, mark = folder / f"{deletion.path.stem}.py", folder / "imported"
        file.write_text(without(deletion.path.read_text(encoding="utf-8"), deletion), encoding="utf-8")
        hook = _HOOK.format(module=deletion.module, file=str(file), mark=str(mark))
        (folder / "sitecustomize.py").write_text(hook, encoding="utf-8")
        outcome = run_tests(deletion.node_ids, folder)
        return outcome if mark.exists() else Outcome((), "the module without the check was never imported")


def run_tests(node_ids: Sequence[str], before: Path | None = None) -> Outcome:
    """Run these tests until one fails; `before` comes first where Python looks for modules."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        places = [str(before)] if before is not None else []
        places += [os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else []
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-x",
                "-p",
                "no:cacheprovider",
                f"--junitxml={report}",
                *node_ids,
            ],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        if not report.exists():
            return Outcome((), f"no tests ran: {(done.stdout + done.stderr)[-1000:]}")
        return _outcome(report)


def _outcome(report: Path) -> Outcome:
    """Read a report: what failed is a finding; what could not even begin is trouble."""
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = tuple(case.get("name", "") for case in cases if case.find("failure") is not None)
    errors = [case.get("name", "") for case in cases if case.find("error") is not None]
    if not cases:
        return Outcome(failed, "no tests ran")
    return Outcome(failed, f"{errors[0]} could not begin" if errors and not failed else "")


def verdict(deletion: Deletion) -> tuple[bool, str]:
    """Whether a test notices that a check is gone, and which one, or why not."""
    try:
        outcome = run(deletion)
    except Moved as moved:
        return False, f"MOVED: {moved}"
    except subprocess.TimeoutExpired:
        return False, f"NOT CAUGHT: no end within {PATIENCE:g} s"
    if outcome.failed:
        return True, f"caught by {outcome.failed[0]}"
    return False, f"NOT CAUGHT{': ' if outcome.trouble else ''}{outcome.trouble}"


def baseline(deletions: Sequence[Deletion]) -> Outcome:
    """Run the tests of all `deletions` on the code as it is: a test that fails anyway notices nothing."""
    return run_tests(list(dict.fromkeys(name for one in deletions for name in one.node_ids)))


# -- the checks ------------------------------------------------------------------------------------------

FORGED = "wire/test_tokens.py::test_no_way_to_forge_one"
CRITICAL = "wire/test_tokens.py::test_what_a_header_says_must_be_understood_is"
NO_SET = "wire/test_tokens.py::test_what_is_no_set_of_keys_is_refused"
USELESS = "wire/test_tokens.py::test_keys_that_cannot_check_a_signature_are_left_out"
HOPS = "wire/test_proxies.py::test_the_client_is_the_last_one_that_a_trusted_proxy_saw"

#: Of the front: what a client may send, and who it is.
BODIES = [
    Deletion(
        "the size that a body is said to have",
        "body:_as_sent",
        "if declared.isdigit() and int(declared) > limit: ...",
        rows=("a body said to be over the limit",),
    ),
    Deletion(
        "the size that a body turns out to have",
        "body:_as_sent",
        "if size > limit: ...",
        rows=("a body over the limit in chunks",),
    ),
    Deletion("an empty body", "body:decode", "if not body.strip(): ...", rows=("an empty body",)),
    Deletion(
        "a body that is not JSON",
        "body:decode",
        "except (msgspec.DecodeError, UnicodeDecodeError) as error:",
        rows=("half a body",),
    ),
    Deletion(
        "a field of the wrong type, by its name",
        "body:decode",
        "except msgspec.ValidationError as error:",
        rows=("a number as the model",),
    ),
    Deletion(
        "a body nested too deeply",
        "body:decode",
        "except RecursionError:",
        rows=("a body nested without end", "a field nested too deeply", "a message nested too deeply"),
    ),
    Deletion(
        "a field that is missing, by its name",
        "body:_explain",
        "return f'the field {missing[1]!r} is required', missing[1]",
        "return text, None",
        rows=("messages: none",),
    ),
    Deletion(
        "no messages",
        "protocols.chat:_ChatPeek",
        "messages: Annotated[list[_Message], Meta(min_length=1)]",
        "messages: list[_Message]",
        rows=("messages: [], for a cloud",),
    ),
    Deletion(
        "an empty role",
        "protocols.chat:_Message",
        "role: Annotated[str, Meta(min_length=1)]",
        "role: str",
        rows=("messages: [{'role': '', 'content': 'hello'}], for a cloud",),
    ),
    Deletion(
        "the number of choices",
        "protocols.openai:Peek",
        "n: Positive | None = None",
        "n: int | None = None",
        rows=("n: 0, for a cloud",),
    ),
    Deletion(
        "the number of tokens",
        "protocols.openai:Peek",
        "max_tokens: Positive | None = None",
        "max_tokens: int | None = None",
        rows=("max_tokens: 0, for a cloud",),
    ),
    Deletion(
        "the number of tokens under its other name",
        "protocols.chat:ChatProtocol.read",
        "peek.max_completion_tokens or peek.max_tokens",
        "peek.max_tokens",
        rows=("max_completion_tokens alone", "max_completion_tokens beside max_tokens"),
    ),
    Deletion(
        "the length of a cache's salt",
        "protocols.openai:Peek",
        "cache_salt: Annotated[str, Meta(max_length=LONGEST_SALT)] | None = None",
        "cache_salt: str | None = None",
        rows=("a salt of 1,025 characters",),
    ),
    Deletion(
        "the number of prompts",
        "protocols.completions:_prompts",
        "if len(items) > MAX_PROMPTS: ...",
        rows=("a completion of too many prompts",),
    ),
    Deletion(
        "an output for each prompt",
        "protocols.completions:CompletionProtocol.read",
        "ask.choices *= _prompts(bytes(ask.fields['prompt']))",
        rows=("a completion of two prompts",),
    ),
    Deletion(
        "an embedding of two things, or of none",
        "protocols.embeddings:EmbeddingProtocol.read",
        "if _given(ask, 'input') == _given(ask, 'messages'): ...",
        rows=("an embedding of nothing", "an embedding of a text and a chat"),
    ),
]
EXTENSION = [
    Deletion(
        "an unknown field of the extension",
        "ask:Extension",
        "forbid_unknown_fields=True",
        rows=("a misspelt 'label' in the body",),
    ),
    Deletion(
        "an unknown header of ours",
        "extension:our_headers",
        "if name not in _HEADERS: ...",
        rows=("a misspelt header 'label'",),
    ),
    Deletion(
        "a header that is nearly ours",
        "extension",
        "_MEANT = (OURS, 'x-weighbridge', 'x_weighbridge', 'weighbridge')",
        "_MEANT = (OURS,)",
        rows=("a header that is meant to be ours: 'x_weighbridge_labels'",),
    ),
    Deletion(
        "letters of a label that nobody sees",
        "ask:folded",
        "[one for one in text if unicodedata.category(one) not in _UNSEEN and one not in _BLANK]",
        "[*text]",
        rows=("a label with letters that nobody sees",),
    ),
    Deletion(
        "a tenant without a name",
        "ask:Extension",
        "tenant: Annotated[str, Meta(min_length=1, max_length=LONGEST_NAME)] | None = None",
        "tenant: Name | None = None",
        rows=("an empty tenant in the body",),
    ),
    Deletion(
        "a tenant's long name in the body",
        "ask:Extension",
        "tenant: Annotated[str, Meta(min_length=1, max_length=LONGEST_NAME)] | None = None",
        "tenant: Annotated[str, Meta(min_length=1)] | None = None",
        rows=("a tenant of 201 characters",),
    ),
    Deletion(
        "a tenant's long name in a header",
        "extension:apply_caller",
        "(body.tenant or ours.get('tenant') or ask.user or 'default')[:LONGEST_NAME]",
        "body.tenant or ours.get('tenant') or ask.user or 'default'",
        rows=("a header's tenant of 300 characters",),
    ),
    Deletion(
        "the key's tenant before any other",
        "extension:apply_caller",
        "caller.named(body.tenant, headers)",
        "body.tenant or ours.get('tenant') or caller.tenant",
        rows=("a key and another tenant in the body", "a key and another tenant in a header"),
    ),
    Deletion(
        "the number of labels in the body",
        "ask:Extension",
        "labels: Annotated[list[str], Meta(max_length=MAX_LABELS)] | None = None",
        "labels: list[str] | None = None",
        rows=("33 equal labels in the body",),
    ),
    Deletion(
        "the number of labels in a header",
        "extension:_labels",
        "if len(labels) > MAX_LABELS: ...",
        rows=("33 labels in a header",),
    ),
    Deletion(
        "labels of the body",
        "extension:_labels",
        "[*(inside or ()), ours.get('labels', '')]",
        "[ours.get('labels', '')]",
        rows=("a label in the body",),
    ),
    Deletion(
        "labels of a header",
        "extension:_labels",
        "[*(inside or ()), ours.get('labels', '')]",
        "[*(inside or ())]",
        rows=("a label in a header",),
    ),
    Deletion(
        "several labels in one string",
        "extension:_labels",
        "line.split(',')",
        "[line]",
        rows=("two labels in one line", "two labels in one string"),
    ),
    Deletion(
        "labels in whatever case",
        "ask:folded",
        "unicodedata.normalize('NFKC', label).strip().casefold()",
        "unicodedata.normalize('NFKC', label).strip()",
        rows=("a label in capitals",),
    ),
    Deletion(
        "labels in whatever width",
        "ask:folded",
        "unicodedata.normalize('NFKC', label)",
        "label",
        rows=("a label of wide letters",),
    ),
    Deletion(
        "labels with spaces around them",
        "ask:folded",
        "unicodedata.normalize('NFKC', label).strip().casefold()",
        "unicodedata.normalize('NFKC', label).casefold()",
        rows=("a label with spaces",),
    ),
    Deletion(
        "all lines of a header",
        "headers:headers_of",
        "f'{headers[key]}, {text}'",
        "text",
        rows=("two lines of labels, the first one counts too",),
    ),
    Deletion(
        "a header's letters of elsewhere",
        "headers:headers_of",
        "if not value.isascii() and key.startswith(OURS): ...",
        rows=("a header's tenant with a letter of elsewhere",),
    ),
    Deletion(
        "a placement that there is not",
        "extension:_placement",
        "if word not in _PLACEMENTS: ...",
        rows=("header placement: 'moon'",),
    ),
    Deletion(
        "a placement of no word",
        "extension:_placement",
        "if outside is not None and not outside.strip(): ...",
        rows=("header placement: ''",),
    ),
    Deletion(
        "the strictest placement of all sides",
        "extension:_placement",
        "if Placement.ONLY_EDGE in words: ...",
        rows=("only_edge in a header, only_cloud in the body",),
    ),
    Deletion(
        "a number that is none, or beyond its bounds",
        "extension:_number",
        "if not (abs(value) < 1e12 and value >= min and value > above): ...",
        rows=("header deadline-ms: '-1'", "header max-usd: '-1'"),
    ),
    Deletion(
        "a flag that is none",
        "extension:_flag",
        "if value is None: ...",
        rows=("header resume: 'maybe'",),
    ),
    Deletion(
        "the bounds of a priority",
        "extension:_priority",
        "max(LOWEST_PRIORITY, min(max(given), HIGHEST_PRIORITY))",
        "max(given)",
        rows=("a priority above the bound", "a header's priority below the bound"),
    ),
    Deletion(
        "the later priority of two",
        "extension:_priority",
        "max(given)",
        "min(given)",
        rows=("the later priority of two",),
    ),
    Deletion(
        "a deadline of nothing",
        "ask:Extension",
        "deadline_ms: Annotated[float, Meta(gt=0.0)] | None = None",
        "deadline_ms: float | None = None",
        rows=("weighbridge.deadline_ms: -1",),
    ),
    Deletion(
        "the nearer deadline of two",
        "extension:_apply_wishes",
        "min(deadlines)",
        "max(deadlines)",
        rows=("the nearer deadline of two",),
    ),
    Deletion(
        "a sum below nothing",
        "ask:Extension",
        "max_usd: Annotated[float, Meta(ge=0.0)] | None = None",
        "max_usd: float | None = None",
        rows=("weighbridge.max_usd: -1",),
    ),
    Deletion(
        "the smaller sum of two",
        "extension:_apply_wishes",
        "min(sums)",
        "max(sums)",
        rows=("the smaller sum of two",),
    ),
    Deletion(
        "the form of a ticket",
        "extension:apply_caller",
        "_TICKET.fullmatch(proposed) is not None",
        "bool(proposed)",
        rows=("a ticket that is too short", "a ticket that is a path"),
    ),
]
CALLERS = [
    Deletion(
        "a key that is not one of ours",
        "keys:Keys.tenant",
        "if entry is None: ...",
        "if entry is None:\n    return 'default'",
        rows=("a wrong key",),
    ),
    Deletion(
        "a key that has expired",
        "keys:Keys.tenant",
        "if expires is not None and time.time() >= expires: ...",
        rows=("a key that has expired",),
    ),
    Deletion(
        "what is cached of a prompt, for its tenant alone",
        "ask:Ask.keep_apart",
        "self.cache_salt = blake2b(self.cache_salt.encode(), digest_size=16, key=own).hexdigest()",
        tests=("test_tenants_apart.py::test_cached_tokens_tell_nothing_of_another_tenants_text",),
    ),
    Deletion(
        "the scheme of a key",
        "keys:bearer",
        "if scheme.lower() != 'bearer': ...",
        rows=("a token of another scheme",),
    ),
    Deletion(
        "a key in Anthropic's header",
        "keys:bearer",
        "sent = headers.get('x-api-key', '')",
        rows=("a message with a key in x-api-key",),
    ),
    Deletion(
        "blocks that a message cannot have",
        "protocols.messages:_part",
        "raise _refusal(place, f'blocks of type {quoted(kind)} are not supported here; {remedy}')",
        "return {'type': 'text', 'text': ''}",
        rows=("a message with a document",),
    ),
    Deletion(
        "a prompt's suffix",
        "protocols.ollama:_check",
        "if request.suffix: ...",
        rows=("a prompt with a suffix",),
    ),
    Deletion(
        "whether a model that is to be loaded is there",
        "door:Door._answer_at_once",
        "self._service.model(ask.model)",
        rows=("a model to load that is not there",),
        package="weighbridge.server",
    ),
    Deletion(
        "a refusal behind a gateway in the client's protocol",
        "answer:Line.refusal",
        "if self._protocol.passes_errors: ...",
        "return answer",
        tests=("fleet/test_translated.py::test_a_replicas_refusal_is_told_in_the_clients_protocol",),
    ),
    Deletion(
        "the host that is asked for",
        "identity.access:check_site",
        "if host and (not is_this_machine(host)) and (host not in access.allow_hosts): ...",
        rows=("the host 'evil.example'",),
    ),
    Deletion(
        "the site of a script",
        "identity.access:check_site",
        "if origin is not None and (not origin_allowed(access, origin)): ...",
        rows=("a script of 'http://evil.example'",),
    ),
]
IDENTITY = [
    Deletion(
        "a tenant's header from whoever sends it",
        "identity.proxies:Proxies.tenant",
        "if word is None or not self.trusts(address): ...",
        "if word is None:\n    return None",
        tests=("test_identity.py::test_the_tenants_header_is_believed_from_a_trusted_proxy_alone",),
    ),
    Deletion(
        "a tenant's header that names several",
        "identity.proxies:Proxies.tenant",
        "if not 0 < len(word) <= LONGEST_NAME or ',' in word or (not word.isprintable()): ...",
        tests=("test_identity.py::test_the_tenants_header_is_believed_from_a_trusted_proxy_alone",),
    ),
    Deletion(
        "for whom a proxy asks that is not trusted",
        "identity.proxies:Proxies.client",
        "'' if any((name in headers for name in FORWARDED)) else address",
        "address",
        tests=("test_identity.py::test_figures_are_for_this_machine_and_not_for_whom_it_asks",),
    ),
    Deletion(
        "a certificate of several tenants",
        "identity.callers:CertificateNames.tenant",
        "if len(found) > 1: ...",
        tests=("test_identity.py::test_everybody_else_is_refused",),
    ),
    Deletion(
        "the audience of a token",
        "identity.tokens:Tokens._checked",
        "{'require': ['exp', 'iss', 'aud']}",
        "{'verify_aud': False}",
        tests=("test_identity.py::test_a_token_of_the_provider_is_read",),
    ),
    Deletion(
        "the end of a token",
        "identity.tokens:Tokens._checked",
        "{'require': ['exp', 'iss', 'aud']}",
        "{'verify_exp': False}",
        tests=("test_identity.py::test_a_token_of_the_provider_is_read",),
    ),
    Deletion(
        "the length of a token",
        "identity.tokens:Tokens.tenant",
        "if len(token.reveal()) > LONGEST_TOKEN: ...",
        tests=("test_identity.py::test_a_token_of_the_provider_is_read",),
    ),
    Deletion(
        "a token that names no tenant",
        "identity.tokens:Tokens._tenant_in",
        "if not isinstance(value, str) or not 0 < len(value) <= LONGEST_NAME or (not value.isprintable()): ...",
        tests=("test_identity.py::test_a_token_of_the_provider_is_read",),
    ),
    Deletion(
        "a header of a token that must be understood",
        "identity.tokens:Tokens.tenant",
        "'crit' in header or not isinstance(algorithm, str) or (not isinstance(kid, str | None))",
        "not isinstance(algorithm, str) or not isinstance(kid, str | None)",
        tests=(CRITICAL,),
    ),
    Deletion(
        "a token that two keys could have signed",
        "identity.jwks:Jwks._known",
        "fitting if len(fitting) == 1 else []",
        "fitting",
        tests=(FORGED,),
    ),
    Deletion(
        "a key under another's name",
        "identity.jwks:Jwks._known",
        "[key for key in fitting if key.kid == kid]",
        "fitting",
        tests=(FORGED,),
    ),
    Deletion(
        "an algorithm that a key is not for",
        "identity.jwks:Jwks._known",
        "algorithm in key.algorithms",
        "True",
        tests=(FORGED,),
    ),
    Deletion(
        "keys that could not be read for a day",
        "identity.jwks:Jwks._known",
        "if self._clock() - self._read_at > KEEP_SECONDS: ...",
        tests=("wire/test_tokens.py::test_keys_that_could_not_be_read_for_a_day_are_not_believed",),
    ),
    Deletion(
        "how often keys are read for one that is unknown",
        "identity.jwks:Jwks.find",
        "is_reading or self._clock() - self._tried_at >= UNKNOWN_SECONDS",
        "True",
        tests=("wire/test_tokens.py::test_a_file_with_new_keys_is_read_when_a_token_names_one",),
    ),
    Deletion(
        "the size of a set of keys",
        "identity.jwks:read_jwks",
        "if len(data) > LARGEST_SET: ...",
        tests=(NO_SET,),
    ),
    Deletion(
        "the number of keys in a set",
        "identity.jwks:read_jwks",
        "if len(entries) > MOST_KEYS: ...",
        tests=(NO_SET,),
    ),
    Deletion(
        "what a key is for",
        "identity.jwks:_public_key",
        "if entry.get('use', 'sig') != 'sig' or not isinstance(operations, list) or 'verify' not in operations: ...",
        tests=(USELESS,),
    ),
    Deletion(
        "the algorithm that a key is published for",
        "identity.jwks:_public_key",
        "if 'alg' in entry: ...",
        tests=(FORGED, USELESS),
    ),
    Deletion(
        "the length of an RSA key",
        "identity.jwks:_public_key",
        "if isinstance(key, RSAPublicKey) and key.key_size < SHORTEST_RSA: ...",
        tests=(USELESS,),
    ),
    Deletion(
        "a set without a key",
        "identity.jwks:Jwks._take",
        "if not keys: ...",
        tests=("wire/test_tokens.py::test_a_file_without_a_key_is_refused_at_the_start",),
    ),
    Deletion(
        "the status of a provider's answer",
        "identity.jwks:Jwks._fetch",
        "if response.status != 200: ...",
        tests=(
            "wire/test_tokens.py::test_keys_of_a_url_are_read_before_the_first_token_and_kept_when_it_fails",
        ),
    ),
    Deletion(
        "how many proxies are looked through",
        "identity.proxies:Proxies.client",
        "headers.get('x-forwarded-for', '').rsplit(',', MOST_HOPS)[-MOST_HOPS:]",
        "headers.get('x-forwarded-for', '').split(',')",
        tests=(HOPS,),
    ),
    Deletion(
        "which proxies are looked through",
        "identity.proxies:Proxies.client",
        "if not self.trusts(hop): ...",
        "if True:\n    return hop if _address(hop) is not None else ''",
        tests=(HOPS,),
    ),
    Deletion(
        "a hop that is no address",
        "identity.proxies:Proxies.client",
        "hop if _address(hop) is not None else ''",
        "hop",
        tests=(HOPS,),
    ),
    Deletion(
        "from which side hops are read",
        "identity.proxies:Proxies.client",
        "reversed(hops)",
        "hops",
        tests=(HOPS, "wire/test_proxies.py::test_nobody_becomes_this_machine_by_what_it_writes"),
    ),
    Deletion(
        "whose word on a tenant is believed",
        "extension:KnownCaller.named",
        "if not self.is_gateway: ...",
        rows=("a key and another tenant in the body", "a key and another tenant in a header"),
    ),
    Deletion(
        "who sees figures of others",
        "identity.callers:Visitor.check_sees_all",
        "if not self.sees_all: ...",
        rows=(
            "/metrics with the key of bob, from elsewhere",
            "/metrics with the key of front, from elsewhere",
        ),
    ),
]
#: Of the answer: how it goes out, and what is believed of the servers behind.
ANSWERS = [
    Deletion(
        "a client that goes away",
        "answer:Answers.answer",
        "task.cancel()",
        tests=("test_steps.py::test_a_client_that_goes_away_leaves_nothing_behind",),
    ),
    Deletion(
        "a ticket's name on a refusal",
        "answer:Line.fail",
        "self._ticket_header()",
        "[]",
        tests=("test_upstream.py::test_an_error_behind_is_an_error_here",),
    ),
    Deletion(
        "when to come back",
        "errors:retry_after_header",
        "return [(b'retry-after', str(max(1, ceil(error.retry_after))).encode())]",
        "return []",
        tests=("test_upstream.py::test_when_to_come_back_is_passed_on_in_either_form",),
    ),
    Deletion(
        "when to come back, as the server behind said it",
        "answer:Line.fail",
        "headers += passed_headers(error.headers)",
        tests=("test_upstream.py::test_when_to_come_back_is_passed_on_in_either_form",),
    ),
    Deletion(
        "another server's error, as it said it",
        "answer:Line.fail",
        "if self._protocol.passes_errors: ...",
        tests=("test_upstream.py::test_an_error_behind_is_an_error_here",),
    ),
    Deletion(
        "another server's name for a ticket",
        "answer:_written",
        "if name in _RENAMED: ...",
        rows=("a chat",),
    ),
    Deletion(
        "headers that are of a connection behind",
        "answer:_written",
        "name not in _NOT_PASSED_ON and name not in _OURS and (not name.startswith(_OF_ACCOUNTS))",
        "True",
        rows=("a chat", "a streamed chat"),
    ),
    Deletion(
        "comments in a silent stream",
        "answer:Answers._pulse",
        "if line.streaming and (not line.ended) and (now - line.wrote_at >= KEEP_ALIVE_SECONDS): ...",
        tests=("test_upstream.py::test_a_silent_stream_gets_comments_and_goes_on",),
    ),
    Deletion(
        "no comment in an answer that is no stream",
        "answer:Answers._pulse",
        "line.streaming and (not line.ended) and (now - line.wrote_at >= KEEP_ALIVE_SECONDS)",
        "not line.ended and now - line.wrote_at >= KEEP_ALIVE_SECONDS",
        tests=("test_upstream.py::test_a_slow_answer_in_one_piece_gets_no_comments",),
    ),
    Deletion(
        "an error behind comments",
        "answer:Line.fail",
        "if self.status is not None: ...",
        tests=("test_upstream.py::test_an_error_behind_a_silence_is_the_end_of_the_stream",),
    ),
    Deletion(
        "an end where the server behind gave none",
        "answer:Answers._stream",
        "if not line.ended: ...",
        tests=("test_upstream.py::test_a_stream_without_its_last_event_gets_one",),
    ),
    Deletion(
        "the event that ends a stream",
        "protocols.openai:OpenAIEncoder.end",
        "return DONE",
        "return b''",
        tests=("test_upstream.py::test_a_stream_without_its_last_event_gets_one",),
    ),
    Deletion(
        "a count that is no number of tokens",
        "usage:tokens",
        "if isinstance(value, bool) or not isinstance(value, int | float): ...",
        tests=("test_upstream.py::test_absurd_usage_is_not_believed",),
    ),
    Deletion(
        "a count that is absurd",
        "usage:tokens",
        "int(value) if 0 <= value <= MOST_TOKENS else None",
        "int(value)",
        tests=("test_upstream.py::test_absurd_usage_is_not_believed",),
    ),
    Deletion(
        "usage that is no object",
        "usage:read_usage",
        "if not isinstance(value, dict): ...",
        tests=("test_upstream.py::test_absurd_usage_is_not_believed",),
    ),
    Deletion(
        "no more cached than there is",
        "usage:read_usage",
        "min(told.cached, prompt)",
        "told.cached",
        tests=("test_upstream.py::test_absurd_usage_is_not_believed",),
    ),
    Deletion(
        "the size of an event",
        "sse:EventFramer.feed",
        "if len(held) - end > LARGEST_EVENT: ...",
        tests=("test_upstream.py::test_what_never_ends_is_cut_off",),
    ),
    Deletion(
        "the size of a head",
        "client:_Connection.data_received",
        "if self._head > _LARGEST_HEAD: ...",
        tests=("test_upstream.py::test_what_never_ends_is_cut_off",),
    ),
    Deletion(
        "an error that is no JSON",
        "errors:error_fields",
        "except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError, IndexError):",
        tests=("test_upstream.py::test_an_error_in_another_shape_is_an_error_here",),
    ),
    Deletion(
        "an error that is no object",
        "errors:error_fields",
        "error if isinstance(error, dict) else {'message': str(error)}",
        "error",
        tests=("test_upstream.py::test_an_error_in_another_shape_is_an_error_here",),
    ),
]


def _refused(module: str, row: str) -> str:
    """What pytest calls a row of what a protocol refuses."""
    return f"wire/{module}.py::test_what_cannot_be_had_is_an_error_that_names_it[{row}]"


#: Of the protocols that become chats, of how models write calls, and of what replicas tell of their caches.
TOLD = [
    Deletion(
        "tools that run at a provider",
        "protocols.messages:_tool",
        "if tool.type not in (None, 'custom'): ...",
        tests=(_refused("test_messages", "a described tool of the provider"),),
    ),
    Deletion(
        "a tool that cannot be called",
        "protocols.messages:_tool",
        "if not tool.name or tool.input_schema is None: ...",
        tests=(_refused("test_messages", "a tool without a schema"),),
    ),
    Deletion(
        "servers that a provider would call",
        "protocols.messages:_check",
        "if request.mcp_servers: ...",
        tests=(_refused("test_messages", "servers"),),
    ),
    Deletion(
        "a container at a provider",
        "protocols.messages:_check",
        "if request.container is not None: ...",
        tests=(_refused("test_messages", "a container"),),
    ),
    Deletion(
        "a region of a provider",
        "protocols.messages:_check",
        "if request.inference_geo not in (None, 'global'): ...",
        tests=(_refused("test_messages", "a region"),),
    ),
    Deletion(
        "the text of a block",
        "protocols.messages:_text_of",
        "if not isinstance(value, str): ...",
        tests=(_refused("test_messages", "a text that is none"),),
    ),
    Deletion(
        "a last turn that calls tools",
        "protocols.messages:_messages",
        "if last is not None and last.role == 'assistant' and messages[-1].get('tool_calls'): ...",
        tests=(_refused("test_messages", "a call without its result"),),
    ),
    Deletion(
        "what instructions are written in",
        "protocols.messages:_texts",
        "if block.get('type') != 'text': ...",
        tests=(_refused("test_messages", "a picture as system"),),
    ),
    Deletion(
        "the blocks of what a tool said",
        "protocols.messages:_tool_result",
        "if not all((isinstance(one, dict) for one in blocks)): ...",
        tests=(_refused("test_messages", "a block that is none"),),
    ),
    Deletion(
        "which tool must be called",
        "protocols.messages:_tool_choice",
        "if not choice.name: ...",
        tests=(_refused("test_messages", "no name for a tool"),),
    ),
    Deletion(
        "text behind a gap",
        "protocols.ollama:_check",
        "if request.suffix: ...",
        tests=(_refused("test_ollama", "a suffix"),),
    ),
    Deletion(
        "a template of the client",
        "protocols.ollama:_check",
        "if request.template: ...",
        tests=(_refused("test_ollama", "a template"),),
    ),
    Deletion(
        "turns kept as tokens",
        "protocols.ollama:_check",
        "if request.context: ...",
        tests=(_refused("test_ollama", "a context"),),
    ),
    Deletion(
        "instructions beside a raw prompt",
        "protocols.ollama:_check",
        "if request.raw and (request.system or request.images): ...",
        tests=(_refused("test_ollama", "raw with a system prompt"),),
    ),
    Deletion(
        "another way of sampling",
        "protocols.ollama:_sampling",
        "if value is not None and value not in unused: ...",
        tests=(_refused("test_ollama", "another sampler"),),
    ),
    Deletion(
        "a duration that is none",
        "protocols.ollama:keep_alive_seconds",
        "if seconds is None: ...",
        tests=(_refused("test_ollama", "no duration"),),
    ),
    Deletion(
        "log-probabilities that are not told",
        "protocols.ollama:_sampling",
        "if request.logprobs: ...",
        tests=(_refused("test_ollama", "log-probabilities"),),
    ),
    Deletion(
        "a format of no name",
        "protocols.ollama:_response_format",
        "if form != 'json': ...",
        tests=(_refused("test_ollama", "another format"),),
    ),
    Deletion(
        "a picture of no kind",
        "protocols.ollama:_image",
        "if kind is None: ...",
        tests=(_refused("test_ollama", "no picture"),),
    ),
    Deletion(
        "a picture that is no base64",
        "protocols.ollama:_image",
        "except (binascii.Error, ValueError):",
        tests=(_refused("test_ollama", "no base64"),),
    ),
    Deletion(
        "arguments with half a letter",
        "protocols.openai:object_of",
        "_encode(value)",
        tests=("wire/test_ollama.py::test_a_call_that_cannot_be_written_is_text",),
    ),
    Deletion(
        "an item that is no object",
        "protocols.response.items:_read",
        "if not isinstance(item, dict): ...",
        tests=(_refused("test_response_items", "an item that is none"),),
    ),
    Deletion(
        "an item of no kind",
        "protocols.response.items:_read",
        "if reader is None: ...",
        tests=(_refused("test_response_items", "an item of no kind"),),
    ),
    Deletion(
        "whose an item is",
        "protocols.response.items:_message",
        "if role not in _ROLES: ...",
        tests=(_refused("test_response_items", "a tool's role"),),
    ),
    Deletion(
        "the content of an item",
        "protocols.response.items:_message",
        "if not isinstance(content, list): ...",
        tests=(_refused("test_response_items", "content that is none"),),
    ),
    Deletion(
        "a text that an item must have",
        "protocols.response.items:_text",
        "if not isinstance(value, str) or (needed and (not value) and (name != 'arguments')): ...",
        tests=(_refused("test_response_items", "an output of no call"),),
    ),
    Deletion(
        "where a picture is",
        "protocols.response.items:_part",
        "if not isinstance(url, str) or not url: ...",
        tests=(_refused("test_response_items", "a picture without a place"),),
    ),
    Deletion(
        "in how much detail a picture is looked at",
        "protocols.response.items:_part",
        "if detail not in ('auto', 'low', 'high', 'original'): ...",
        tests=(_refused("test_response_items", "a picture in no detail"),),
    ),
    Deletion(
        "the parts of a thought",
        "protocols.response.items:_reasoning",
        "if not isinstance(parts, list) or not all((isinstance(part, dict) for part in parts)): ...",
        tests=(_refused("test_response_items", "a thought of no parts"),),
    ),
    Deletion(
        "a response of no turn",
        "protocols.responses:ResponseRequest.complete",
        "if not messages: ...",
        tests=(_refused("test_response_items", "nothing"),),
    ),
    Deletion(
        "what only OpenAI keeps",
        "protocols.responses:_refuse_what_is_not_here",
        "if getattr(written, name) is not None: ...",
        tests=(_refused("test_response_items", "a conversation"),),
    ),
    Deletion(
        "how many metadata there are",
        "protocols.responses:_refuse_what_is_not_here",
        "len(metadata) > MAX_METADATA",
        "False",
        tests=(_refused("test_response_items", "many metadata"),),
    ),
    Deletion(
        "tools that only OpenAI runs",
        "protocols.response.tools:read_tools",
        "if spared and not (offered and may_spare): ...",
        tests=(_refused("test_response_items", "a tool that OpenAI runs"),),
    ),
    Deletion(
        "names of tools that may be called",
        "protocols.responses:_chosen",
        "if not all((isinstance(name, str) for name in names)): ...",
        tests=(_refused("test_response_items", "a choice of nameless tools"),),
    ),
    Deletion(
        "a form that has no schema",
        "protocols.responses:_response_format",
        "if wanted.schema is None or not wanted.name: ...",
        tests=(_refused("test_response_items", "a form without a schema"),),
    ),
    Deletion(
        "half a letter in a literal",
        "server.styles.typed:_python",
        "_dumped(found).encode()",
        tests=("server/test_typed_arguments.py::test_a_value_is_of_its_type_or_stays_as_it_is_written",),
        package="weighbridge",
    ),
    Deletion(
        "a number that is none",
        "server.styles.typed:_json",
        "json.loads(text, parse_constant=_refuse)",
        "json.loads(text)",
        tests=("server/test_typed_arguments.py::test_a_value_is_of_its_type_or_stays_as_it_is_written",),
        package="weighbridge",
    ),
    Deletion(
        "how much space is held back",
        "server.styles.tool_stream:ToolStream._look_for_a_call",
        "if not start and len(self._held) > MAX_SPACE: ...",
        tests=("server/test_tool_styles.py::test_space_is_held_within_bounds",),
        package="weighbridge",
    ),
    Deletion(
        "how much space is held before a thought",
        "server.styles.reasoning:ReasoningStream._next",
        "len(self._held) > MAX_SPACE",
        "False",
        tests=("server/test_tool_styles.py::test_space_is_held_within_bounds",),
        package="weighbridge",
    ),
    Deletion(
        "tokens of more than eight bytes",
        "fleet.kv.events",
        "Annotated[int, Meta(ge=-2 ** 63, le=2 ** 63 - 1)]",
        "int",
        tests=("fleet/test_kv_events.py::test_what_is_no_batch_is_said_to_be_none",),
        package="weighbridge",
    ),
    Deletion(
        "events that are no UTF-8",
        "fleet.kv.events",
        "(msgspec.DecodeError, UnicodeDecodeError, RecursionError)",
        "(msgspec.DecodeError, RecursionError)",
        tests=("fleet/test_kv_events.py::test_what_is_no_batch_is_said_to_be_none",),
        package="weighbridge",
    ),
    Deletion(
        "blocks in another place",
        "fleet.kv.following:Following._apply",
        "event.medium not in _NEAR or event.group_idx not in _GROUP",
        "False",
        tests=("fleet/test_kv_events.py::test_what_is_elsewhere_or_another_models_is_not_counted",),
        package="weighbridge",
    ),
    Deletion(
        "whether blocks have their tokens",
        "fleet.kv.following:Following._apply",
        "salt is not None and len(event.token_ids) == len(event.block_hashes) * event.block_size",
        "salt is not None",
        tests=("fleet/test_kv_events.py::test_what_is_elsewhere_or_another_models_is_not_counted",),
        package="weighbridge",
    ),
    Deletion(
        "how many blocks are believed",
        "fleet.kv.blocks:KnownBlocks.store",
        "if max(len(self._theirs) + len(hashes), len(self._held)) > MOST_BLOCKS: ...",
        tests=(
            "fleet/test_kv_events.py::test_blocks_that_complete_more_of_ours_than_any_cache_has_are_not_believed",
        ),
        package="weighbridge",
    ),
    Deletion(
        "a long event at once",
        "fleet.kv.following:Following._store",
        "min(max(TURN_TOKENS // size, 1), TURN_BLOCKS)",
        "len(hashes) or 1",
        tests=("fleet/test_kv_events.py::test_a_long_event_is_taken_in_by_turns_and_comes_to_the_same",),
        package="weighbridge",
    ),
]
DELETIONS = [*BODIES, *EXTENSION, *CALLERS, *IDENTITY, *ANSWERS, *TOLD]


def chosen(words: Sequence[str]) -> Iterator[Deletion]:
    return (one for one in DELETIONS if all(word.lower() in one.name.lower() for word in words))


def main(words: list[str]) -> int:
    deletions = list(chosen(words))
    whole = baseline(deletions)
    if whole.failed or whole.trouble:
        print(f"the tests do not pass as the code is: {whole.trouble or whole.failed[0]}")
        return 1
    missed = 0
    for deletion in deletions:
        began = time.monotonic()
        is_caught, words_ = verdict(deletion)
        missed += not is_caught
        print(f"{deletion.name}: {words_} ({time.monotonic() - began:.0f} s)", flush=True)
    print(f"{len(deletions)} deletions, {missed} not caught")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
