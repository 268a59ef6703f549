"""Turn the words of a command line into Python values.

Typer 0.29 coerces through pydantic, whose import alone costs 0.09 s of every command. The
options here need six simple types, so `install` puts this module in its place.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_origin

from onnxkit.errors import UsageError

_TRUE = {"1", "true", "yes", "on", "y", "t"}
_FALSE = {"0", "false", "no", "off", "n", "f"}


def to_bool(text: str) -> bool:
    """Read a switch as the environment spells it: 1/0, true/false, yes/no, on/off."""
    word = text.strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ValueError("expected a switch: 1 or 0, true or false, yes or no")


def to_int(text: str) -> int:
    """Read a whole number."""
    try:
        return int(text)
    except ValueError:
        raise ValueError("expected a whole number") from None


def to_float(text: str) -> float:
    """Read a finite number."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError("expected a number")
    return number


def to_path(text: str) -> Path:
    """Read a path; an empty one would silently mean the current directory."""
    if not text:
        raise ValueError("the path is empty")
    if "\0" in text:
        raise ValueError("the path holds a NUL character")
    return Path(text)


_READERS: dict[Any, Callable[[str], Any]] = {
    str: str,
    int: to_int,
    float: to_float,
    bool: to_bool,
    Path: to_path,
}


class Coercion:
    """Coerces the values of one parameter; takes the place of Typer's runtime parameter."""

    def __init__(self, annotation: Any) -> None:
        self.annotation = annotation

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return `value` as the parameter's type. Raises UsageError naming the option."""
        many = param.multiple or param.nargs == -1
        if value is None:
            return () if many else None
        try:
            if many:
                return tuple(_read(item, self.annotation, param) for item in value)
            return _read(value, self.annotation, param)
        except ValueError as error:
            raise UsageError(f"{describe(param, ctx)}: {error}") from None


def describe(param: Any, ctx: Any) -> str:
    """Name the parameter as the user wrote it: the option, the variable or the argument."""
    source = ctx.get_parameter_source(param.name)
    if source is not None and source.name == "ENVIRONMENT":
        return f"environment variable {param.envvar}"
    if param.param_type_name == "argument":
        return f"argument {param.metavar or param.name.upper()}"
    name: str = max(param.opts, key=len)
    return name


def _read(value: Any, annotation: Any, param: Any) -> Any:
    if get_origin(annotation) is tuple:
        parts = get_args(annotation)
        if len(parts) != len(value):
            raise ValueError(f"expected {len(parts)} values, got {len(value)}")
        return tuple(_read(item, part, param) for item, part in zip(value, parts, strict=True))
    if get_origin(annotation) is list:
        return _read(value, get_args(annotation)[0], param)
    if not isinstance(value, str):
        return value  # a default
    shown = f"{value!r}: " if value else ""
    try:
        result = _READERS[annotation](value)
    except ValueError as error:
        raise ValueError(f"{shown}{error}") from None
    _check_range(result, param, shown)
    return result


def _check_range(number: Any, param: Any, shown: str) -> None:
    if not isinstance(number, (int, float)) or isinstance(number, bool):
        return
    if param.min is not None and number < param.min:
        raise ValueError(f"{shown}must be at least {param.min}")
    if param.max is not None and number > param.max:
        raise ValueError(f"{shown}must be at most {param.max}")


def install(params: list[Any]) -> None:
    """Let every parameter of a command coerce through this module."""
    for param in params:
        descriptor = getattr(param, "type_descriptor", None)
        if descriptor is not None:
            coercion = Coercion(descriptor.annotation)
            # An instance attribute, since Typer itself creates the parameter objects.
            vars(param)["get_runtime_param"] = lambda coercion=coercion: coercion
