"""The language-model table of docs/benchmarks.md: our directories and other runtimes, in turns.

    python benchmarks/llm.py fp32=build/llama-cpu int4=build/llama-int4 \\
        --peer genai=genai:PYTHON:DIR --peer llama.cpp=llama.cpp:PYTHON:FILE.gguf --threads 1,2

NAME=DIR is a model directory of onnxkit; `--peer NAME=KIND:PYTHON:PATH` another runtime (genai, llama.cpp or
optimum) in the environment of that interpreter; docs/benchmarks.md has the commands that make their models.
Every candidate lives in a process of its own. A round measures each figure with every candidate before it
goes on to the next, every other round backwards, so that a noisy machine disturbs all alike. A ratio is the
median over the rounds of one candidate's speed over another's ± its standard error; more than 1: ours is
faster.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxkit import machine
from onnxkit.measure.latency import LoadMeter, ratio

KINDS = ("genai", "llama.cpp", "optimum")
OURS = "onnxkit"
WORKER = Path(__file__).with_name("llm_worker.py")
PREFILL = 512
DEPTHS = (32, 512, 1024)
STEPS = 32
BUSY_CORES = 0.25


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A row of the table."""

    name: str
    kind: str
    python: str
    path: str


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A column: what is asked of every worker, and the tokens that an answer's seconds cover."""

    title: str
    command: Mapping[str, Any]
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one number of threads gave; seconds by candidate and figure, a list an item a round."""

    threads: int
    seconds: Mapping[tuple[str, str], list[float]]
    load_s: Mapping[str, float]
    peak_bytes: Mapping[str, int]
    other_cores: float


FIGURES = (
    *(
        Figure(title=f"decode at {depth}", command={"do": "decode", "depth": depth, "steps": STEPS}, tokens=1)
        for depth in DEPTHS
    ),
    Figure(title=f"prefill {PREFILL}", command={"do": "prefill", "tokens": PREFILL}, tokens=PREFILL),
)


class Worker:
    """A process of `llm_worker.py`."""

    def __init__(self, candidate: Candidate, threads: int) -> None:
        self._name = candidate.name
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "ORT_DISABLE_TELEMETRY": "1"}
        if candidate.kind == OURS:
            environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
        self._process = subprocess.Popen(
            [candidate.python, str(WORKER), candidate.kind, candidate.path, str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def ask(self, **command: Any) -> dict[str, Any]:
        """One command, one answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{self._name}: its process ended; what it said stands above")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


def main() -> None:
    """Measure, print and write the table."""
    options = arguments()
    candidates = [*options.models, *options.peer]
    found: list[Measured] = []
    for threads in options.threads:
        found.append(measure(candidates, threads, options.rounds))
        if options.out is not None:  # what was measured is kept, whatever comes next
            options.out.write_text(render(candidates, found, options.rounds), encoding="utf-8")
    print(render(candidates, found, options.rounds))


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", type=ours, metavar="NAME=DIR")
    parser.add_argument("--peer", action="append", default=[], type=peer, metavar="NAME=KIND:PYTHON:PATH")
    parser.add_argument("--threads", type=integers, default=(1, 2), metavar="N,…")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=None)
    return parser.parse_args()


def ours(text: str) -> Candidate:
    """Split "fp32=DIR"."""
    name, equals, path = text.partition("=")
    if not equals or not Path(path).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=EXISTING_DIRECTORY")
    return Candidate(name=name, kind=OURS, python=sys.executable, path=path)


def peer(text: str) -> Candidate:
    """Split "genai fp32=genai:PYTHON:PATH"."""
    name, _, rest = text.partition("=")
    kind, python, path = (*rest.split(":", 2), "", "")[:3]
    if kind not in KINDS or not Path(python).exists() or not Path(path).exists():
        raise argparse.ArgumentTypeError(
            f"{text!r} is not NAME=KIND:PYTHON:PATH with an existing interpreter and path; kinds: {KINDS}"
        )
    return Candidate(name=name, kind=kind, python=python, path=path)


def integers(text: str) -> tuple[int, ...]:
    """Split "1,2"."""
    return tuple(int(part) for part in text.split(","))


def measure(
    candidates: Sequence[Candidate], threads: int, rounds: int, figures: Sequence[Figure] = FIGURES
) -> Measured:
    """Open every candidate with this number of threads and let them take turns."""
    with workers(candidates, threads) as opened:
        load = {name: worker.ask(do="open")["seconds"] for name, worker in opened.items()}
        for figure in figures:  # warms up, and computes the prompts that decoding starts from
            for worker in opened.values():
                worker.ask(**figure.command)
        seconds: dict[tuple[str, str], list[float]] = {
            (name, figure.title): [] for name in opened for figure in figures
        }
        before = sum(worker.ask(do="usage")["cpu_seconds"] for worker in opened.values())
        meter, order = LoadMeter(), list(opened)
        for turn in range(rounds):
            print(f"{threads} threads, round {turn + 1} of {rounds}", file=sys.stderr)
            for figure in figures:
                for name in order:
                    seconds[name, figure.title].append(opened[name].ask(**figure.command)["seconds"])
            order.reverse()
        usage = {name: worker.ask(do="usage") for name, worker in opened.items()}
        own = sum(each["cpu_seconds"] for each in usage.values()) - before
        others = meter.other_cores(own)
    peaks = {name: each["peak_bytes"] for name, each in usage.items()}
    return Measured(threads=threads, seconds=seconds, load_s=load, peak_bytes=peaks, other_cores=others)


@contextlib.contextmanager
def workers(candidates: Sequence[Candidate], threads: int) -> Iterator[dict[str, Worker]]:
    """Start them, and end them whatever happens."""
    opened: dict[str, Worker] = {}
    try:
        for candidate in candidates:
            opened[candidate.name] = Worker(candidate, threads)
        yield opened
    finally:
        for worker in opened.values():
            worker.close()


def render(candidates: Sequence[Candidate], found: Sequence[Measured], rounds: int) -> str:
    """Write the tables in markdown, with the machine and what speaks against the figures."""
    cpu = machine.cpu()
    lines = [f"{cpu.model} ({', '.join(cpu.isa)}), {rounds} rounds.", ""]
    for measured in found:
        lines += [
            f"**{measured.threads} thread{'' if measured.threads == 1 else 's'}**, tokens/s",
            "",
            *speeds(candidates, measured),
            "",
            *ratios(candidates, measured),
            "",
        ]
        if measured.other_cores > BUSY_CORES:
            lines += [f"Other processes kept {measured.other_cores:.1f} cores busy meanwhile.", ""]
    lines += [
        f"Medians of the rounds; a round decodes {STEPS} tokens at each depth and computes a prompt of "
        f"{PREFILL}, greedily, batch 1. Loading holds no import; memory is the peak of the process.",
        "",
    ]
    return "\n".join(lines)


def speeds(candidates: Sequence[Candidate], measured: Measured) -> list[str]:
    """Tokens per second, load time and memory."""
    header = ["", *(figure.title for figure in FIGURES), "load, s", "peak memory, MB"]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for each in candidates:
        rates = [
            figure.tokens / statistics.median(measured.seconds[each.name, figure.title]) for figure in FIGURES
        ]
        cells = [each.name, *(f"{rate:.1f}" for rate in rates), f"{measured.load_s[each.name]:.1f}"]
        lines.append("| " + " | ".join([*cells, f"{measured.peak_bytes[each.name] / 1e6:.0f}"]) + " |")
    return lines


def ratios(candidates: Sequence[Candidate], measured: Measured) -> list[str]:
    """Each of our models over each peer."""
    header = ["speed over", *(figure.title for figure in FIGURES)]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    peers = [each for each in candidates if each.kind != OURS]
    for mine in (each for each in candidates if each.kind == OURS):
        for other in peers:
            cells = [over(measured, mine.name, other.name, figure.title) for figure in FIGURES]
            lines.append(f"| {mine.name} / {other.name} | " + " | ".join(cells) + " |")
    return lines if peers else []


def over(measured: Measured, mine: str, other: str, title: str) -> str:
    """The peer's time over ours: median of the rounds ± standard error."""
    theirs, own = ([[value * 1e3] for value in measured.seconds[name, title]] for name in (other, mine))
    found = ratio(other, mine, theirs, own)
    return f"{found.paired:.2f} ± {found.paired_error:.2f}"


if __name__ == "__main__":
    main()
