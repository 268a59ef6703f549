"""From samples to answers: a task's prompts through the engine, in the samples' order."""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from onnxkit.artifact import ModelDir
from onnxkit.errors import InputError, UsageError, suggestion
from onnxkit.generate.constraint import Constraint, grammar_constraint
from onnxkit.generate.engine import Engine
from onnxkit.generate.option_files import fields_of
from onnxkit.generate.options import GenerationOptions, defaults, merged
from onnxkit.generate.request import Completion, GenerationStats, Request
from onnxkit.inputs import blamed
from onnxkit.progress import Progress
from onnxkit.runtime import RuntimeOptions
from onnxkit.tasks import Encoded, Record
from onnxkit.tasks.batches import Remarks, located, rows_a_run
from onnxkit.tasks.detokenizer import StopStrings, TextStream
from onnxkit.tasks.generating import GeneratingTask
from onnxkit.tasks.perplexity import score_record
from onnxkit.tasks.tokenizer import load_tokenizer

OnText = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of one sample.

    Attributes:
        record: the task's record.
        stats: what each of its rows took (one; several for a sample of several windows).
    """

    record: Record
    stats: tuple[GenerationStats, ...]


@dataclasses.dataclass(kw_only=True)
class _Job:
    """A sample that is worked on: `waiting` rows have no record yet."""

    index: int
    waiting: int
    records: dict[int, Record] = dataclasses.field(default_factory=dict)
    stats: list[GenerationStats] = dataclasses.field(default_factory=list)


_Item = tuple[_Job, int, Encoded]
"""A row: its sample, its place among the sample's rows, and what the task made of it."""


class Generator:
    """Runs a generating task on samples.

    Attributes:
        task: what pre- and post-processes.
        engine: the loaded model.
        options: how it decodes: the model's own settings with what the caller gave.
    """

    def __init__(
        self,
        model: ModelDir,
        task: GeneratingTask,
        *,
        runtime: RuntimeOptions | None = None,
        batch_size: int = 8,
        speculate: str | None = None,
        draft: ModelDir | None = None,
        constraint: Mapping[str, str] | None = None,
        progress: Progress | None = None,
        **given: Any,
    ) -> None:
        """Open the model.

        Args:
            model: the directory.
            task: its task.
            runtime: provider, threads.
            batch_size: rows that are decoded together, at most.
            speculate: "ngram" proposes tokens from the text so far.
            draft: a smaller model of the same tokenizer that proposes tokens.
            constraint: what every output must match: the text of a `json_schema`, a `regex` or a `grammar`.
            progress: is told what is loaded and warned.
            given: generation options by their names in `GenerationOptions`.

        Raises:
            UsageError: options that make no sense, alone or together; an impossible schema.
            InputError: a draft with another tokenizer; graphs that cannot generate.
        """
        self.task = task
        self._progress = progress or Progress()
        _check_names(task, given)
        self.options = merged(_model_options(model, task, self._progress), **given)
        task.stops = StopStrings((*task.stops.texts, *self.options.stop_strings))
        if draft is not None:
            _check_same_tokens(model, task, draft)
        rows = rows_a_run(task, batch_size)
        self.engine = Engine.open(
            model, runtime, batch_size=rows, speculate=speculate, draft=draft, progress=self._progress
        )
        self._constraint = self._constraint_of(constraint) if constraint else None

    def answers(self, samples: Iterable[Any], *, on_text: OnText | None = None) -> Iterator[Answer]:
        """Yield an answer a sample, in their order.

        Samples are read as rows of the batch become free, so any number of them takes little memory.

        Args:
            samples: mappings, or what the task's `sample_of` takes.
            on_text: is given the text as it comes; for a single sample of one sequence.

        Raises:
            InputError: a sample that cannot be used, after the answers of those before it; or one on which
                the model fails.
        """
        yield from _Run(self, samples, on_text).answers()

    def score(self, samples: Iterable[Any]) -> Iterator[Record]:
        """Yield, for each sample, the log-probability and perplexity of its text, nothing generated.

        Raises:
            InputError: a sample without a text (with an encoder: without a `target`), or one on which the
                model fails.
        """
        remarks = Remarks()
        for sample in located(self.task, samples):
            row = self.task.score_row(sample)
            remarks.count([[row]])
            encoder = row.features or None
            with blamed(row.where):
                scores = self.engine.score(row.extra.ids, encoder=encoder)
            yield score_record(scores)
        remarks.warn(self._progress, self.task)

    def request(self, row: Encoded, *, stop: Callable[[], Any] | None = None) -> Request:
        """Return what the engine is asked for a row; `stop` takes the place of the task's check.

        Raises:
            InputError: the prompt fills the model's context.
        """
        prompt, limit = row.extra, self.engine.limit
        if limit is not None and len(prompt.ids) >= limit:
            raise InputError(
                f"{row.where}: the prompt has {len(prompt.ids):,} tokens, and the model's context is "
                f"{limit:,}: nothing can follow; shorten it"
            )
        options = dataclasses.replace(self.options, **prompt.options)
        return Request(
            prompt=prompt.ids,
            encoder=row.features,
            options=dataclasses.replace(options, eos_token_ids=self._ends(prompt.stop_ids, options)),
            stop=stop or self.task.stop_check(row),
            constraint=self._constraint,
            rule=prompt.rule,
            log_probabilities=prompt.log_probabilities,
        )

    def _constraint_of(self, source: Mapping[str, str]) -> Callable[[], Constraint]:
        text = self.task.setup.tokenizer.to_str()
        return grammar_constraint(text, self._ends(()), vocabulary=self.engine.vocabulary, **source)

    def _ends(self, more: Sequence[int], options: GenerationOptions | None = None) -> tuple[int, ...]:
        own = (options or self.options).eos_token_ids
        return tuple(dict.fromkeys((*own, *self.task.stop_ids, *more)))


class _Run:
    """One pass over samples."""

    def __init__(self, generator: Generator, samples: Iterable[Any], on_text: OnText | None) -> None:
        self._generator = generator
        self._task = generator.task
        self._fresh = self._rows(samples)
        self._following: deque[_Item] = deque()
        self._running: dict[int, _Item] = {}
        self._done: dict[int, Answer] = {}
        self._remarks = Remarks()
        self._failure: InputError | None = None
        self._on_text = on_text
        self._streams: dict[int, TextStream] = {}

    def answers(self) -> Iterator[Answer]:
        """Yield the answers in the samples' order."""
        wanted = itertools.count()
        following = next(wanted)
        exhausted = False
        while not exhausted or self._following:
            self._running.clear()
            for position, completion in self._completions():
                self._flush(position)
                self._finish(*self._running.pop(position), completion)
                while following in self._done:
                    yield self._done.pop(following)
                    following = next(wanted)
            exhausted = True
        self._remarks.warn(self._generator._progress, self._task)
        if self._failure is not None:
            raise self._failure

    def _completions(self) -> Iterator[tuple[int, Completion]]:
        engine, on_token = self._generator.engine, self._say if self._on_text else None
        try:
            yield from engine.generate(self._requests(), on_token=on_token)
        except InputError:
            for _, _, row in self._running.values():
                with blamed(row.where):
                    request = self._generator.request(row)
                    options = dataclasses.replace(request.options, max_new_tokens=1)
                    list(engine.generate([dataclasses.replace(request, options=options)]))
            raise  # none of them fails alone

    def _requests(self) -> Iterator[Request]:
        """Yield what the engine takes next: rows that follow others first, then those of new samples."""
        for position in itertools.count():
            try:
                item = self._next()
                if item is None:
                    return
                request = self._generator.request(item[2])
            except InputError as error:
                self._failure = error  # raised once what came before is answered
                return
            self._running[position] = item
            yield request

    def _next(self) -> _Item | None:
        if self._following:
            return self._following.popleft()
        return next(self._fresh, None) if self._failure is None else None

    def _rows(self, samples: Iterable[Any]) -> Iterator[_Item]:
        for index, sample in enumerate(located(self._task, samples)):
            [rows] = self._task.rows([sample])
            self._remarks.count([rows])
            job = _Job(index=index, waiting=len(rows))
            yield from ((job, slot, row) for slot, row in enumerate(rows))

    def _finish(self, job: _Job, slot: int, row: Encoded, completion: Completion) -> None:
        record = self._task.decode_completion(completion.sequences, row, completion.prompt_tokens)
        job.records[slot] = record
        job.stats.append(completion.stats)
        after = self._task.next_row(row, record)
        if after is not None:
            self._following.append((job, slot + 1, after))
            return
        job.waiting -= 1
        if not job.waiting:
            merged_record = self._task.merge([job.records[place] for place in sorted(job.records)])
            self._done[job.index] = Answer(record=merged_record, stats=tuple(job.stats))

    def _say(self, position: int, token: int) -> None:
        """Show what a new token adds to a row's text."""
        if position not in self._streams:
            self._streams[position] = self._task.stream(self._running[position][2])
        self._show(self._streams[position].text(token))

    def _flush(self, position: int) -> None:
        stream = self._streams.pop(position, None)
        if stream is not None:
            self._show(stream.flush())

    def _show(self, text: str) -> None:
        if text and self._on_text is not None:
            self._on_text(text)


def _check_names(task: GeneratingTask, given: Mapping[str, Any]) -> None:
    known = [field.name for field in dataclasses.fields(GenerationOptions)]
    for name in given:
        if name not in known:
            raise UsageError(f"{task.name} has no option {name!r}; {suggestion(name, known)}")


def _model_options(model: ModelDir, task: GeneratingTask, progress: Progress) -> GenerationOptions:
    """Return the model's own settings: generation_config.json, then config.json's for this task."""
    own = defaults(model, progress=progress)
    return dataclasses.replace(own, **fields_of(task.generation, where=str(model.path / "config.json")))


def _check_same_tokens(model: ModelDir, task: GeneratingTask, draft: ModelDir) -> None:
    """Refuse a draft whose ids mean other tokens."""
    ours, theirs = task.setup.tokenizer.get_vocab(), load_tokenizer(draft).tokenizer.get_vocab()
    for token, index in ours.items():
        if theirs.get(token) != index:
            there = "is missing" if token not in theirs else f"is {theirs[token]}"
            raise InputError(
                f"--draft {draft.path}: another tokenizer than that of {model.path}: {token!r} {there} "
                f"there, {index} here"
            )
