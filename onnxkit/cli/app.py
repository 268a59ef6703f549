"""The `onnxkit` command: the list of commands, and the boundary around them."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer
from typer.main import get_command

from onnxkit import __version__
from onnxkit.cli import (
    boundary,
    coercion,
    doctor,
    export,
    help,
    inspect,
    interruption,
    optimize,
    profile,
    quantize,
    run,
    verify,
)
from onnxkit.cli.console import Console

EXAMPLES = """
onnxkit export bert-base-uncased build/bert
onnxkit optimize build/bert build/bert-o2
onnxkit quantize build/bert-o2 build/bert-int8 --scheme int8-dynamic
onnxkit run build/bert-int8 "The capital of France is [MASK]."
onnxkit profile build/bert-o2 build/bert-int8 --batch 1,8
"""

app = typer.Typer(
    cls=help.Group,
    epilog=EXAMPLES,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)

# The commands, in the order of the help. A new one is one file and one line here.
COMMANDS = (
    (export.export, export.EXAMPLES),
    (optimize.optimize, optimize.EXAMPLES),
    (quantize.quantize, quantize.EXAMPLES),
    (run.run, run.EXAMPLES),
    (profile.profile, profile.EXAMPLES),
    (verify.verify, verify.EXAMPLES),
    (inspect.inspect, inspect.EXAMPLES),
    (doctor.doctor, doctor.EXAMPLES),
)
for _function, _examples in COMMANDS:
    app.command(cls=help.Command, epilog=_examples)(_function)


def _print_version(ctx: typer.Context, wanted: bool) -> None:
    if wanted:
        ctx.obj.line(f"onnxkit {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def onnxkit(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Export Transformers models to ONNX, optimize, quantize, run and profile them on ONNX Runtime.

    Every speed, size and accuracy that it prints was measured on this machine.
    """
    if ctx.invoked_subcommand is None:
        print(ctx.get_help(), file=ctx.obj.out)


def _open_standard_streams() -> None:
    """Send streams that the caller closed nowhere, before a file that is opened takes one's number."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            setattr(sys, name, os.fdopen(number, mode))


def _wanted(switch: str, argv: Sequence[str]) -> bool:
    """Guess whether a switch is given, before anything is parsed."""
    with contextlib.suppress(ValueError):
        return f"--{switch}" in argv or coercion.to_bool(os.environ.get(f"ONNXKIT_{switch.upper()}") or "0")
    return False


def _prepare(argv: Sequence[str], console: Console) -> None:
    """Set up the process: libraries that would talk over our output."""
    # The options say it once they are parsed; until then, errors of the parsing need it.
    console.json = _wanted("json", argv)
    console.debug = _wanted("debug", argv)
    if not console.debug:
        warnings.simplefilter("ignore")
        logging.lastResort = logging.NullHandler()
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def execute(argv: Sequence[str], console: Console) -> int:
    """Run one command line; return its exit code. Nothing is raised."""
    command = get_command(app)

    def work() -> None:
        if console.owns_process:  # here, where what a signal raises is caught
            interruption.install()
        with command.make_context("onnxkit", list(argv), obj=console) as ctx:
            command.invoke(ctx)

    return boundary.guarded(work, console)


def main() -> NoReturn:
    """Run the command line of this process and exit."""
    if "_ONNXKIT_COMPLETE" in os.environ:  # the shell asks for completions
        get_command(app).main(prog_name="onnxkit", obj=Console())
    _open_standard_streams()
    console = Console(owns_process=True)
    _prepare(sys.argv[1:], console)
    code = execute(sys.argv[1:], console)
    interruption.at_once(code)
    exec("")  # forgets that Ctrl-C ended other code so, for which Python would kill itself in the end
    gc.freeze()  # or the interpreter searches all that an export made for cycles before it ends
    sys.exit(code)
