"""`onnxkit run`."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnxkit.cli import figures, options, raw, records
from onnxkit.cli.console import Console
from onnxkit.cli.samples import Request, count, from_command_line
from onnxkit.cli.settings import given, named

if TYPE_CHECKING:
    from onnxkit.predictor import Predictor

EXAMPLES = """
onnxkit run build/sentiment "I liked it." "I did not."
onnxkit run build/sentiment --file reviews.csv --column text=review --jsonl > answers.jsonl
onnxkit run build/reranker --pair "how tall is it" "It is 8 m tall."
onnxkit run build/qa --question "Who wrote it?" --context "Ada wrote it in 1843."
onnxkit run build/vit cat.png dog.png --top-k 3
cat lines.txt | onnxkit run build/minilm --file - --json
onnxkit run build/encoder --inputs tensors.npz --output outputs.npz
"""

TASK = "Task"
TASK_OPTIONS = (
    "top_k", "max_length", "stride", "pooling", "normalize", "aggregation", "activation",
    "max_answer_length", "null_answers",
)  # fmt: skip

Inputs = Annotated[
    list[str] | None,
    typer.Argument(metavar="[INPUT]...", help="Texts, or paths of images; - is standard input."),
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
        help="Samples: txt, jsonl, csv, parquet, a folder of images, - for standard input.",
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
TopK = Annotated[
    int | None,
    options.option("--top-k", metavar="K", help="Answers for each sample.", panel=TASK, min=1),
]
MaxLength = Annotated[
    int | None,
    options.option("--max-length", metavar="N", help="Cut texts after N tokens.", panel=TASK, min=1),
]
Stride = Annotated[
    int | None,
    options.option(
        "--stride",
        metavar="N",
        panel=TASK,
        min=0,
        help="Read long texts in windows that overlap by N tokens.",
    ),
]
Pooling = Annotated[
    str | None,
    options.option(
        "--pooling",
        panel=TASK,
        choices=("mean", "cls", "max", "last", "none"),
        metavar="HOW",
        help="Vector of a text from those of its tokens: mean, cls, max, last, none.",
    ),
]
Normalize = Annotated[
    bool | None,
    options.option("--normalize/--no-normalize", help="Scale vectors to length 1.", panel=TASK),
]
Aggregation = Annotated[
    str | None,
    options.option(
        "--aggregation",
        panel=TASK,
        metavar="HOW",
        choices=("none", "simple", "first", "average", "max"),
        help="How tokens join to entities: none, simple, first, average, max.",
    ),
]
Activation = Annotated[
    str | None,
    options.option(
        "--activation",
        panel=TASK,
        metavar="NAME",
        choices=("softmax", "sigmoid", "none"),
        help="From logits to scores: softmax, sigmoid, none.",
    ),
]
MaxAnswerLength = Annotated[
    int | None,
    options.option("--max-answer-length", metavar="N", help="Tokens of an answer.", panel=TASK, min=1),
]
NullAnswers = Annotated[
    bool | None,
    options.option("--null-answers/--no-null-answers", help="Allow no answer as an answer.", panel=TASK),
]
BatchSize = Annotated[
    int,
    options.option("--batch-size", metavar="N", help="Samples run together.", panel=options.RUNTIME, min=1),
]


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
    top_k: TopK = None,
    max_length: MaxLength = None,
    stride: Stride = None,
    pooling: Pooling = None,
    normalize: Normalize = None,
    aggregation: Aggregation = None,
    activation: Activation = None,
    max_answer_length: MaxAnswerLength = None,
    null_answers: NullAnswers = None,
    batch_size: BatchSize = 8,
    ep: options.Ep = "cpu",
    ep_option: options.EpOption = None,
    threads: options.Threads = None,
    graph_optimization: options.GraphOptimization = "all",
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Run a model on texts, images or raw tensors, and print what it says."""
    options.reject(json and jsonl, "--jsonl", "--json prints one document")
    runtime = options.runtime_options(ep, ep_option, threads, graph_optimization)
    request = Request(
        inputs=tuple(inputs or ()), pair=pair, question=question, context=context, file=file, format=format,
        columns=options.split_pairs(column, "--column"), tensors=tensors,
    )  # fmt: skip
    request.check()
    if tensors is not None:
        _reject_all(ctx, (*TASK_OPTIONS, "batch_size", "task", "jsonl"), "raw tensors are run as they are")
        raw.run(ctx.obj, model, tensors, runtime, output=output, overwrite=overwrite)
        return
    _reject_all(ctx, ("output", "overwrite"), "only the outputs of --inputs are written to a file")
    predictor = _predictor(ctx, model, task, runtime, batch_size)
    _print(ctx.obj, predictor, request, jsonl=jsonl)


def _reject_all(ctx: typer.Context, names: Iterable[str], why: str) -> None:
    for name in names:
        options.reject(given(ctx, name), named(ctx, name), why)


def _predictor(ctx: typer.Context, model: Path, task: str | None, runtime: Any, batch_size: int) -> Predictor:
    """Open the model, and say with what settings it really runs."""
    from onnxkit.predictor import Predictor

    chosen = {name: ctx.params[name] for name in TASK_OPTIONS if ctx.params[name] is not None}
    predictor = Predictor(
        model, task=task, runtime=runtime, batch_size=batch_size, progress=ctx.obj, **chosen
    )
    ctx.obj.note(f"{model}: {predictor.task.name}, batches of {batch_size}, {settings(predictor.session)}")
    return predictor


def settings(session: Any) -> str:
    """Say how a session really runs: provider, threads and where their number came from."""
    threads = session.threads
    return f"{session.provider}, {figures.plural(threads.count, 'thread')} ({threads.source})"


def _print(console: Console, predictor: Predictor, request: Request, *, jsonl: bool) -> None:
    samples = from_command_line(request, predictor.task)
    shown: deque[str] = deque()
    human = not (jsonl or console.json)
    stream = predictor.stream(_remember(samples, shown) if human else samples)
    if not console.out.isatty() or console.json:  # a bar and a table on one terminal would mix
        stream = console.track(stream, total=count(request), text="running")
    if console.json:
        console.document("run", list(stream))
    elif jsonl:
        for record in stream:
            console.record(record)
    else:
        records.show(console, stream, shown)


def _remember(samples: Iterable[Any], shown: deque[str]) -> Iterator[Any]:
    """Keep the text of each sample until its record is printed beside it."""
    for sample in samples:
        shown.append(records.sample_text(sample))
        yield sample
