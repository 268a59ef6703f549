"""Raw tensors: any model, its inputs in, its outputs out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from onnxkit.errors import InputError
from onnxkit.inputs import Sample, place
from onnxkit.tasks.base import Array, Encoded, Feeds, Record, Task

if TYPE_CHECKING:
    from onnxkit.artifact import ModelDir


class Raw(Task):
    """Samples map the model's input names to arrays, batch axis included; a sample is run by itself.

    Records: `outputs`, {output name: array} with the dtypes of the model.
    """

    name = "raw"
    columns = ()
    outputs = ()
    window = 1
    batched = False
    keeps_dtypes = True

    def __init__(self, model: ModelDir) -> None:
        super().__init__(model)
        self.fetched = tuple(spec.name for spec in model.outputs)

    def encode(self, sample: Sample) -> Encoded:
        """Check names and dtypes of a sample's arrays.

        Raises:
            InputError: an input is missing or unknown, or has another dtype (the session checks shapes).
        """
        where = place(sample)
        unknown = [name for name in sample if name not in self.inputs]
        missing = [name for name in self.inputs if name not in sample]
        if unknown or missing:
            wrong = f"has no {', '.join(missing)}" if missing else f"has {', '.join(map(str, unknown))}"
            raise InputError(f"{where}: {wrong}; the model's inputs are {', '.join(self.inputs)}")
        arrays = {name: np.asarray(sample[name]) for name in self.inputs}
        for name, array in arrays.items():
            if array.dtype.name != self.inputs[name].dtype:
                raise InputError(
                    f"{where}: {name} is {array.dtype.name}; the model takes {self.inputs[name].dtype}"
                )
        return Encoded(features=arrays, length=1, where=where)

    def collate(self, rows: Sequence[Encoded]) -> Feeds:
        """Return the one row's arrays."""
        return dict(rows[0].features)

    def decode(self, outputs: Mapping[str, Array], rows: Sequence[Encoded]) -> list[Record]:
        """Return the outputs as they are."""
        return [{"outputs": dict(outputs)}]
