"""Foreign Jinja templates, run in the immutable sandbox and within limits of steps and size.

The environment is the one that chat templates are written for (transformers' chat_template_utils.py):
trimmed blocks, `break` and `continue`, `raise_exception`, `strftime_now`, a `tojson` that escapes no HTML,
`dict`, a `namespace` without underscores, and the `generation` tag, which marks and changes nothing.
The limits are built into the compiled template: every loop counts, every joined text is measured.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from onnxkit.errors import InputError, UnsafeError
from onnxkit.safety import printable
from onnxkit.tasks.jinja_limits import (
    Budget,
    LimitError,
    check_format,
    check_length,
    check_replace,
    check_widths,
    measured,
)

_BOUNDED, _MEASURED = "_onnxkit_bounded", "_onnxkit_measured"


class Bounded:
    """A compiled template. Rendering is safe to repeat, and from one thread at a time."""

    def __init__(self, environment: Sandbox, template: jinja2.Template, where: str) -> None:
        self._environment = environment
        self._template = template
        self._where = where

    def render(self, variables: Mapping[str, Any], *, where: str) -> str:
        """Return the template's text.

        Raises:
            InputError: the template refuses what it is given (`raise_exception`), or fails on it.
            UnsafeError: it exceeds its limits, or reaches for what the sandbox forbids.
        """
        self._environment.budget.steps = 0
        pieces: list[str] = []
        length = 0
        try:
            for piece in self._template.generate(dict(variables)):
                length += len(piece)
                pieces.append(piece)
                check_length(length)
            return "".join(pieces)
        except (LimitError, MemoryError, jinja2.exceptions.SecurityError) as error:
            raise UnsafeError(f"{self._where}: the chat template is refused: {_short(error)}") from error
        except (jinja2.TemplateError, RecursionError) as error:
            raise InputError(f"{where}: the chat template refuses it: {_short(error)}") from error
        except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
            reason = f"{type(error).__name__}: {_short(error)}"
            raise InputError(f"{where}: {self._where} fails on it: {reason}") from error


def compile_template(source: str, *, where: str) -> Bounded:
    """Compile a template.

    Raises:
        InputError: it is no Jinja template.
    """
    environment = Sandbox()
    try:
        tree = environment.parse(source)
        for loop in list(tree.find_all(nodes.For)):
            loop.iter = _filtered(loop.iter, _BOUNDED)
        _measure_texts(tree)
        code = environment.compile(tree)
    except (jinja2.TemplateError, RecursionError, SyntaxError) as error:
        line = getattr(error, "lineno", None)
        raise InputError(f"{where}: not a chat template (line {line}): {_short(error)}") from error
    template = jinja2.Template.from_code(environment, code, environment.make_globals(None))
    return Bounded(environment, template, where)


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of one template.

    Attributes:
        budget: what the rendering has used.
    """

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        self.budget = Budget()
        extensions: list[Any] = [_Generation, loopcontrols]
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions, finalize=measured)
        self.filters.update(
            {"tojson": _tojson, _BOUNDED: self._bounded, _MEASURED: measured, **_narrowed(self.filters)}
        )
        self.globals.update(
            raise_exception=_raise, strftime_now=_now, dict=_Dictionary(), namespace=_Namespace
        )

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call what a template calls, counted and looked at.

        The arguments have Jinja's names, since a template may pass `self=`.
        """
        __self.budget.before_call(__obj, (*args, *kwargs.values()))
        return measured(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute an operator, unless its result would be too large."""
        self.budget.before_operator(operator, left, right)
        return measured(super().call_binop(context, operator, left, right))

    def _bounded(self, items: Any) -> Any:
        return items if isinstance(items, jinja2.Undefined) else self.budget.through(items)


class _Generation(Extension):
    """The tag `generation`, around what the assistant says; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Dictionary:
    """The global `dict`, without the attributes of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """The global `namespace`, which stores no attribute that begins with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # as Namespace: a template may pass self=
        self, rest = args[0], args[1:]
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _check_attribute(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)


def _check_attribute(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"it stores the attribute {printable(name)!r} on a namespace")


def _filtered(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _measure_texts(tree: nodes.Template) -> None:
    """Let every `~` measure what it joins, and its result: a text that doubles in a loop is stopped."""
    for joined in tree.find_all(nodes.Concat):
        joined.nodes = [_filtered(one, _MEASURED) for one in joined.nodes]


def _narrowed(filters: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """Return Jinja's filters that make long texts of short ones, looked at before they do."""

    def wrapped(name: str, check: Callable[..., None]) -> Callable[..., Any]:
        inner = filters[name]

        def run(*args: Any, **kwargs: Any) -> Any:
            check(*args, *kwargs.values())
            return measured(inner(*args, **kwargs))

        for attribute in ("jinja_pass_arg", "jinja_async_variant"):
            if hasattr(inner, attribute):
                setattr(run, attribute, getattr(inner, attribute))
        return run

    def values(*given: Any) -> None:
        measured(list(given))

    def widths(_text: Any, *given: Any) -> None:
        check_widths(given)

    def replacing(_context: Any, text: Any, old: Any, new: Any, *_: Any) -> None:
        check_replace(str(text), old, new)

    def joining(_context: Any, items: Any, separator: Any = "", *_: Any) -> None:
        if isinstance(items, list | tuple):
            measured([*items, *[separator] * len(items)])

    checks: dict[str, Callable[..., None]] = {
        "center": widths, "indent": widths, "string": values, "pprint": values, "replace": replacing,
        "join": joining, "format": lambda text, *given: check_format(str(text), given),
    }  # fmt: skip
    return {name: wrapped(name, check) for name, check in checks.items()}


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    check_widths([indent])
    return json.dumps(
        measured(value), ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _short(error: BaseException) -> str:
    return printable(str(error).splitlines()[0] if str(error) else type(error).__name__, limit=200)
