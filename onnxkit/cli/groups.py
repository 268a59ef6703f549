"""Options that come in groups: declared as tables, added to a command's signature."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import typer

from onnxkit.cli import options
from onnxkit.cli.settings import given, named

Group = Mapping[str, Any]
"""Parameter name -> `Annotated` type of an option. Its default is None: not given."""


def with_groups(*groups: Group) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the options of `groups` to a command after its own ones.

    The command finds their values in `ctx.params`, as all of a group belong together.
    """
    added = {name: annotation for group in groups for name, annotation in group.items()}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)

        @functools.wraps(command)
        def run(**values: Any) -> None:
            command(**{name: value for name, value in values.items() if name not in added})

        keyword = inspect.Parameter.KEYWORD_ONLY
        more = [
            inspect.Parameter(name, keyword, default=None, annotation=annotation)
            for name, annotation in added.items()
        ]
        own = [one.replace(kind=keyword) for one in signature.parameters.values()]
        run.__signature__ = signature.replace(parameters=[*own, *more])  # type: ignore[attr-defined]
        return run

    return decorate


def chosen(ctx: typer.Context, names: Iterable[str]) -> dict[str, Any]:
    """Return the values of those options of a group that were given."""
    return {name: ctx.params[name] for name in names if ctx.params[name] not in (None, ())}


def reject_given(ctx: typer.Context, names: Iterable[str], why: str) -> None:
    """Raise UsageError when one of the options was given although it does not apply."""
    for name in names:
        options.reject(given(ctx, name), named(ctx, name), why)
