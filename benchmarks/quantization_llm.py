"""The table of quantized language models in docs/benchmarks.md: quality, size and speed of a file each.

    python benchmarks/quantization_llm.py --build build/quantization-llm     # makes what is missing
    python benchmarks/quantization_llm.py fp32=DIR int4=DIR --text eval.txt  # any; the first is fp32
    … --peer genai=genai:PYTHON:DIR --rounds 5 --out table.md                # against another runtime
    … --rounds 0                                                             # no timing

`--build` downloads SmolLM2-135M and the texts (`llm_material.py`), exports and optimizes the model and
quantizes it by every row of `RECIPES` through the command line; directories that exist are kept, so a second
call measures only. Quality is against the first model's own distributions on `--text` (a text a line,
windows of 512 tokens); speed is taken in turns, a process each, as `llm.py` does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from llm import Candidate, Figure, Measured, measure, ours, over, peer
from llm_material import material

from onnxkit import machine
from onnxkit.artifact import ModelDir
from onnxkit.generate import Engine
from onnxkit.measure.divergence import Divergence, Reference, Window, windows
from onnxkit.runtime import RuntimeOptions
from onnxkit.tasks import task_for

FLOAT = "fp32"
CALIBRATION = ("--calibration", "{folder}/calib.txt")
RECIPES: Mapping[str, tuple[str, ...]] = {
    "int8-weight": ("--scheme", "int8-weight"),
    "int8-dynamic": ("--scheme", "int8-dynamic", *CALIBRATION),
    "int4, no data": ("--scheme", "int4-weight", "--asymmetric"),
    "int4, calibrated": ("--scheme", "int4-weight", "--asymmetric", *CALIBRATION),
    "int4, for speed": (
        "--scheme", "int4-weight", "--symmetric", "--block-size", "64", "--embeddings", "int4", *CALIBRATION,
    ),
    "mixed 5.9 bits": ("--scheme", "mixed", "--bits-per-weight", "5.9", *CALIBRATION),
    "mixed 6.2 bits": ("--scheme", "mixed", "--bits-per-weight", "6.2", *CALIBRATION),
    "log8": ("--scheme", "log8"),
    "log4": ("--scheme", "log4"),
}  # fmt: skip
FIGURES = (
    *(
        Figure(title=f"decode at {depth}", command={"do": "decode", "depth": depth, "steps": 32}, tokens=1)
        for depth in (32, 512)
    ),
    Figure(title="prefill 512", command={"do": "prefill", "tokens": 512}, tokens=512),
)
WEIGHTS = (".onnx", ".data")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One file: its size, quality and how long it took to make (None: not known)."""

    name: str
    size_bytes: int
    divergence: Divergence
    seconds: float | None


def main() -> None:
    """Build, measure, print and write the table."""
    options = arguments()
    models: list[Candidate] = list(options.models)
    text: Path | None = options.text
    if options.build is not None:
        models = [*built(options.build), *models]
        text = text or options.build / "eval.txt"
    if not models or text is None:
        sys.exit("name the models (NAME=DIR, the fp32 one first) and --text FILE, or --build FOLDER")
    rows = quality(models, text, options.threads)
    speeds = None
    if options.rounds:
        speeds = measure([*models, *options.peer], options.threads, options.rounds, FIGURES)
    written = render(rows, speeds, options.peer, options.rounds)
    print(written)
    if options.out is not None:
        options.out.write_text(written, encoding="utf-8")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", type=ours, metavar="NAME=DIR")
    parser.add_argument("--build", type=Path, default=None, metavar="FOLDER")
    parser.add_argument("--text", type=Path, default=None, metavar="FILE")
    parser.add_argument("--peer", action="append", default=[], type=peer, metavar="NAME=KIND:PYTHON:PATH")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=None)
    return parser.parse_args()


def built(folder: Path) -> list[Candidate]:
    """Make the models that are not in `folder` yet; return all of them, fp32 first."""
    material(folder)
    portable, source = folder / "smol", folder / "smol-cpu"
    stage(portable, "export", folder / "smol-hf", portable)
    stage(source, "optimize", portable, source, "--no-measure")
    found = [ours(f"{FLOAT}={source}")]
    for name, recipe in RECIPES.items():
        out = folder / name.replace(", ", "-").replace(" ", "-")
        settings = [part.format(folder=folder) for part in recipe]
        stage(out, "quantize", source, out, "--no-measure", *settings)
        found.append(ours(f"{name}={out}"))
    return found


def stage(out: Path, command: str, *arguments: Path | str) -> None:
    """Run a command of onnxkit unless its output is there; its seconds are kept in `OUT.seconds`."""
    if (out / "onnxkit.json").exists():
        return
    print(f"making {out}", file=sys.stderr)
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "onnxkit", command, *map(str, arguments), "--quiet"], check=True)
    seconds_file(out).write_text(json.dumps(time.perf_counter() - started), encoding="utf-8")


def seconds_file(out: Path) -> Path:
    """Where the seconds stand that a directory took to make."""
    return out.with_name(out.name + ".seconds")


def quality(models: Sequence[Candidate], text: Path, threads: int) -> list[Row]:
    """Compare every model with the first, one at a time."""
    runtime = RuntimeOptions(threads=threads)
    directories = [ModelDir.open(Path(each.path)) for each in models]
    reference = Reference(
        Engine.open(directories[0], runtime), read(directories[0], text), remember=text.parent
    )
    rows = []
    for candidate, directory in zip(models, directories, strict=True):
        print(f"reading with {candidate.name}", file=sys.stderr)
        made = seconds_file(directory.path)
        rows.append(
            Row(
                name=candidate.name,
                size_bytes=size_of(directory.path),
                divergence=reference.compare(Engine.open(directory, runtime)),
                seconds=json.loads(made.read_text(encoding="utf-8")) if made.exists() else None,
            )
        )
    return rows


def read(model: ModelDir, text: Path) -> list[Window]:
    """The windows of a text file, a text a line, as the model's own tokenizer cuts it."""
    tokenizer = task_for(model).setup.tokenizer
    lines = text.read_text(encoding="utf-8").splitlines()
    return windows(np.array(tokenizer.encode(line).ids, np.int64) for line in lines)


def size_of(folder: Path) -> int:
    """Bytes of the graph and its weights, embeddings included."""
    return sum(file.stat().st_size for file in folder.iterdir() if file.suffix in WEIGHTS)


def render(rows: Sequence[Row], speeds: Measured | None, peers: Sequence[Candidate], rounds: int) -> str:
    """Write the tables in markdown, with the machine."""
    cpu = machine.cpu()
    tokens = rows[0].divergence.tokens
    lines = [f"{cpu.model} ({', '.join(cpu.isa)}); {tokens:,} tokens of text.", "", *quality_table(rows)]
    if speeds is not None:
        lines += ["", f"Tokens/s, {speeds.threads} thread(s), medians of {rounds} rounds in turns; "
                  f"{speeds.other_cores:.1f} cores were busy with others.", "",
                  *speed_table(rows, speeds, peers)]  # fmt: skip
    return "\n".join([*lines, ""])


def quality_table(rows: Sequence[Row]) -> list[str]:
    """One file a row: bits a weight are of the whole file, by its size against fp32's 32 bits."""
    lines = table("", "MB", "bits a weight", "perplexity", "KL", "KL 99.9 %", "KL max", "top-1", "seconds")
    for row in rows:
        found = row.divergence
        cells = (
            row.name, f"{row.size_bytes / 1e6:.1f}", f"{32 * row.size_bytes / rows[0].size_bytes:.2f}",
            f"{found.perplexity_after:.2f}", f"{found.kl_mean:.4f}", f"{found.kl_p999:.3f}",
            f"{found.kl_max:.2f}", f"{found.top1_agreement:.3f}",
            "" if row.seconds is None else f"{row.seconds:.0f}",
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def speed_table(rows: Sequence[Row], speeds: Measured, peers: Sequence[Candidate]) -> list[str]:
    """Tokens per second, and the speed over fp32's and over each peer's."""
    others = [rows[0].name, *(each.name for each in peers)]
    lines = table("", *(figure.title for figure in FIGURES), *(f"over {name}" for name in others))
    for name in [*(row.name for row in rows), *others[1:]]:
        rates = [figure.tokens / statistics.median(speeds.seconds[name, figure.title]) for figure in FIGURES]
        ratios = [
            "" if name == other else ", ".join(over(speeds, name, other, each.title) for each in FIGURES)
            for other in others
        ]
        lines.append("| " + " | ".join([name, *(f"{rate:.1f}" for rate in rates), *ratios]) + " |")
    return lines


def table(*titles: str) -> list[str]:
    """The first two lines of a table."""
    return ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]


if __name__ == "__main__":
    main()
