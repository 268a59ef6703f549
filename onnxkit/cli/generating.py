"""What `onnxkit run` does with a model that generates: streams, records, scores, and what it took."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from onnxkit.cli import figures, records
from onnxkit.cli.console import Column, Console
from onnxkit.cli.generation_options import (
    ENGINE,
    GENERATION,
    SHARED_WITH_TASKS,
    generation_values,
)
from onnxkit.cli.groups import chosen, reject_given
from onnxkit.cli.options import reject
from onnxkit.cli.samples import Request, count, from_command_line
from onnxkit.cli.settings import source_of

if TYPE_CHECKING:
    from onnxkit.generate import GenerationStats
    from onnxkit.generate.options import GenerationOptions
    from onnxkit.generate.pipeline import Answer, Generator
    from onnxkit.predictor import Predictor

ACCEPTED = frozenset((*GENERATION, *ENGINE, *SHARED_WITH_TASKS, "score", "stream"))
"""Options of every task that generates, beside the task's own."""

GIVEN = (*GENERATION, *SHARED_WITH_TASKS)
"""Options that are settings of the generation."""

MAX_GRAMMAR_BYTES = 1 << 20

CUT = "an output was cut before it was complete, and does not parse; allow more with --max-new-tokens"

_SILENT = frozenset(
    ("do_sample", "eos_token_ids", "pad_token_id", "bos_token_id", "decoder_start_token_id",
     "forced_bos_token_id", "forced_eos_token_ids", "suppress_tokens", "begin_suppress_tokens")
)  # fmt: skip
"""Settings of the model that say nothing to a reader."""


def options_of(ctx: typer.Context) -> dict[str, Any]:
    """Return the options of generation and engine that were given, as the predictor takes them.

    Raises:
        InputError: a schema or grammar that cannot be read.
    """
    found = generation_values(chosen(ctx, GIVEN))
    engine = chosen(ctx, ENGINE)
    constraint = {
        name: engine.pop(name)
        if name == "regex"
        else _read(engine.pop(name), json_text=name == "json_schema")
        for name in ("json_schema", "regex", "grammar")
        if name in engine
    }
    return {**found, **engine, **({"constraint": constraint} if constraint else {})}


def run(ctx: typer.Context, predictor: Predictor, request: Request, *, jsonl: bool) -> None:
    """Generate for the samples of the command line, or score them, and print what came of it."""
    console: Console = ctx.obj
    samples = from_command_line(request, predictor.task)
    if ctx.params["score"]:
        reject_given(ctx, (*GIVEN, *ENGINE, "stream", "stop", "stop_token"), "--score generates nothing")
        _show_scores(console, predictor, samples, request, jsonl=jsonl)
        return
    assert predictor.generator is not None
    announce(ctx, predictor.generator.options)
    if _streams(ctx, predictor.generator, request, jsonl=jsonl):
        _stream(console, predictor.generator, samples, _meter(ctx, console))
        return
    meter = _meter(ctx, console)
    if request.single and not (jsonl or console.json):
        for answer in predictor.generator.answers(samples):
            meter.take(answer)
            records.show_answer(console, answer.record, ctx.params["subtitles"])
    else:
        _print(console, predictor.generator, samples, request, meter, ctx.params["subtitles"], jsonl=jsonl)
    console.note(meter.line())


def announce(ctx: typer.Context, options: GenerationOptions) -> None:
    """Say how tokens are chosen, and where a seed changes nothing about it."""
    asked = chosen(ctx, GIVEN)
    ctx.obj.note(echo(options, given=asked))
    if source_of(ctx, "seed") == "command line" and not options.do_sample:
        ctx.obj.warn(
            "--seed has no effect: no token is drawn by chance without --do-sample, --temperature or another "
            "option of sampling"
        )


def echo(options: GenerationOptions, *, given: Mapping[str, Any]) -> str:
    """Say how tokens are chosen: what differs from the plain defaults, and whose wish it is."""
    plain = type(options)()
    kind = (
        "sampling"
        if options.do_sample
        else f"{options.num_beams} beams"
        if options.num_beams > 1
        else "greedy"
    )
    parts = []
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        told = field.name in given
        if field.name in _SILENT or (value == getattr(plain, field.name) and not told) or value is None:
            continue
        parts.append(f"{field.name.replace('_', '-')} {_word(value)}{'' if told else ' (model)'}")
    return ", ".join([f"generation: {kind}", *parts])


class Meter:
    """Adds up what answers took.

    `warn`, where outputs have a form to keep, is told of one that was cut before it had it.
    """

    def __init__(self, warn: Callable[[str], None] | None = None) -> None:
        self.answers = 0
        self._warn = warn
        self._stats: list[GenerationStats] = []
        self._prompt = 0
        self._audio_s = 0.0
        self._begun = time.perf_counter()

    def take(self, answer: Answer) -> None:
        """Count an answer."""
        self.answers += 1
        self._prompt += answer.record.get("prompt_tokens", 0)
        self._audio_s += answer.record.get("duration_s", 0.0)
        self._stats += answer.stats
        outputs = answer.record.get("sequences", [answer.record])
        if self._warn is not None and any(one.get("finish_reason") == "length" for one in outputs):
            self._warn(CUT)

    def line(self) -> str:
        """Say it in a line: tokens, time to the first one, tokens a second, what speculation won."""
        if len(self._stats) == 1 and not self._audio_s:
            return answer_line(self._stats[0], self._prompt)
        new, seconds = sum(one.new_tokens for one in self._stats), time.perf_counter() - self._begun
        if self._audio_s:
            return (
                f"{figures.seconds(self._audio_s)} of audio in {figures.seconds(seconds)} "
                f"({figures.digits(self._audio_s / seconds)} times real time), "
                f"{figures.plural(new, 'new token')}{speculation(self._stats)}"
            )
        return (
            f"{figures.plural(self.answers, 'answer')}: {figures.plural(self._prompt, 'prompt token')}, "
            f"{figures.plural(new, 'new token')} in {figures.seconds(seconds)}, "
            f"{figures.digits(new / seconds)} tokens/s{speculation(self._stats)}"
        )


def _meter(ctx: typer.Context, console: Console) -> Meter:
    formed = any(ctx.params[name] for name in ("json_schema", "regex", "grammar"))
    return Meter(console.warn if formed else None)


def answer_line(stats: GenerationStats, prompt_tokens: int) -> str:
    """Say in a line what one answer took."""
    cached = f" ({stats.cached_tokens:,} of them cached)" if stats.cached_tokens else ""
    parts = [
        f"{figures.plural(prompt_tokens, 'prompt token')}{cached}",
        f"{figures.plural(stats.new_tokens, 'new token')} in {figures.seconds(stats.seconds)}",
        f"first after {figures.milliseconds(stats.first_token_s * 1000)}",
    ]
    if stats.tokens_per_second:
        parts.append(f"then {figures.digits(stats.tokens_per_second)} tokens/s")
    return ", ".join(parts) + speculation([stats])


def speculation(stats: Sequence[GenerationStats]) -> str:
    """Say how many guesses were right and what that made of a step, nothing where none were made."""
    proposed, accepted = sum(one.proposed for one in stats), sum(one.accepted for one in stats)
    if not proposed:
        return ""
    steps = sum(one.steps for one in stats)
    tokens = sum(one.new_tokens - 1 for one in stats)
    gained = f", {figures.digits(tokens / steps)} tokens a step" if steps else ""
    return f"; {accepted:,} of {proposed:,} guesses right{gained}"


def _streams(ctx: typer.Context, generator: Generator, request: Request, *, jsonl: bool) -> bool:
    """Whether the answer is shown as it comes: asked for, or on a terminal."""
    console: Console = ctx.obj
    wanted = ctx.params["stream"]
    options = generator.options
    obstacles = {
        "there is more than one prompt": not request.single,
        "--json and --jsonl print whole records": jsonl or console.json,
        "there are several sequences": options.num_return_sequences > 1 or options.num_beams > 1,
        "speech is decoded a window at a time": generator.task.columns == ("audio",),
        "segments are printed whole": bool(ctx.params["timestamps"]),
    }
    for why, there in obstacles.items():
        if there:
            reject(bool(wanted), "--stream", why)
            return False
    return console.out.isatty() if wanted is None else bool(wanted)


def _stream(console: Console, generator: Generator, samples: Iterable[Any], meter: Meter) -> None:
    for answer in generator.answers(samples, on_text=console.piece):
        meter.take(answer)
    console.prose("")
    console.note(meter.line())


def _print(
    console: Console,
    generator: Generator,
    samples: Iterable[Any],
    request: Request,
    meter: Meter,
    subtitles: str | None,
    *,
    jsonl: bool,
) -> None:
    """Print many answers in the user's mode."""
    shown: deque[str] = deque()

    def made() -> Iterator[dict[str, Any]]:
        for index, answer in enumerate(generator.answers(records.remember(samples, shown))):
            meter.take(answer)
            yield {"index": index, **answer.record}

    stream = records.tracked(console, made(), total=count(request), text="generating")
    records.print_all(console, stream, shown, subtitles, jsonl=jsonl)


def _show_scores(
    console: Console, predictor: Predictor, samples: Iterable[Any], request: Request, *, jsonl: bool
) -> None:
    from onnxkit.tasks.perplexity import perplexity

    stream = console.track(predictor.score(samples), total=count(request), text="scoring")
    if jsonl:
        for record in stream:
            console.record(record)
        return
    found = list(stream)
    if console.json:
        console.document("run", found)
        return
    columns = [Column("text", number=True)]
    columns += [Column(name, number=True) for name in ("tokens", "log-probability", "perplexity")]
    console.table(
        columns,
        [
            (
                str(one["index"] + 1), f"{one['scored_tokens']:,}", f"{one['log_probability']:.3f}",
                figures.digits(one["perplexity"], 5),
            )
            for one in found
        ],
    )  # fmt: skip
    if len(found) > 1:
        console.line(f"perplexity of all {len(found):,}: {figures.digits(perplexity(found).value, 5)}")


def _read(path: Path, *, json_text: bool) -> str:
    from onnxkit.safety import read_json_value, read_text

    if json_text:
        return json.dumps(read_json_value(path))
    return read_text(path, "grammar", max_bytes=MAX_GRAMMAR_BYTES)


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return " ".join(repr(one) if isinstance(one, str) else str(one) for one in value)
    return str(value)
