"""Predictor: a model directory as a function from samples to records."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from onnxkit.artifact import ModelDir
from onnxkit.errors import InputError, UsageError
from onnxkit.inputs import blamed
from onnxkit.progress import Progress
from onnxkit.runtime import RuntimeOptions, Session, open_session
from onnxkit.tasks import Encoded, Record, Task, split_options, task_for
from onnxkit.tasks.base import as_float32
from onnxkit.tasks.batches import Remarks, by_length, chunks, filled, located, rows_a_run

if TYPE_CHECKING:
    from onnxkit.generate.pipeline import Generator

T = TypeVar("T")

_POLL_S = 0.1


class Predictor:
    """Runs a model directory on samples.

        >>> Predictor("build/langid")(["Guten Morgen", {"text": "Bonjour"}])
        [{"index": 0, "label": "de", "score": 0.98, "scores": […]}, …]

    A sample is a mapping with the design's columns (`text`, `text_pair`, `image`, `prompt`, `messages`, …),
    or the bare value: a text, a pair of texts, an image's path, a PIL image, a uint8 array, the messages
    of a chat. Records carry `index` first, then the task's fields.

    Picklable: a copy opens the directory anew (with a silent progress), so that worker processes
    can be handed one.

    Attributes:
        model: the directory.
        task: what pre- and post-processes.
        session: the loaded model; of one that generates its decoder.
        generator: what generates, None for other tasks.
        batch_size: rows that are run together, at most.
    """

    def __init__(
        self,
        model: str | Path | ModelDir,
        *,
        task: str | None = None,
        runtime: RuntimeOptions | None = None,
        batch_size: int = 8,
        progress: Progress | None = None,
        **options: Any,
    ) -> None:
        """Open a model.

        Args:
            model: a directory, an .onnx file, or an opened `ModelDir`.
            task: another task than the directory's own ("raw" takes and gives tensors).
            runtime: provider, threads, graph optimization.
            batch_size: rows a run; small ones pad less (8 is best on CPUs).
            progress: is warned when texts are cut.
            options: the task's: `max_length`, `top_k`, `pooling`, …; of one that generates also those of
                `generate.Generator`: `speculate`, `draft`, `constraint`, `max_new_tokens`, `temperature`, …

        Raises:
            UsageError: an option that the task does not have.
            InputError: no usable model there, a task that it does not have, a tokenizer missing.
            EnvironmentProblem: the execution provider is not usable.
        """
        if batch_size < 1:
            raise UsageError(f"the batch size must be 1 or more, not {batch_size}")
        self.model = model if isinstance(model, ModelDir) else ModelDir.open(Path(model), task=task)
        own, rest = split_options(self.model, task, options)
        self.task: Task = task_for(self.model, task=task, **own)
        self.batch_size = batch_size
        self._source = _reopenable(model)
        self._arguments = {"task": task, "runtime": runtime, "batch_size": batch_size, **options}
        self._progress = progress or Progress()
        self.generator: Generator | None = None
        if self.task.generates:
            self.generator = self._open_generator(runtime, rest)
            self.session: Session = self.generator.engine.decoder.session
        else:
            self.session = open_session(self.model.model_file, runtime or RuntimeOptions())

    def __call__(self, samples: Any) -> list[Record]:
        """Return the records of an iterable of samples (or of one text, path, image or mapping), in order."""
        single = isinstance(samples, str | Path | Mapping) or not isinstance(samples, Iterable)
        return list(self.stream([samples] if single else samples))

    def stream(self, samples: Iterable[Any]) -> Iterator[Record]:
        """Yield the records of any number of samples, in their order, in constant memory.

        Samples are read and pre-processed on a thread, a window ahead of the model; a window's rows
        are batched by length. The first windows are small, so that results appear at once.

        Raises:
            InputError: a sample that cannot be used; names its line, or its position.
        """
        if self.generator is not None:
            for index, answer in enumerate(self.generator.answers(samples)):
                yield {"index": index, **answer.record}
            return
        remarks = Remarks()
        windows = chunks(located(self.task, samples), self.task.window, first=self.batch_size)
        index = 0
        for groups in ahead(map(self.task.rows, windows)):
            remarks.count(groups)
            for record in self._predict(groups):
                yield {"index": index, **record}
                index += 1
        remarks.warn(self._progress, self.task)

    def score(self, samples: Iterable[Any]) -> Iterator[Record]:
        """Yield how probable each sample's text is: `log_probability` (nats), `perplexity`, `scored_tokens`.

        Raises:
            UsageError: a model that does not generate.
            InputError: a sample without a text of two tokens (with an encoder: without a `target`).
        """
        if self.generator is None:
            raise UsageError(f"{self.task.name} gives no probability of a text")
        for index, record in enumerate(self.generator.score(samples)):
            yield {"index": index, **record}

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self._source, self._arguments)

    def _open_generator(self, runtime: RuntimeOptions | None, options: Mapping[str, Any]) -> Generator:
        from onnxkit.generate.pipeline import Generator
        from onnxkit.tasks.generating import GeneratingTask

        draft = options.get("draft")
        if draft is not None and not isinstance(draft, ModelDir):
            options = {**options, "draft": ModelDir.open(Path(draft))}
        assert isinstance(self.task, GeneratingTask)
        return Generator(
            self.model,
            self.task,
            runtime=runtime,
            batch_size=self.batch_size,
            progress=self._progress,
            **options,
        )

    def _predict(self, groups: Sequence[Sequence[Encoded]]) -> list[Record]:
        """Run a window: groups of rows, one a sample; return a record a sample."""
        rows = [row for group in groups for row in group]
        records: list[Record] = [{} for _ in rows]
        for batch in by_length(rows, rows_a_run(self.task, self.batch_size)):
            made = self._run(filled(self.task, [rows[position] for position in batch]))
            for position, record in zip(batch, made, strict=False):
                records[position] = record
        parts = iter(records)
        return [self.task.merge([next(parts) for _ in group]) for group in groups]

    def _run(self, rows: Sequence[Encoded]) -> list[Record]:
        feeds = self.task.collate(rows)
        try:
            outputs = self.session.run(feeds, self.task.fetched)
        except InputError as error:
            for row in rows if len(rows) > 1 else ():
                with blamed(row.where):
                    self.session.run(self.task.collate(filled(self.task, [row])), self.task.fetched)
            raise InputError(f"{rows[0].where}: {error}") from error
        if not self.task.keeps_dtypes:
            outputs = {name: as_float32(array) for name, array in outputs.items()}
        return self.task.decode(outputs, rows)


def ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield `items`, with a thread that makes the next ones meanwhile, one waiting at most.

    The thread is a daemon: one that waits for standard input does not keep the process alive. It
    ends when the generator is closed.
    """
    waiting: queue.Queue[tuple[bool, Any]] = queue.Queue(maxsize=1)
    closed = threading.Event()

    def put(message: tuple[bool, Any]) -> None:
        while not closed.is_set():
            try:
                waiting.put(message, timeout=_POLL_S)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put((True, item))
                if closed.is_set():
                    return
            put((False, None))
        except BaseException as error:  # handed to the consumer, which raises it
            put((False, error))

    threading.Thread(target=work, name="onnxkit-samples", daemon=True).start()
    try:
        while True:
            more, value = waiting.get()
            if more:
                yield value
            elif value is None:
                return
            else:
                raise value
    finally:
        closed.set()


def _reopenable(model: str | Path | ModelDir) -> str:
    """Return the path that opens the same model again."""
    if isinstance(model, ModelDir):
        whole = model.manifest is not None or len(model.components) > 1
        return str(model.path if whole else model.model_file)
    return str(model)


def _reopen(path: str, arguments: dict[str, Any]) -> Predictor:
    return Predictor(path, **arguments)
