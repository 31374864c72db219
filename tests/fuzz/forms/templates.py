"""Chat templates made of what Jinja has: statements, expressions, filters, methods and tests, in any combination."""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random

from tests.fuzz.forms import INPUT_BYTES

_PIECE = re.compile(r"(\{[{%#].*?[}%#]\})", re.DOTALL)
_NUMBERS = (
    *("0", "1", "2", "3", "-1", "64", "65", "1000", "9999", "99999", "2.5", "1e9", "True"),
    *("10000000", "99999999", "300000000", "999999999", "2147483648"),
)
_TEXTS = (
    *(
        "''",
        "'a'",
        "' '",
        "'\\n'",
        "'\\t'",
        "'a\\nb\\tc'",
        "'%s'",
        "'%d%%'",
        "'%5000d'",
        "'%*d'",
        "'{}'",
        "'{0!r}'",
    ),
    *(
        "'{:>9}'",
        "'{:99999}'",
        "'{0.x}'",
        "'{a[0]}'",
        "'%(a)s'",
        "'東京'",
        "'<b>'",
        "'http://a.b'",
        "'xx' * 50",
    ),
)
_NAMES = (
    *(
        "messages",
        "messages[0]",
        "messages[1].content",
        "messages[2].tool_calls",
        "messages[-1]",
        "tools",
        "bos_token",
    ),
    *(
        "m",
        "x",
        "ns",
        "ns.n",
        "i",
        "loop",
        "loop.index",
        "caller",
        "varargs",
        "self",
        "none",
        "true",
        "documents",
    ),
)
_FILTERS = (
    *(
        "abs",
        "attr",
        "batch",
        "capitalize",
        "center",
        "count",
        "default",
        "dictsort",
        "e",
        "escape",
        "filesizeformat",
    ),
    *(
        "first",
        "float",
        "forceescape",
        "format",
        "groupby",
        "indent",
        "int",
        "items",
        "join",
        "last",
        "length",
        "list",
    ),
    *(
        "lower",
        "map",
        "max",
        "min",
        "random",
        "reject",
        "rejectattr",
        "replace",
        "reverse",
        "round",
        "safe",
        "select",
    ),
    *(
        "selectattr",
        "slice",
        "sort",
        "string",
        "sum",
        "title",
        "tojson",
        "trim",
        "truncate",
        "unique",
        "upper",
    ),
    *("urlencode", "wordcount"),
)
_METHODS = (
    *(
        "capitalize",
        "center",
        "count",
        "encode",
        "endswith",
        "expandtabs",
        "find",
        "format",
        "format_map",
        "index",
    ),
    *(
        "isdigit",
        "join",
        "ljust",
        "lower",
        "lstrip",
        "partition",
        "replace",
        "rjust",
        "rsplit",
        "split",
        "splitlines",
    ),
    *(
        "startswith",
        "strip",
        "swapcase",
        "title",
        "translate",
        "upper",
        "zfill",
        "items",
        "keys",
        "values",
        "get",
    ),
    *(
        "copy",
        "update",
        "append",
        "pop",
        "bit_length",
        "to_bytes",
        "hex",
        "as_integer_ratio",
        "__class__",
        "__len__",
    ),
)
_TESTS = (
    *(
        "defined",
        "none",
        "string",
        "number",
        "mapping",
        "iterable",
        "sequence",
        "odd",
        "sameas(1)",
        "in messages",
    ),
    *("callable", "divisibleby(2)", "lower", "equalto('a')", "filter('map')", "test('odd')"),
)
_GLOBALS = (
    "range",
    "dict",
    "cycler",
    "joiner",
    "namespace",
    "raise_exception",
    "strftime_now",
    "caller",
    "turn",
)
_OPERATORS = ("+", "-", "*", "/", "//", "%", "**", "~", "==", "<", ">=", "in", "not in", "and", "or")
_DEEPEST = 3
_MOST_CHANGES = 3


def _expression(draw: Random, depth: int = _DEEPEST) -> str:
    forms: list[Callable[[], str]] = [lambda: draw.choice((*_NUMBERS, *_TEXTS, *_NAMES))]
    if depth:
        inner = lambda: _expression(draw, depth - 1)  # noqa: E731 (its argument is always the same)
        forms += [
            lambda: f"{inner()} | {draw.choice(_FILTERS)}{_given(draw, depth)}",
            lambda: f"({inner()}).{draw.choice(_METHODS)}({_arguments(draw, depth)})",
            lambda: f"({_argument(draw, depth)} {draw.choice(_OPERATORS)} {_argument(draw, depth)})",
            lambda: f"{draw.choice(_GLOBALS)}({_arguments(draw, depth)})",
            lambda: draw.choice(("[{0}, {1}]", "({0}, {1})", "{{'a': {0}, 'b': {1}}}")).format(
                inner(), inner()
            ),
            lambda: f"({inner()})[{draw.choice((inner(), '::-1', ':2', '::999999999', '-1'))}]",
            lambda: f"({inner()} is {draw.choice(_TESTS)})",
            lambda: f"({inner()} if {inner()} else {inner()})",
        ]
    return draw.choice(forms)()


def _arguments(draw: Random, depth: int) -> str:
    return ", ".join(_argument(draw, depth) for _ in range(draw.randint(0, 2)))


def _argument(draw: Random, depth: int) -> str:
    """Half of all arguments are numbers: most say how much there is to be of something."""
    return draw.choice(_NUMBERS) if draw.random() < 0.5 else _expression(draw, min(depth - 1, 1))


def _given(draw: Random, depth: int) -> str:
    """What a filter is given; many want a word of their own first."""
    word = draw.choice(
        ("", "", "'upper'", "attribute='role'", "width=99999999", "indent=9999999", "start=[]")
    )
    words = ", ".join(filter(None, (word, _arguments(draw, depth))))
    return f"({words})" if words else ""


def _statement(draw: Random, body: str) -> str:
    one, other = _expression(draw), _expression(draw, 1)
    return draw.choice(
        (
            f"{{% for x in {one} %}}{body}{{% endfor %}}",
            f"{{% for x in {one} if {other} %}}{body}{{% else %}}{other}{{% endfor %}}",
            f"{{% for x in {one} recursive %}}{{{{ loop({other}) }}}}{{% endfor %}}",
            f"{{% if {one} %}}{body}{{% elif {other} %}}b{{% endif %}}",
            f"{{% set x = {one} %}}{body}",
            f"{{% set ns = namespace(n={one}) %}}{{% set ns.n = {other} %}}{body}",
            f"{{% set x %}}{body}{{% endset %}}{{{{ x ~ {one} }}}}",
            f"{{% macro turn(a, b={other}) %}}{body}{{{{ turn(a) if {other} }}}}{{% endmacro %}}{{{{ turn({one}) }}}}",
            f"{{% call(x) turn({one}) %}}{body}{{% endcall %}}",
            f"{{% filter {draw.choice(_FILTERS)} %}}{body}{{% endfilter %}}",
            f"{{% with x = {one} %}}{body}{{% endwith %}}",
            f"{{% generation %}}{body}{{% endgeneration %}}",
            f"{{% block b %}}{body}{{% endblock %}}{{{{ self.b() }}}}",
            f"{{% autoescape {other} %}}{body}{{% endautoescape %}}",
            draw.choice(
                ("{% break %}", "{% continue %}", "{% include 'a' %}", "{% import 'a' as b %}", "{% raw %}")
            ),
        )
    )


def changed_template(data: bytes, draw: Random) -> bytes | None:
    """Return a template with expressions and statements added, taken out, moved or replaced."""
    pieces = _PIECE.split(data.decode("utf-8", "replace"))
    for _ in range(draw.randint(1, _MOST_CHANGES)):
        at = draw.randrange(len(pieces) + 1)
        change = draw.randrange(7)
        if change <= 1:
            pieces.insert(at, f"{{{{ {_expression(draw)} }}}}")
        elif change == 2:
            end = draw.randint(at, len(pieces))
            pieces[at:end] = [_statement(draw, "".join(pieces[at:end]))]
        elif change == 3:
            del pieces[at : at + 1]
        elif change == 4:
            pieces[at : at + 1] = [f"{{{{ {_expression(draw)} }}}}"]
        elif change == 5 and pieces:
            pieces.insert(at, draw.choice(pieces))
        elif at < len(pieces) and pieces[at].startswith("{{"):
            inner = pieces[at][2:-2].strip(" -")
            pieces[at] = f"{{{{ ({inner}) | {draw.choice(_FILTERS)}{_given(draw, 2)} }}}}"
    made = "".join(pieces).encode("utf-8", "replace")
    return made if len(made) <= INPUT_BYTES else None
