"""From a parsed command line to what the manifest's history keeps about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from onnxkit.artifact import Invocation

PRESENTATION = frozenset({"json", "quiet", "debug", "help"})
SECRET = frozenset({"token"})
_SOURCES = {"COMMANDLINE": "command line", "ENVIRONMENT": "environment"}


def source_of(ctx: typer.Context, name: str) -> str:
    """Say where the value of a parameter came from: command line, environment or default."""
    source = ctx.get_parameter_source(name)
    return _SOURCES.get(source.name, "default") if source is not None else "default"


def given(ctx: typer.Context, name: str) -> bool:
    """Whether the user set the parameter, on the command line or in the environment."""
    return source_of(ctx, name) != "default"


def named(ctx: typer.Context, name: str) -> str:
    """Name an option as the user gave it: `--samples`, or `ONNXKIT_SAMPLES (environment)`."""
    param = next(param for param in ctx.command.params if param.name == name)
    if source_of(ctx, name) == "environment":
        return f"{param.envvar} (environment)"
    return max(param.opts, key=len)


def _words(param: Any, value: Any) -> list[str]:
    """Spell one option as command-line words."""
    name = max(param.opts, key=len)
    if param.is_flag:
        return [name] if value else [max(param.secondary_opts, key=len)]
    if param.multiple:
        return [word for item in value for word in (name, str(item))]
    if param.nargs != 1:
        return [name, *map(str, value)]
    return [name, str(value)]


def repeating_argv(ctx: typer.Context) -> tuple[str, ...]:
    """Return the command line that repeats this run anywhere, without its environment.

    Options from the environment are spelled out; secrets (the Hub token) and what only
    changes the presentation (`--json`, `--quiet`, `--debug`) are left out.
    """
    arguments: list[str] = []
    options: list[str] = []
    for param in ctx.command.params:
        name: str = param.name
        value: Any = ctx.params.get(name)
        if name in PRESENTATION | SECRET or not given(ctx, name):
            continue
        if param.param_type_name == "argument":
            arguments += map(str, value) if param.nargs != 1 else [str(value)]
        else:
            options += _words(param, value)
    guard = ["--"] if any(word.startswith("-") for word in arguments) else []
    return ("onnxkit", str(ctx.info_name), *options, *guard, *arguments)


def invocation(ctx: typer.Context) -> Invocation:
    """Describe this run for the manifest: stage, argv, resolved options and their sources."""
    from onnxkit.artifact import Invocation

    names = [
        param.name
        for param in ctx.command.params
        if param.param_type_name == "option" and param.name not in PRESENTATION | SECRET
    ]
    return Invocation(
        stage=str(ctx.info_name),
        argv=repeating_argv(ctx),
        options={name: ctx.params.get(name) for name in names},
        sources={name: source_of(ctx, name) for name in names},
    )
