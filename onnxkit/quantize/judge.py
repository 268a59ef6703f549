"""What quantization cost and won: outputs, metric and time against the input model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from onnxkit.artifact import ModelDir
from onnxkit.measure.agreement import Agreement, compare_sessions, weighted_cosine
from onnxkit.measure.cached_cases import Step, cached_feeds, generates, is_cached, longest_past
from onnxkit.measure.cases import (
    Shape,
    fixed_shape,
    longest_sequence,
    make_feeds,
    specs_of,
    takes_sequence,
)
from onnxkit.measure.geometry import geometry
from onnxkit.measure.latency import interleaved
from onnxkit.progress import Progress
from onnxkit.quantize.report import Measurement, OutputAgreement, SpeedChange
from onnxkit.quantize.search.bench import Bench, joined_sqnr, metric_change, slice_drops
from onnxkit.quantize.yardstick import BATCH, Feeds, Yardstick
from onnxkit.runtime import RuntimeOptions, Session

MOST_SLICES = 5  # of the largest drops, in reports
TIMED_TOKENS = 128
TIMED_PAST = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """Sessions of one graph: of the input model and of the result."""

    source: Session
    result: Session


def judge(
    pairs: Mapping[str, Pair],
    model: ModelDir,
    written: Path,
    yardstick: Yardstick,
    *,
    columns: Mapping[str, str],
    runtime: RuntimeOptions,
    seed: int,
    progress: Progress,
) -> Measurement:
    """Compare the quantized model in the directory `written` with the input model."""
    progress.note(f"measuring on {yardstick.text or yardstick.name}")
    compared = [
        (case.output, case.agreement)
        for component, pair in pairs.items()
        for case in compare_sessions(
            pair.source,
            pair.result,
            progress.track(
                yardstick.cases[component], total=len(yardstick.cases[component]), text="comparing outputs"
            ),
        )
        if not case.output.startswith("present.")
    ]
    agreement = join_outputs(compared)
    bench = Bench(model, yardstick, columns=columns, runtime=runtime)
    divergence = bench.divergence(written)
    after = bench.evaluation(written)
    before = bench.before if after is not None else None
    return Measurement(
        measured_on=yardstick.name,
        samples=yardstick.samples,
        text=yardstick.text,
        agreement=agreement,
        metric=metric_change(before, after, divergence),
        slices=slice_drops(before, after)[:MOST_SLICES],
        divergence=divergence,
        speed=_speed(pairs, model, yardstick, seed),
        prompt=_prompt_speed(pairs, model, seed),
    )


def join_outputs(found: Sequence[tuple[str, Agreement]]) -> tuple[OutputAgreement, ...]:
    """Join the agreements of several cases by output, each weighted by its number of positions."""
    outputs = dict.fromkeys(name for name, _ in found)
    joined = []
    for output in outputs:
        parts = [part for name, part in found if name == output]
        joined.append(
            OutputAgreement(
                output=output,
                cosine=weighted_cosine(parts),
                sqnr_db=joined_sqnr(parts),
                max_abs=max(part.max_abs for part in parts),
            )
        )
    return tuple(joined)


def _speed(pairs: Mapping[str, Pair], model: ModelDir, yardstick: Yardstick, seed: int) -> SpeedChange:
    """Time the graph that does the work: a step of the one with a cache, else the only one."""
    cached = [name for name in pairs if is_cached(model.components[name].inputs)]
    name = cached[0] if cached else next(iter(pairs))
    if cached:
        feeds, shape = _one_token(model, name, seed)
    else:
        feeds = _timed_feeds(model, name, yardstick, seed)
        shape = _size(feeds)
    return _timed(pairs[name], feeds, shape)


def _prompt_speed(pairs: Mapping[str, Pair], model: ModelDir, seed: int) -> SpeedChange | None:
    """Time what comes before the first token, in a model that generates: the encoder, else the prompt."""
    if not generates(model):
        return None
    name, known, rng = next(iter(pairs)), geometry(model.config), np.random.default_rng(seed)
    specs = specs_of(model, name)
    if is_cached(specs):
        tokens = longest_past(specs, known, TIMED_TOKENS)
        feeds: Feeds = cached_feeds(specs, known, Step(batch=1, sequence=tokens), rng)
        return _timed(pairs[name], feeds, f"a prompt of {tokens} tokens")
    shape = Shape(batch=1, sequence=longest_sequence(known, TIMED_TOKENS))
    feeds = make_feeds(specs, known, shape, rng)
    return _timed(pairs[name], feeds, f"the {name} on {_size(feeds)}")


def _timed(pair: Pair, feeds: Feeds, shape: str) -> SpeedChange:
    found = interleaved({"input": pair.source, "quantized": pair.result}, feeds)
    before, after = found.summaries["input"], found.summaries["quantized"]
    ratio = found.ratios[0]
    return SpeedChange(
        shape=shape,
        before_ms=before.p50_ms,
        after_ms=after.p50_ms,
        ratio=ratio.paired,
        ratio_error=ratio.error,
        threads=pair.result.threads.count,
    )


def _one_token(model: ModelDir, component: str, seed: int) -> tuple[Feeds, str]:
    """A step of decoding: one row, one token."""
    specs, known = specs_of(model, component), geometry(model.config)
    past = min(TIMED_PAST, longest_past(specs, known, TIMED_PAST + 1) - 1)
    step = Step(batch=1, sequence=1, past=past)
    return cached_feeds(specs, known, step, np.random.default_rng(seed)), f"one token after {past}"


def _timed_feeds(model: ModelDir, component: str, yardstick: Yardstick, seed: int) -> Feeds:
    """The batch of middling size of real data, else a batch of 8 by up to 128 tokens."""
    cases = yardstick.cases[component]
    if yardstick.data is not None:
        full = sorted((feeds for _, feeds in cases), key=_elements)
        return full[len(full) // 2]
    specs, known = specs_of(model, component), geometry(model.config)
    if not takes_sequence(specs):
        return max((feeds for _, feeds in cases), key=_elements)
    shape = fixed_shape(specs, batch=BATCH, sequence=longest_sequence(known, TIMED_TOKENS))
    return make_feeds(specs, known, shape, np.random.default_rng(seed))


def _size(feeds: Feeds) -> str:
    if not feeds:
        return "no inputs"
    return "x".join(map(str, max(feeds.values(), key=lambda array: array.size).shape))


def _elements(feeds: Feeds) -> int:
    return sum(array.size for array in feeds.values())
