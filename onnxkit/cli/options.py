"""The options that commands share, each declared once, and the small languages of their values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from onnxkit.cli import figures
from onnxkit.cli.settings import named
from onnxkit.errors import UsageError, suggestion
from onnxkit.machine import usable_cores

if TYPE_CHECKING:
    from onnxkit.runtime import GraphOptimization as Optimization
    from onnxkit.runtime import RuntimeOptions

DATA = "Data"
RUNTIME = "Runtime"
OUTPUT = "Output"


def variable(*names: str) -> str:
    """Return the environment variable of an option: `--per-channel/--no…` is ONNXKIT_PER_CHANNEL."""
    longest = max((name.split("/")[0] for name in names), key=len)
    return "ONNXKIT_" + longest.lstrip("-").replace("-", "_").upper()


def option(
    *names: str,
    help: str,
    metavar: str | None = None,
    panel: str | None = "Options",
    choices: Sequence[str] = (),
    **settings: Any,
) -> Any:
    """Declare an option: its names, help, place in `--help` and environment variable.

    `choices` is the closed list of its values: others are refused with the nearest names, the
    shell completes them, and the help lists them.
    """
    if choices:
        settings["callback"] = _one_of(choices, max(names, key=len))
        settings["autocompletion"] = _starting_with(choices)
        metavar = metavar or "|".join(choices)
    return typer.Option(
        *names,
        help=help,
        metavar=metavar,
        envvar=variable(*names),
        rich_help_panel=panel,
        show_envvar=False,
        **settings,
    )


def _warn_of_waiting(ctx: typer.Context, threads: int | None) -> int | None:
    """Warn of threads that would wait for one another: each spins while it does."""
    if threads is not None and threads > (cores := usable_cores()).count:
        ctx.obj.warn(
            f"{named(ctx, 'threads')} {threads}: the process may use {figures.plural(cores.count, 'core')} "
            f"({cores.source}); more threads than that wait for one another"
        )
    return threads


def _one_of(choices: Sequence[str], name: str) -> Callable[[str | None], str | None]:
    def check(value: str | None) -> str | None:
        if value is not None and value not in choices:
            raise UsageError(f"unknown {name.lstrip('-')} {value!r}; {suggestion(value, choices)}")
        return value

    return check


def _starting_with(choices: Sequence[str]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return complete


# --- what the values say --------------------------------------------------------------------


def split_list(text: str | None) -> tuple[str, ...]:
    """Split a comma list: `"cpu, cuda"` is `("cpu", "cuda")`, nothing is `()`."""
    if text is None:
        return ()
    return tuple(part for part in (part.strip() for part in text.split(",")) if part)


def split_integers(text: str | None, name: str) -> tuple[int, ...]:
    """Read a sweep: `"1,8"` is `(1, 8)`. Raises UsageError naming the option `name`."""
    numbers = []
    for part in split_list(text):
        if not part.isdecimal() or int(part) < 1:
            raise UsageError(f"{name}: {part!r} is no whole number of 1 or more (a list is 1,8)")
        numbers.append(int(part))
    if text is not None and not numbers:
        raise UsageError(f"{name}: the list is empty (a list is 1,8)")
    return tuple(numbers)


def split_pairs(items: Sequence[str] | None, name: str) -> dict[str, str]:
    """Read repeated `KEY=VALUE`. Raises UsageError for a missing `=` or a repeated key."""
    pairs: dict[str, str] = {}
    for item in items or ():
        key, equals, value = item.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UsageError(f"{name}: {item!r} is not of the form KEY=VALUE")
        if key in pairs:
            raise UsageError(f"{name}: {key!r} is given twice")
        pairs[key] = value
    return pairs


def reject(condition: bool, what: str, why: str) -> None:
    """Raise UsageError when an option was given that does not apply: no option is ever ignored."""
    if condition:
        raise UsageError(f"{what} does not apply: {why}")


# --- shared options -------------------------------------------------------------------------


def _mode(name: str) -> Callable[[typer.Context, bool], bool]:
    def apply(ctx: typer.Context, value: bool) -> bool:
        setattr(ctx.obj, name, value)
        return value

    return apply


Json = Annotated[
    bool,
    option(
        "--json", help="Print one JSON document and nothing else on stdout.", panel=None, is_eager=True,
        callback=_mode("json"),
    ),
]  # fmt: skip
Quiet = Annotated[
    bool,
    option(
        "--quiet", "-q", help="Say nothing but warnings and errors; print only data.", panel=None,
        is_eager=True, callback=_mode("quiet"),
    ),
]  # fmt: skip
Debug = Annotated[
    bool,
    option(
        "--debug", help="Show tracebacks and what the libraries below log.", panel=None, is_eager=True,
        callback=_mode("debug"),
    ),
]  # fmt: skip
Overwrite = Annotated[bool, option("--overwrite", help="Replace an output that exists.", panel=OUTPUT)]
GenaiConfig = Annotated[
    bool, option("--genai-config", help="Write genai_config.json, too, for onnxruntime-genai.", panel=OUTPUT)
]
Task = Annotated[
    str | None,
    option("--task", "-t", metavar="TASK", help="What the model does, as transformers names its pipelines."),
]
Seed = Annotated[int, option("--seed", metavar="N", help="Seed of everything random.", min=0)]
EpList = Annotated[
    str,
    option("--ep", metavar="EP,…", help="Execution providers to compare: cpu, cuda.", panel=RUNTIME),
]
Ep = Annotated[
    str,
    option("--ep", metavar="EP", help="Execution provider: cpu, cuda or its full name.", panel=RUNTIME),
]
EpOption = Annotated[
    list[str] | None,
    option("--ep-option", metavar="KEY=VALUE", help="Option of the provider (repeat).", panel=RUNTIME),
]
Threads = Annotated[
    int | None,
    option(
        "--threads", metavar="N", panel=RUNTIME, min=1, callback=_warn_of_waiting,
        help="Threads; without it the cores that the process may really use.",
    ),
]  # fmt: skip
GraphOptimization = Annotated[
    str,
    option(
        "--graph-optimization",
        help="What ONNX Runtime does to the graph when it loads it.",
        choices=("none", "basic", "extended", "all"),
        metavar="LEVEL",
        panel=RUNTIME,
    ),
]
Columns = Annotated[
    list[str] | None,
    option(
        "--column", metavar="NAME=THEIRS", panel=DATA,
        help="The file calls the column NAME otherwise (repeat): text=sentence.",
    ),
]  # fmt: skip
Directory = Annotated[
    Path, typer.Argument(metavar="DIR", help="A model directory, or an .onnx file.", show_default=False)
]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="The directory to write.", show_default=False)]


def runtime_options(
    ep: str, ep_option: Sequence[str] | None, threads: int | None, graph_optimization: str = "all"
) -> RuntimeOptions:
    """Make the runtime's options of the command line's words."""
    from onnxkit.runtime import RuntimeOptions

    return RuntimeOptions(
        ep=ep,
        ep_options=split_pairs(ep_option, "--ep-option"),
        threads=threads,
        graph_optimization=cast("Optimization", graph_optimization),
    )
