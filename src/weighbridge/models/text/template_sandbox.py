"""Jinja in a sandbox with a budget: a template comes with a model, and may be written to take all there is.

Nothing can interrupt one operation inside the interpreter, so each is bounded before or after: what it makes has a
weight (`RenderBudget.weigh`), which is what it would take to write it out, compare or hash it, and no value may have
more than the budget's. Around the operations, steps are counted and the thread's own CPU time is looked at: a loop or a
macro costs a step each time, a value one for every few thousand characters.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any, TypeVar

from jinja2 import TemplateError, nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

T = TypeVar("T")

#: What a template may do whatever it is given, and more for each character of its messages and tools. A usual one takes
#: some twenty steps for a message.
LEAST_STEPS, STEPS_PER_CHARACTER = 20_000, 5
LEAST_WEIGHT, WEIGHT_PER_CHARACTER = 1 << 20, 8
LEAST_SECONDS, SECONDS_PER_CHARACTER, MOST_SECONDS = 0.1, 1e-5, 5.0
#: Values nested more deeply could exhaust the stack of whatever walks through them.
MAX_DEPTH = 100
#: The bits of the largest integer.
MAX_BITS = 4096
_WEIGHT_OF_A_STEP, _STEPS_BETWEEN_LOOKS = 4096, 64

#: Filters that no template of a model needs, and whose time or memory grows faster than what they are given.
UNBOUNDED_FILTERS = ("pprint", "striptags", "urlize", "wordwrap", "xmlattr")
_REFUSED_METHODS = ("striptags", "to_bytes", "translate", "unescape")
#: Where a number says how wide a text or long a list becomes.
_PADDING = ("batch", "center", "ljust", "rjust", "slice", "zfill")
#: The same for each of some character, or for each item.
_WIDENING = {"expandtabs": "\t", "indent": "\n", "tojson": None}
_LARGEST_INDENT, _LARGEST_PRECISION = 64, 400
_WIDE_PERCENT = re.compile(r"%(\([^)%]{0,99}\))?[^a-zA-Z%]*(\*|[0-9]{5})")
_WIDE_BRACES = re.compile(r"\{[^{}:]*:[^{}]*?([0-9]{5}|\{)")


class TemplateStopped(TemplateError):
    """A template wants more than a template may have."""


class RenderBudget:
    """What one rendering may use, more for a template that is given more."""

    def __init__(self, given: object) -> None:
        # Containers cannot change in the sandbox. They are kept, so that no id is used twice.
        self._known: dict[int, tuple[object, int, int]] = {}
        self.largest = math.inf
        weight = self.weigh(given)
        self.largest = LEAST_WEIGHT + WEIGHT_PER_CHARACTER * weight
        self.steps = LEAST_STEPS + STEPS_PER_CHARACTER * weight
        seconds = min(LEAST_SECONDS + SECONDS_PER_CHARACTER * weight, MOST_SECONDS)
        self._until = time.thread_time() + seconds
        self._next_look = self.steps

    def step(self, weight: int = 0) -> None:
        """Count an operation on values of that weight. Raises TemplateStopped when no steps are left, or no time."""
        self.steps -= 1 + weight // _WEIGHT_OF_A_STEP
        if self.steps < self._next_look:
            self.look()

    def look(self) -> None:
        """Look at the clock, which takes a microsecond: after every few steps, and after what may take longer."""
        self._next_look = self.steps - _STEPS_BETWEEN_LOOKS
        if self.steps < 0 or time.thread_time() > self._until:
            raise TemplateStopped("it takes too many steps")

    def bound(self, weight: float) -> None:
        """Raise TemplateStopped if a value of this weight is too large."""
        if weight > self.largest:
            raise TemplateStopped("it makes a text or list that is too long")

    def passed(self, value: T) -> T:
        """Return `value`, which an operation made, once it is weighed and paid for."""
        weight = self.weigh(value)
        self.bound(weight)
        self.step(weight)
        return value

    def weigh(self, value: object) -> int:
        """Return the characters and items of `value`, those of shared parts as often as they are shared."""
        return self._weigh(value)[0]

    def _weigh(self, value: object) -> tuple[int, int]:
        """Return the weight and the depth."""
        kind = type(value)
        if kind is str or isinstance(value, str | bytes):
            return len(value), 0  # type: ignore[arg-type]
        if kind is bool or value is None:
            return 1, 0
        if isinstance(value, int):
            if value.bit_length() > MAX_BITS:
                raise TemplateStopped("it computes with numbers that are too large")
            return 1, 0
        if isinstance(value, Namespace):
            raise TemplateStopped("it uses a namespace as a value")  # whose weight could change afterwards
        if not isinstance(value, _CONTAINERS):
            return 1, 0
        known = self._known.get(id(value))
        if known is not None:
            return known[1], known[2]
        weight, depth = 1, 0
        for part in _parts(value):
            inner, deep = self._weigh(part)
            weight, depth = weight + inner, max(depth, deep)
        if depth >= MAX_DEPTH:
            raise TemplateStopped("it nests values too deeply")
        self.bound(weight)
        self._known[id(value)] = (value, weight, depth + 1)
        return weight, depth + 1


_VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))
_CONTAINERS = (list, tuple, dict, set, frozenset, *_VIEWS)


def _parts(value: Any) -> Iterator[object]:
    yield from value
    if isinstance(value, dict):
        yield from value.values()


_running = threading.local()


class Rendering:
    """The time in which this thread works for one template: `with Rendering(budget):`."""

    def __init__(self, budget: RenderBudget) -> None:
        self._budget = budget

    def __enter__(self) -> RenderBudget:
        _running.budget = self._budget
        return self._budget

    def __exit__(self, *_: object) -> None:
        _running.budget = None


def _budget() -> RenderBudget:
    budget: RenderBudget | None = getattr(_running, "budget", None)
    if budget is None:
        raise TemplateStopped("it runs without a budget")
    return budget


class BudgetedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox, in which everything that a template does is paid for. Use it in a `Rendering`."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self, **options: Any) -> None:
        super().__init__(finalize=self.weighed, **options)
        self.globals.pop("lipsum")
        for name in UNBOUNDED_FILTERS:
            del self.filters[name]
        for name, apply in self.filters.items():
            self.filters[name] = _paid(name, apply)
        self.concat = self.joined  # type: ignore[method-assign]

    def add_filter(self, name: str, apply: Callable[..., Any]) -> None:
        """Give templates a filter, which is paid for as the others are."""
        self.filters[name] = _paid(name, apply)

    def compiled(self, source: str) -> Any:
        """Return `source` as a template whose loops, macros and values are paid for. Raises what jinja2 raises."""
        tree = self.parse(source)
        return self.from_string(_Instrumented().visit(tree))

    # What the instrumented code and the compiler call.

    def tick(self) -> str:
        _budget().step()
        return ""

    def weighed(self, value: T) -> T:
        return _budget().passed(value)

    def compared(self, value: T) -> T:
        _budget().look()  # two values of any size may have been compared
        return value

    def counted(self, values: Iterable[T]) -> Iterator[T]:
        for value in values:
            _budget().step()
            yield value

    def joined(self, parts: Iterable[object]) -> str:
        budget, texts, length = _budget(), [], 0
        for part in parts:
            budget.weigh(part)
            texts.append(text := str(part))
            length += len(text)
            budget.bound(length)
            budget.step(len(text))
        return "".join(texts)

    def concatenated(self, *parts: object) -> str:
        return self.joined(parts)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(__obj, "__self__", None)
        if owner is __self:  # from the instrumented code
            return __obj(*args)
        budget = _budget()
        budget.step()
        if isinstance(owner, str | bytes | int):
            args = _read(args)
            named = [value for name, value in kwargs.items() if name not in ("_loop_vars", "_block_vars")]
            _check_method(budget, __obj.__name__, owner, (*args, *named))
        made = super().call(__context, __obj, *args, **kwargs)
        return made if isinstance(made, Namespace) else budget.passed(made)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Give out `str.format` and `format_map` with a look at what they would make."""
        fill = super().wrap_str_format(value)
        if fill is None:
            return None

        def checked(*args: Any, **kwargs: Any) -> str:
            budget = _budget()
            weight = sum(budget.weigh(given) for given in (*args, *kwargs.values()))
            _check_form(budget, value.__self__, _WIDE_BRACES, weight)
            return fill(*args, **kwargs)

        return checked

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = _budget()
        if operator == "+" and type(left) is str and type(right) is str:  # most of what templates do
            budget.bound(len(left) + len(right))
            budget.step(len(left) + len(right))
            return left + right
        weights = budget.weigh(left), budget.weigh(right)
        if operator == "**" and not _small_power(left, right):
            raise TemplateStopped("it computes with numbers that are too large")
        if operator == "+":
            budget.bound(sum(weights))
        if operator == "*" and isinstance(left, Sized) and isinstance(right, int):
            budget.bound(weights[0] * right)
        if operator == "*" and isinstance(right, Sized) and isinstance(left, int):
            budget.bound(weights[1] * left)
        if operator == "%" and isinstance(left, str | bytes):
            _check_form(budget, left, _WIDE_PERCENT, weights[1])
        return budget.passed(super().call_binop(context, operator, left, right))


def _small_power(base: object, exponent: object) -> bool:
    if not isinstance(base, int) or not isinstance(exponent, int):
        return True  # floats overflow by themselves
    return abs(exponent) * base.bit_length() <= MAX_BITS


def _paid(name: str, apply: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that is paid for."""
    own = 1 if hasattr(apply, "jinja_pass_arg") else 0  # it is given the environment or the context first

    def filtered(*args: Any, **kwargs: Any) -> Any:
        budget = _budget()
        args = (*args[:own], *_read(args[own:]))
        _check_filter(budget, name, (*args[own:], *kwargs.values()))
        made = apply(*args, **kwargs)
        return _counted(made) if isinstance(made, Iterator) else budget.passed(made)

    for marker in ("jinja_pass_arg", "jinja_async_variant"):
        if hasattr(apply, marker):
            setattr(filtered, marker, getattr(apply, marker))
    return filtered


def _read(values: Sequence[Any]) -> tuple[Any, ...]:
    """Return `values` with those read that would be made while they are read, so that they have a size."""
    return tuple([*_counted(value)] if isinstance(value, Iterator) else value for value in values)


def _counted(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        yield _budget().passed(value)


def _check_method(budget: RenderBudget, name: str, owner: Any, args: Sequence[Any]) -> None:
    """Raise TemplateStopped for a method of a text or number that would make too much."""
    if name in _REFUSED_METHODS:
        raise TemplateStopped(f"it calls {name}")
    if name == "join":
        _check_filter(budget, name, (*args, owner))
    else:
        _check_filter(budget, name, (owner, *args))


def _check_filter(budget: RenderBudget, name: str, values: Sequence[Any]) -> None:
    """Raise TemplateStopped for a filter that would make too much of `values`; the first is what it is put to."""
    weights = [budget.weigh(value) for value in values]
    budget.step(sum(weights))
    first, rest = values[0] if values else "", values[1:]
    number = max([0, *(abs(value) for value in rest if isinstance(value, int | float))])
    if name in _PADDING:
        budget.bound(weights[0] + number)
    elif name in _WIDENING:
        mark, width = _WIDENING[name], max([number, *weights[1:]])
        places = weights[0] if mark is None or not isinstance(first, str) else first.count(mark) + 1
        budget.bound(weights[0] + places * (width if width <= _LARGEST_INDENT else math.inf))
    elif name == "round" and number > _LARGEST_PRECISION:
        raise TemplateStopped("it rounds to more places than a number has")
    elif name == "replace" and len(values) > 2 and isinstance(first, str | bytes):
        budget.bound(weights[0] + first.count(rest[0]) * weights[2])
    elif name == "join" and values:
        budget.bound(sum(weights) + (len(first) if isinstance(first, Sized) else 1) * sum(weights[1:]))
    elif name == "format" and isinstance(first, str):
        _check_form(budget, first, _WIDE_PERCENT, sum(weights[1:]))
    elif name == "sum" and any(isinstance(value, list | tuple) for value in rest):
        raise TemplateStopped("it adds lists up")


def _check_form(budget: RenderBudget, form: str | bytes, wide: re.Pattern[str], weight: int) -> None:
    """Raise TemplateStopped for a form that would be filled with too much, of values of this weight in all."""
    text = form if isinstance(form, str) else form.decode("latin-1")
    if wide.search(text):
        raise TemplateStopped("it formats wider than 9999 characters")
    places = text.count("%") + text.count("{")
    budget.bound(len(text) + places * (1 + weight))


class _Instrumented(NodeTransformer):
    """Adds a step to every turn of a loop and call of a macro, and weighs what expressions make."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        if node.test is not None:  # items that are left out take time too
            node.iter = _call("counted", node.iter)
        return self._stepped(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._stepped(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return self._stepped(node)

    def _stepped(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call("tick"), lineno=node.lineno))
        made: nodes.Node = node
        return made

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("concatenated", *node.nodes)

    def _weighed(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        return _call("weighed", node)

    visit_List = visit_Dict = _weighed

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        return _call("compared", node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return node if node.ctx == "store" else _call("weighed", node)


def _call(name: str, *args: Any) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(name), list(args), [], None, None)
