"""Labels: names and ids, and what a sample says the right answer is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxkit.errors import InputError
from onnxkit.inputs import Sample, place
from onnxkit.tasks.base import Record


class Labels:
    """A classifier's labels, from `id2label` of config.json; LABEL_0, LABEL_1, … where it has none."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        names = config.get("id2label")
        self._names = {int(key): str(name) for key, name in names.items()} if isinstance(names, dict) else {}
        self._ids = {name: key for key, name in self._names.items()}

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """Return the name of a label id."""
        return self._names.get(index, f"LABEL_{index}")

    def id_of(self, value: Any) -> int | None:
        """Return the id that a sample's label means: a name first, else an id; None for neither."""
        if isinstance(value, str):
            if value in self._ids:
                return self._ids[value]
            value = value.strip().removeprefix("LABEL_")
            return int(value) if value.isascii() and value.isdigit() else None
        return int(value) if isinstance(value, int | np.integer) or _whole(value) else None


def expected(sample: Sample) -> Any:
    """Return what a sample says the answer is (`label`, `labels` or `target`), None where it does not."""
    for column in ("label", "labels", "target"):
        if sample.get(column) is not None:
            return sample[column]
    return None


def label_id(sample: Sample, labels: Labels) -> int:
    """Return the id of a sample's label.

    Raises:
        InputError: the sample's label is none of the model's.
    """
    value = expected(sample)
    found = labels.id_of(value)
    if found is None:
        raise InputError(f"{place(sample)}: {value!r} is no label of the model (names or ids of id2label)")
    return found


def labelled(records: Sequence[Record], samples: Sequence[Sample]) -> list[tuple[Record, Sample]]:
    """Return the (record, sample) pairs whose sample says what is right."""
    return [pair for pair in zip(records, samples, strict=True) if expected(pair[1]) is not None]


def as_number(value: Any, sample: Sample) -> float:
    """Return a label as a number; raises InputError that names the sample's place otherwise."""
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"{place(sample)}: the label must be a number here, not {value!r}") from error


def _whole(value: Any) -> bool:
    return isinstance(value, float | np.floating) and float(value).is_integer()
