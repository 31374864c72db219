"""The page of environment variables: those that the sources read, found by parsing them."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from tools.reference.markdown import MADE, code, filled, table

SOURCES = Path(__file__).resolve().parents[2] / "src" / "weighbridge"
_METHODS = {"get", "setdefault", "getenv", "pop"}

#: What each variable that our sources read does.
WORDS: Mapping[str, str] = {
    "WEIGHBRIDGE_URL": "The server that commands ask (`ticket`, `fleet` ...); `http://127.0.0.1:8080` otherwise.",
    "WEIGHBRIDGE_LOG_LEVEL": "What is logged: debug, info, warning or error, as `--log-level` says it.",
    "WEIGHBRIDGE_SERVER_KEY": "The key of a server that `fleet probe` looks at.",
    "WEIGHBRIDGE_API_KEY": "The key that commands send as clients.",
    "WEIGHBRIDGE_API_KEYS": "Keys that a server asks for, as `--api-key` has them, with spaces between.",
    "WEIGHBRIDGE_ADMIN_KEY": "The operator's key: a server holds it (`--admin-key`), and commands send it.",
    "WEIGHBRIDGE_HOME": "Where models, packed experts, kept responses and calibrations are kept.",
    "WEIGHBRIDGE_KERNELS": "`reference` computes with torch instead of the native kernels; `native` insists on those.",
    "XDG_CACHE_HOME": "Without `WEIGHBRIDGE_HOME`: the folder in which `weighbridge` is made; `~/.cache` otherwise.",
    "HF_ENDPOINT": "Another hub than `https://huggingface.co` to bring models from.",
    "HF_HUB_OFFLINE": "`1`: the hub is not asked; models come from packages of the Python index, or are here already.",
    "OPENAI_API_KEY": "The key that a flow's `llm` sends to https URLs, and for which `init` writes an entry.",
    "KUBERNETES_SERVICE_HOST": "Where Kubernetes' API is, in a pod: set by the cluster.",
    "KUBERNETES_SERVICE_PORT": "Its port.",
    "LISTEN_FDS": "A listening socket that a supervisor (systemd) hands to a server.",
    "LISTEN_PID": "The process that it is for.",
    "SHELL": "The shell that `weighbridge completion` writes for, where none is named.",
    "GOMP_SPINCOUNT": "How long OpenMP's threads spin before they sleep; 1000 unless it is set.",
    "_WEIGHBRIDGE_COMPLETE": "Set by shell completion; not for people.",
    "TMPDIR": "Where an index's packages are unpacked while a model is pulled: set by us for that process.",
}
#: What libraries read, and is worth knowing here.
LIBRARIES: Mapping[str, str] = {
    "SSL_CERT_FILE": "Authorities (PEM) that https servers are believed by.",
    "NO_COLOR": "No colours in the terminal.",
    "COLUMNS": "The width of the terminal, where it is not found out.",
}

_INTRODUCTION = """# Environment variables

{made}

A flag wins over a variable. Keys of tenants, replicas and clouds are read from any variable that
`weighbridge.yaml` names with
`key_env:` and its like ([configuration](configuration.md)).
"""


@cache
def page() -> str:
    readers = found()
    rows = [
        (code(name), WORDS[name], ", ".join(code(one) for one in sorted(readers[name])))
        for name in sorted(readers)
    ]
    beside = [(code(name), text) for name, text in LIBRARIES.items()]
    return "\n".join(
        [
            filled(_INTRODUCTION.format(made=MADE)),
            table(("variable", "what it does", "read in"), rows),
            "Read by libraries that we use:\n",
            table(("variable", "what it does"), beside),
        ]
    )


@cache
def found() -> dict[str, set[str]]:
    """Variables that the sources read, each with the files that do."""
    readers: dict[str, set[str]] = {}
    for path in sorted(SOURCES.rglob("*.py")):
        for name in variables(ast.parse(path.read_text(encoding="utf-8"))):
            readers.setdefault(name, set()).add(path.relative_to(SOURCES).as_posix())
    return readers


def variables(tree: ast.Module) -> Iterator[str]:
    """Names in calls, subscripts and comparisons with `os.environ`, and in knobs (`environment=`)."""
    constants = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in ("environment", "envvar"):
            yield from _texts(node.value, {})
        elif (
            isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _METHODS
        ):
            if node.args and (_is_environment(node.func.value) or node.func.attr == "getenv"):
                yield from _texts(node.args[0], constants)
        elif isinstance(node, ast.Subscript) and _is_environment(node.value):
            yield from _texts(node.slice, constants)
        elif isinstance(node, ast.Compare) and any(map(_is_environment, node.comparators)):
            yield from _texts(node.left, constants)
        elif isinstance(node, ast.Dict) and None in node.keys and any(map(_is_environment, node.values)):
            yield from (text for key in node.keys if key is not None for text in _texts(key, constants))


def _is_environment(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "environ"


def _texts(node: ast.AST, constants: Mapping[str, ast.expr]) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.Name) and node.id in constants:
        yield from _texts(constants[node.id], {})
