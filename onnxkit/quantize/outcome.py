"""What a call has written, before it is measured."""

from __future__ import annotations

import dataclasses

from onnxkit.quantize.report import Calibration, KeptLayer
from onnxkit.quantize.search.decide import Decision
from onnxkit.quantize.yardstick import Yardstick


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was written, and what it is measured on.

    Attributes:
        decision: a format for each layer, and how it was found.
        yardstick: of the search and of the report.
        calibration: what was learned from samples.
        converted: nodes that compute in half precision now; None where the scheme is another.
        kept: nodes that do not.
    """

    decision: Decision
    yardstick: Yardstick
    calibration: Calibration | None
    converted: int | None = None
    kept: tuple[KeptLayer, ...] = ()
