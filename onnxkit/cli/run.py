"""`onnxkit run`."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnxkit.cli import chat, figures, generating, options, raw, records
from onnxkit.cli.console import Console
from onnxkit.cli.generation_options import ENGINE, GENERATING_TASK, GENERATION, WAYS
from onnxkit.cli.groups import chosen, reject_given, with_groups
from onnxkit.cli.samples import Request, count, from_command_line
from onnxkit.cli.task_options import TASK_OPTIONS

if TYPE_CHECKING:
    from onnxkit.artifact import ModelDir
    from onnxkit.predictor import Predictor
    from onnxkit.tasks import Task

EXAMPLES = """
onnxkit run build/sentiment "I liked it." "I did not."
onnxkit run build/sentiment --file reviews.csv --column text=review --jsonl > answers.jsonl
onnxkit run build/reranker --pair "how tall is it" "It is 8 m tall."
onnxkit run build/qa --question "Who wrote it?" --context "Ada wrote it in 1843."
onnxkit run build/vit cat.png dog.png --top-k 3
cat lines.txt | onnxkit run build/minilm --file - --json
onnxkit run build/gpt2 "The future of AI is" --num-return-sequences 3 --max-length 50
onnxkit run build/nllb "Good morning." --source-lang eng_Latn --target-lang deu_Latn
onnxkit run build/llama --chat --system "Answer in one sentence."
onnxkit run build/whisper talk.wav --language en --subtitles srt > talk.srt
onnxkit run build/encoder --inputs tensors.npz --output outputs.npz
"""

Inputs = Annotated[
    list[str] | None,
    typer.Argument(metavar="[INPUT]...", help="Texts, or paths of images or audio; - is standard input."),
]
Pair = Annotated[
    tuple[str, str] | None,
    options.option("--pair", metavar="A B", help="Two texts that belong together.", panel=options.DATA),
]
Question = Annotated[
    str | None,
    options.option("--question", metavar="TEXT", help="A question about --context.", panel=options.DATA),
]
Context = Annotated[
    str | None,
    options.option("--context", metavar="TEXT", help="Where the answer stands.", panel=options.DATA),
]
File = Annotated[
    str | None,
    options.option(
        "--file",
        "-f",
        metavar="FILE|DIR",
        panel=options.DATA,
        help="Samples: txt, jsonl, csv, parquet, a folder of images or audio, - for standard input.",
    ),
]
Format = Annotated[
    str | None,
    options.option(
        "--format",
        metavar="FORMAT",
        panel=options.DATA,
        help="Format of --file where its name does not tell: txt, jsonl, csv, tsv, parquet, …",
    ),
]
Tensors = Annotated[
    Path | None,
    options.option(
        "--inputs",
        metavar="FILE.npz",
        panel=options.DATA,
        help="Raw tensors, one array for each input of the model.",
    ),
]
Output = Annotated[
    Path | None,
    options.option(
        "--output",
        "-o",
        metavar="FILE.npz",
        panel=options.OUTPUT,
        help="Where the outputs of --inputs go.",
    ),
]
Jsonl = Annotated[
    bool,
    options.option("--jsonl", help="Print one JSON object a line, as results come.", panel=options.OUTPUT),
]
BatchSize = Annotated[
    int,
    options.option("--batch-size", metavar="N", help="Samples run together.", panel=options.RUNTIME, min=1),
]

GROUPS = (TASK_OPTIONS, WAYS, GENERATING_TASK, GENERATION, ENGINE)
ALL = tuple(name for group in GROUPS for name in group)


@with_groups(*GROUPS)
def run(
    ctx: typer.Context,
    model: options.Directory,
    inputs: Inputs = None,
    pair: Pair = None,
    question: Question = None,
    context: Context = None,
    file: File = None,
    format: Format = None,
    column: options.Columns = None,
    tensors: Tensors = None,
    output: Output = None,
    overwrite: options.Overwrite = False,
    jsonl: Jsonl = False,
    task: options.Task = None,
    batch_size: BatchSize = 8,
    ep: options.Ep = "cpu",
    ep_option: options.EpOption = None,
    threads: options.Threads = None,
    graph_optimization: options.GraphOptimization = "all",
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Run a model on texts, images, audio or raw tensors, and print what it says."""
    options.reject(json and jsonl, "--jsonl", "--json prints one document")
    runtime = options.runtime_options(ep, ep_option, threads, graph_optimization)
    request = Request(
        inputs=tuple(inputs or ()), pair=pair, question=question, context=context, file=file, format=format,
        columns=options.split_pairs(column, "--column"), tensors=tensors, messages=ctx.params["messages"],
        chat=bool(ctx.params["chat"]),
    )  # fmt: skip
    request.check()
    if ctx.params["subtitles"]:
        options.reject(json or jsonl, "--subtitles", "--json and --jsonl print records (see --timestamps)")
        options.reject(not request.single, "--subtitles", "a subtitle file is of one recording")
    if tensors is not None:
        reject_given(ctx, (*ALL, "batch_size", "task", "jsonl"), "raw tensors are run as they are")
        raw.run(ctx.obj, model, tensors, runtime, output=output, overwrite=overwrite)
        return
    reject_given(ctx, ("output", "overwrite"), "only the outputs of --inputs are written to a file")
    predictor = _predictor(ctx, model, task, runtime, batch_size)
    if request.chat:
        reject_given(ctx, ("score", "stream", "batch_size"), "a chat shows its answers as they come")
        chat.run(ctx, predictor, jsonl=jsonl)
    elif predictor.generator is not None:
        generating.run(ctx, predictor, request, jsonl=jsonl)
    else:
        _print(ctx.obj, predictor, request, ctx.params["subtitles"], jsonl=jsonl)


def _predictor(ctx: typer.Context, model: Path, task: str | None, runtime: Any, batch_size: int) -> Predictor:
    """Open the model, and say with what settings it really runs."""
    from onnxkit.artifact import ModelDir
    from onnxkit.predictor import Predictor
    from onnxkit.tasks import options_of, served_by

    opened = ModelDir.open(model, task=task)
    served = served_by(opened)
    own = options_of(served)
    _reject_foreign(ctx, own, served, opened)
    wanted = chosen(ctx, [name for name in ALL if name in own])
    if ctx.params["subtitles"]:
        wanted["timestamps"] = True
    if served.generates:
        wanted |= generating.options_of(ctx)
    predictor = Predictor(opened, runtime=runtime, batch_size=batch_size, progress=ctx.obj, **wanted)
    batches = "" if ctx.params["chat"] else f"batches of {batch_size}, "
    ctx.obj.note(f"{model}: {predictor.task.name}, {batches}{settings(predictor.session)}")
    return predictor


def _reject_foreign(ctx: typer.Context, own: Iterable[str], served: type[Task], model: ModelDir) -> None:
    """Refuse options of other tasks than the one that is run."""
    accepted = {*own, *(generating.ACCEPTED if served.generates else ())}
    if "system" in accepted:
        accepted |= {"chat", "messages"}
    if "timestamps" in accepted:
        accepted.add("subtitles")
    why = f"this is {served.kind}" if served.kind else f"the task is {model.task}"
    reject_given(ctx, (name for name in ALL if name not in accepted), why)


def settings(session: Any) -> str:
    """Say how a session really runs: provider, threads and where their number came from."""
    threads = session.threads
    return f"{session.provider}, {figures.plural(threads.count, 'thread')} ({threads.source})"


def _print(
    console: Console, predictor: Predictor, request: Request, subtitles: str | None, *, jsonl: bool
) -> None:
    samples = from_command_line(request, predictor.task)
    shown: deque[str] = deque()
    human = not (jsonl or console.json)
    stream = predictor.stream(records.remember(samples, shown) if human else samples)
    stream = records.tracked(console, stream, total=count(request), text="running")
    records.print_all(console, stream, shown, subtitles, jsonl=jsonl)
