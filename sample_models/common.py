"""What the four training scripts share: splitting, batching, the training loop and the model card."""

from __future__ import annotations

import hashlib
import json
import random
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel, TokenizersBackend, get_cosine_schedule_with_warmup

Row = dict[str, str]
Side = Literal["train", "calibration", "evaluation"]
ROOT = Path(__file__).parent
SEED = 20240229
THREADS = 2
LOG_EVERY = 200


class Splits(NamedTuple):
    """The three disjoint sets of one model."""

    train: list[Row]
    calibration: list[Row]
    evaluation: list[Row]


@dataclass(frozen=True)
class Result:
    """What one training run measured; stored as ``metrics.json`` and shown on the model card."""

    metric: str
    value: float
    samples: int
    parameters: int
    training_samples: int
    training_seconds: float


@dataclass(frozen=True)
class Card:
    """The prose of a model card; the numbers come from a :class:`Result`."""

    name: str
    summary: str
    pipeline_tag: str
    licence: str
    languages: Sequence[str]
    data: str
    architecture: str
    training: str
    limits: str


class Sample(Protocol):
    """What each model's module offers; a module satisfies it."""

    CARD: Card

    def splits(self) -> Splits:
        """Return the data sets, the same ones on every call."""

    def train(self, directory: Path, splits: Splits) -> Result:
        """Train, measure and store the model in ``directory``."""

    def evaluate(self, directory: Path, rows: Sequence[Row]) -> float:
        """Measure the stored model on ``rows``."""


def side(key: str | bytes, calibration: float, evaluation: float) -> Side:
    """Assign ``key`` to a set by its hash alone.

    A hash, not a shuffled list, so that a key stays on its side when the package that the data
    comes from gains or loses other entries.
    """
    digest = hashlib.sha256(key.encode() if isinstance(key, str) else key).digest()
    fraction = int.from_bytes(digest[:8], "big") / 2**64
    if fraction < evaluation:
        return "evaluation"
    return "calibration" if fraction < evaluation + calibration else "train"


def seed_everything() -> None:
    """Make a run repeatable, and as wide as the machine that the time budget is meant for."""
    random.seed(SEED)
    torch.manual_seed(SEED)
    torch.set_num_threads(THREADS)


def batches(rows: Sequence[Row], size: int, key: Callable[[Row], int] | None = None) -> Iterator[list[Row]]:
    """Yield shuffled batches for ever; with ``key``, of rows of similar length, to save padding."""
    rng = random.Random(SEED)
    while True:
        order = rng.sample(rows, len(rows))
        for start in range(0, len(order) - size + 1, 64 * size):
            pool = order[start : start + 64 * size]
            if key is not None:
                pool.sort(key=key)
            cuts = list(range(0, len(pool) - size + 1, size))
            rng.shuffle(cuts)
            yield from (pool[cut : cut + size] for cut in cuts)


def fit(model: PreTrainedModel, data: Iterator[Mapping[str, Tensor]], steps: int, rate: float) -> float:
    """Train ``model`` by AdamW under a cosine schedule with warm-up; return the seconds it took."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01, fused=True)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    started, running = time.perf_counter(), 0.0
    model.train()
    for step in range(1, steps + 1):
        loss = model(**next(data)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        running += loss.item()
        if step % LOG_EVERY == 0:
            spent = time.perf_counter() - started
            print(f"  step {step}/{steps}  loss {running / LOG_EVERY:.4f}  {spent:.0f} s", flush=True)
            running = 0.0
    return time.perf_counter() - started


def chunks(rows: Sequence[Row], size: int = 64) -> Iterator[Sequence[Row]]:
    """Cut ``rows`` into consecutive batches, in order and complete, as evaluation wants them."""
    return (rows[start : start + size] for start in range(0, len(rows), size))


def parameters(model: PreTrainedModel) -> int:
    """Count the parameters of ``model``, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def write_jsonl(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    """Write one JSON object a line, in readable UTF-8."""
    lines = (json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def read_jsonl(path: Path) -> list[Row]:
    """Read what :func:`write_jsonl` wrote."""
    # Not str.splitlines: it would also split at the line separators that JSON leaves inside strings.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def store(directory: Path, model: PreTrainedModel, tokenizer: TokenizersBackend) -> None:
    """Store the model and its tokenizer, the latter without the padding that it was last used with."""
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.save_pretrained(directory)
    model.save_pretrained(directory)


def write_sets(directory: Path, splits: Splits) -> None:
    """Store the calibration and the evaluation set beside the model."""
    write_jsonl(directory / "calibration.jsonl", splits.calibration)
    write_jsonl(directory / "evaluation.jsonl", splits.evaluation)


def conclude(
    directory: Path,
    model: PreTrainedModel,
    splits: Splits,
    card: Card,
    *,
    metric: str,
    evaluate: Callable[[Path, Sequence[Row]], float],
    seconds: float,
) -> Result:
    """Store the sets beside the trained model, measure it on the evaluation set, and write its card."""
    write_sets(directory, splits)
    value = evaluate(directory, splits.evaluation)
    result = Result(
        metric, value, len(splits.evaluation), parameters(model), len(splits.train), round(seconds, 1)
    )
    write_card(directory, card, result)
    return result


def write_card(directory: Path, card: Card, result: Result) -> None:
    """Write ``metrics.json`` and the model card ``README.md`` from what was measured."""
    (directory / "metrics.json").write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")
    header = {"license": card.licence, "pipeline_tag": card.pipeline_tag, "library_name": "transformers"}
    front = [f"{key}: {value}" for key, value in header.items()]
    if card.languages:
        front += ["language:", *(f"- '{language}'" for language in card.languages)]
    size = f"{result.parameters:,} parameters, stored as fp32 safetensors."
    cost = f"""Trained on {result.training_samples:,} samples in {result.training_seconds:.0f} seconds on
        {THREADS} CPU threads, seed {SEED}. `python -m sample_models.train {card.name}` does it again and
        rewrites this file."""
    table = [
        "| metric | value | evaluation samples |",
        "| --- | --- | --- |",
        f"| {result.metric} | {result.value:.4f} | {result.samples} |",
    ]
    blocks = [
        "\n".join(["---", *front, "---"]),
        f"# {card.name}",
        _filled(card.summary),
        "\n".join(table),
        *("## Data", _filled(card.data)),
        *("## Architecture", _filled(f"{card.architecture} {size}")),
        *("## Training", _filled(f"{card.training} {cost}")),
        *("## Limits", _filled(card.limits)),
    ]
    (directory / "README.md").write_text("\n\n".join(blocks) + "\n", encoding="utf-8")


def write_overview(cards: Iterable[Card]) -> None:
    """Write ``sample_models/README.md`` from the models that are there."""
    rows = []
    for card in cards:
        path = ROOT / card.name / "metrics.json"
        if not path.exists():
            continue
        result = Result(**json.loads(path.read_text(encoding="utf-8")))
        size = sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file()) / 1e6
        rows.append(
            f"| [{card.name}]({card.name}/) | {card.pipeline_tag} | {result.metric} {result.value:.4f} "
            f"| {result.samples} | {result.parameters:,} | {size:.1f} MB | {result.training_seconds:.0f} s |"
        )
    text = (ROOT / "overview.md").read_text(encoding="utf-8")
    (ROOT / "README.md").write_text(text.replace("{table}", "\n".join(rows)), encoding="utf-8")


def _filled(text: str) -> str:
    """Wrap a paragraph of a card, whatever way its source is broken."""
    return textwrap.fill(" ".join(text.split()), 110, break_long_words=False, break_on_hyphens=False)
