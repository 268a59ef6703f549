"""Activations as unsigned bytes, written into the graph once for all the nodes that read a value.

Unsigned always: signed activations run a reference kernel on AVX2, five times slower.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxkit.errors import InputError
from onnxkit.quantize.weights import register


@dataclasses.dataclass(frozen=True, kw_only=True)
class Range:
    """The interval that an activation is clipped to."""

    low: float
    high: float

    @property
    def empty(self) -> bool:
        """Whether nothing but zero was seen."""
        return self.low == 0.0 == self.high

    def parameters(self) -> tuple[np.float32, np.uint8]:
        """Scale and zero point of u8 codes: zero is exact, so the interval is widened to hold it.

        scale = (high - low) / 255, zero point = round(-low / scale) (ONNX QuantizeLinear).
        """
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        scale = np.float32((high - low) / 255.0)
        if scale < np.finfo(np.float32).tiny:
            return np.float32(1.0), np.uint8(0)
        return scale, np.uint8(np.clip(np.rint(-low / scale), 0, 255))


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizedActivation:
    """The three values that an integer operator reads: codes (u8), scale (float), zero point (u8)."""

    codes: ir.Value
    scale: ir.Value
    zero_point: ir.Value


class Activations(ABC):
    """Quantizes values of one graph; a value that several nodes read is quantized once."""

    def __init__(self) -> None:
        self._made: dict[ir.Value, QuantizedActivation] = {}

    def quantized(
        self, value: ir.Value, *, before: ir.Node, layer: str, graph: ir.Graph
    ) -> QuantizedActivation:
        """Return the codes of `value`. Targets are rewritten in graph order, so the first reader inserts."""
        if value not in self._made:
            self._made[value] = self._make(value, before=before, layer=layer, graph=graph)
        return self._made[value]

    @abstractmethod
    def _make(self, value: ir.Value, *, before: ir.Node, layer: str, graph: ir.Graph) -> QuantizedActivation:
        """Insert what computes the codes before the node."""


class DynamicActivations(Activations):
    """The range of each run: `DynamicQuantizeLinear`."""

    def _make(self, value: ir.Value, *, before: ir.Node, layer: str, graph: ir.Graph) -> QuantizedActivation:
        name = f"{layer}/quantize_input"
        made = ir.node("DynamicQuantizeLinear", [value], num_outputs=3, name=name)
        graph.insert_before(before, made)
        for output, part in zip(made.outputs, ("codes", "scale", "zero_point"), strict=True):
            output.name = f"{name}:{part}"
        codes, scale, zero_point = made.outputs
        return QuantizedActivation(codes=codes, scale=scale, zero_point=zero_point)


class StaticActivations(Activations):
    """Ranges from calibration: `QuantizeLinear` with constants."""

    def __init__(self, ranges: Mapping[str, Range]) -> None:
        super().__init__()
        self._ranges = ranges

    def constants(self, value: ir.Value, *, layer: str, graph: ir.Graph) -> tuple[ir.Value, ir.Value]:
        """Scale and zero point of a calibrated value, as initializers.

        Raises:
            InputError: the range is not finite; names the layer.
        """
        scale, zero = self._ranges[str(value.name)].parameters()
        if not np.isfinite(scale):
            raise InputError(
                f"the calibrated range of '{value.name}' (input of layer '{layer}') is not finite"
            )
        return tuple(  # type: ignore[return-value]
            register(graph, f"{value.name}.{part}", ir.Tensor(array))
            for part, array in (("scale", np.asarray(scale)), ("zero_point", np.asarray(zero)))
        )

    def _make(self, value: ir.Value, *, before: ir.Node, layer: str, graph: ir.Graph) -> QuantizedActivation:
        scale, zero_point = self.constants(value, layer=layer, graph=graph)
        made = ir.node("QuantizeLinear", [value, scale, zero_point], name=f"{layer}/quantize_input")
        graph.insert_before(before, made)
        made.outputs[0].name = f"{layer}/quantize_input:codes"
        return QuantizedActivation(codes=made.outputs[0], scale=scale, zero_point=zero_point)
