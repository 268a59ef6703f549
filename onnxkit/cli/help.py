"""How commands look in `--help`.

Typer's Rich help costs 0.1 s of imports. This is plain text in sections, at the width of
the terminal, with bold headings where there is one, and with examples in every command.
"""

from __future__ import annotations

import sys
from typing import Any

from typer.core import TyperCommand, TyperGroup

from onnxkit.cli import coercion
from onnxkit.cli.console import Console

ENVIRONMENT_NOTE = (
    "Every option can also be set in the environment, for instance ONNXKIT_THREADS=2 for --threads 2; "
    "the command line wins."
)


def _heading(text: str) -> str:
    return f"\x1b[1m{text}\x1b[0m" if Console.colours(sys.stdout) else text


def _section(formatter: Any, title: str, rows: list[tuple[str, str]]) -> None:
    if rows:
        with formatter.section(_heading(title)):
            formatter.write_dl(rows, col_max=26)


def _usage(ctx: Any, pieces: str) -> str:
    return f"{_heading('Usage:')} {ctx.command_path} {pieces}\n"


def _paragraphs(formatter: Any, text: str) -> None:
    """Write `text` at the left edge: paragraphs are wrapped."""
    for paragraph in text.strip().split("\n\n"):
        formatter.write_paragraph()
        formatter.write_text(" ".join(paragraph.split()))


def default_text(param: Any) -> str:
    """Return the default of an option as the help shows it, empty where there is none."""
    value = param.default
    if isinstance(param.show_default, str):
        return param.show_default
    if value is None or value == () or value == [] or value == "" or not param.show_default:
        return ""
    if value is True or value is False:
        return ("yes" if value else "no") if param.secondary_opts else ""
    return str(value)


def option_names(param: Any) -> str:
    """Return `-t, --task NAME` or `--verify / --no-verify`."""
    names = ", ".join(sorted(param.opts, key=len))
    if param.secondary_opts:
        return f"{names} / {', '.join(param.secondary_opts)}"
    return names if param.is_flag else f"{names} {param.metavar or param.name.upper()}"


def _row(param: Any) -> tuple[str, str]:
    if param.param_type_name == "argument":
        return param.metavar or param.name.upper(), param.help or ""
    default = default_text(param)
    return option_names(param), f"{param.help or ''}{f' [default: {default}]' if default else ''}"


class Command(TyperCommand):
    """A command whose help is plain and whose examples come from its epilog."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words; values are coerced by our own rules."""
        coercion.install(self.get_params(ctx))  # only here are Typer's own options among them
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; from here on stdout is for its data alone."""
        ctx.obj.begin()
        return super().invoke(ctx)

    def arguments_usage(self) -> str:
        """Return the arguments of the usage line, as their metavars spell them."""
        metavars = [p.metavar or p.name.upper() for p in self.params if p.param_type_name == "argument"]
        return " ".join(metavars)

    def sections(self, ctx: Any) -> dict[str, list[Any]]:
        """Group the visible parameters by their panel, arguments first."""
        grouped: dict[str, list[Any]] = {}
        for param in self.get_params(ctx):
            if getattr(param, "hidden", False):
                continue
            argument = param.param_type_name == "argument"
            panel = "Arguments" if argument else getattr(param, "rich_help_panel", None)
            grouped.setdefault(panel or "Common options", []).append(param)
        titles = [title for title in ("Arguments", "Options") if title in grouped]
        first: dict[str, list[Any]] = {title: grouped.pop(title) for title in titles}
        common = grouped.pop("Common options", [])
        return {**first, **grouped, "Common options": common}

    def get_usage(self, ctx: Any) -> str:
        """Return the usage line alone."""
        return f"Usage: {ctx.command_path} [OPTIONS] {self.arguments_usage()}".rstrip()

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write usage, description, parameters by section, examples."""
        formatter.write(_usage(ctx, f"[OPTIONS] {self.arguments_usage()}".rstrip()))
        _paragraphs(formatter, self.help or "")
        for title, params in self.sections(ctx).items():
            _section(formatter, title, [_row(param) for param in params])
        if self.epilog:
            with formatter.section(_heading("Examples")):
                for line in self.epilog.strip().splitlines():
                    formatter.write(f"  {line.strip()}\n" if line.strip() else "\n")
        _paragraphs(formatter, ENVIRONMENT_NOTE)


class Group(TyperGroup):
    """The `onnxkit` command itself."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words; values are coerced by our own rules."""
        coercion.install(self.get_params(ctx))  # only here are Typer's own options among them
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write usage, description, commands, options, examples."""
        formatter.write(_usage(ctx, "COMMAND [OPTIONS] ..."))
        _paragraphs(formatter, self.help or "")
        commands = [(name, command.get_short_help_str(120)) for name, command in self.commands.items()]
        _section(formatter, "Commands", commands)
        _section(formatter, "Options", [_row(param) for param in self.get_params(ctx)])
        if self.epilog:
            with formatter.section(_heading("Examples")):
                for line in self.epilog.strip().splitlines():
                    formatter.write(f"  {line.strip()}\n")
        _paragraphs(formatter, "`onnxkit COMMAND --help` shows the options and examples of a command.")
