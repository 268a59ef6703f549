"""Logarithmic weights, decoded in the graph by standard operators of opset 13.

A byte of codes is a row number in a table of what it stands for (`logarithm.byte_values`); what is looked up
is multiplied by the block's scale. A lookup decodes the rows that it reads. Everything else keeps its
float operator, whose weight ONNX Runtime decodes once, when it loads the file (constant folding): the file
is small, the memory and the time are those of floats.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxkit.errors import InputError
from onnxkit.graph.edit import stored_sizes
from onnxkit.quantize.codes.logarithm import LogCodes, byte_values, check, quantize
from onnxkit.quantize.codes.weights import register
from onnxkit.quantize.formats import LogFormat
from onnxkit.quantize.operators.base import Rewriting, Target, array, node

_WEIGHT = 1  # the weight's place among the inputs of products, convolutions and packed attention


class LogStore:
    """Makes the codes of one graph and what decodes them; a weight that two nodes read is stored once."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._coded: dict[tuple[str, int, LogFormat], tuple[ir.Value, ir.Value]] = {}
        self._decoded: dict[tuple[str, int, LogFormat, bool], ir.Value] = {}
        self._constants: dict[str, ir.Value] = {}

    def write(self, target: Target, fmt: LogFormat, context: Rewriting) -> None:
        """Let the target read its weight decoded from codes in `fmt`.

        Raises:
            InputError: a weight is NaN, infinite or past float16.
        """
        if target.kind == "embedding":
            nodes = self._lookup(target, fmt)
            context.replace(target.node, target.node.outputs[0], nodes, nodes[-1].outputs[0])
            return
        direct = target.node.inputs[_WEIGHT] is target.weight
        turned = target.channel_axis == 1 if direct else target.channel_axis == 0
        target.node.replace_input_with(_WEIGHT, self._matrix(target, fmt, turned=turned))

    def _matrix(self, target: Target, fmt: LogFormat, *, turned: bool) -> ir.Value:
        """The decoded weight: `[N, ...]`, or `[K, N]` when `turned`; made before every other node."""
        key = (str(target.weight.name), target.channel_axis, fmt, turned)
        if key not in self._decoded:
            codes, scales = self._codes(target, fmt)
            name, shape = f"{target.name}/decode", _by_channel(target)
            nodes = self._decode(codes, scales, fmt, name)
            nodes += self._cut(nodes[-1].outputs[0], shape, fmt, name)
            if turned:
                turn = node("Transpose", [nodes[-1].outputs[0]], f"{name}/turn", attributes={"perm": [1, 0]})
                nodes.append(turn)
            self._graph.insert_before(self._graph[0], nodes)
            self._decoded[key] = nodes[-1].outputs[0]
        return self._decoded[key]

    def _cut(self, values: ir.Value, shape: tuple[int, ...], fmt: LogFormat, name: str) -> list[ir.Node]:
        """Whole blocks become a weight: what fills the last block goes."""
        channels, depth = shape[0], math.prod(shape[1:])
        whole = -(-depth // fmt.size) * fmt.size
        if whole == depth:
            return [node("Reshape", [values, self._ints(*shape)], f"{name}/shape")]
        rows = node("Reshape", [values, self._ints(channels, whole)], f"{name}/rows")
        cut = self._slice(rows.outputs[0], depth, axis=1, name=name)
        return [rows, cut, node("Reshape", [cut.outputs[0], self._ints(*shape)], f"{name}/shape")]

    def _lookup(self, target: Target, fmt: LogFormat) -> list[ir.Node]:
        """Look codes and scales up, decode them, join the blocks of each row."""
        name, ids = target.name, target.node.inputs[1]
        codes, scales = self._codes(target, fmt)
        rows = node("Gather", [codes, ids], f"{name}/codes")
        scale = node("Gather", [scales, ids], f"{name}/scales")
        depth = _by_channel(target)[1]
        whole = -(-depth // fmt.size) * fmt.size
        decoded = self._decode(rows.outputs[0], scale.outputs[0], fmt, name)
        shape = node("Shape", [ids], f"{name}/ids_shape")
        sizes = node("Concat", [shape.outputs[0], self._ints(whole)], f"{name}/sizes", attributes={"axis": 0})
        joined = node("Reshape", [decoded[-1].outputs[0], sizes.outputs[0]], f"{name}/join")
        made = [rows, scale, *decoded, shape, sizes, joined]
        return made if whole == depth else [*made, self._slice(joined.outputs[0], depth, axis=-1, name=name)]

    def _decode(self, codes: ir.Value, scales: ir.Value, fmt: LogFormat, name: str) -> list[ir.Node]:
        """uint8 `[..., bytes]` and float16 `[..., 1, 1]` become float32 `[..., bytes, codes a byte]`."""
        table = self._constant(f"onnxkit.log{fmt.bits}.values", byte_values(fmt.bits))
        index = node("Cast", [codes], f"{name}/index", attributes={"to": ir.DataType.INT32.value})
        found = node("Gather", [table, index.outputs[0]], f"{name}/values")
        wide = node("Cast", [scales], f"{name}/widen", attributes={"to": ir.DataType.FLOAT.value})
        return [index, found, wide, node("Mul", [found.outputs[0], wide.outputs[0]], f"{name}/scale")]

    def _codes(self, target: Target, fmt: LogFormat) -> tuple[ir.Value, ir.Value]:
        """uint8 `[N, blocks, bytes]` and float16 `[N, blocks, 1, 1]`, computed when the file is written."""
        key = (str(target.weight.name), target.channel_axis, fmt)
        if key not in self._coded:
            coding = _Coding(target, fmt)
            name = f"{target.weight.name}.log{fmt.bits}"
            channels, blocks = _by_channel(target)[0], -(-math.prod(_by_channel(target)[1:]) // fmt.size)
            self._coded[key] = (
                register(
                    self._graph, name,
                    _lazy(lambda: coding.codes.packed, (channels, blocks, fmt.size * fmt.bits // 8)),
                ),
                register(
                    self._graph, f"{name}.scale",
                    _lazy(lambda: coding.codes.scales[..., None, None], (channels, blocks, 1, 1)),
                ),
            )  # fmt: skip
        return self._coded[key]

    def _slice(self, value: ir.Value, end: int, *, axis: int, name: str) -> ir.Node:
        return node("Slice", [value, self._ints(0), self._ints(end), self._ints(axis)], f"{name}/cut")

    def _ints(self, *content: int) -> ir.Value:
        return self._constant("onnxkit.int64." + "_".join(map(str, content)), np.array(content, np.int64))

    def _constant(self, name: str, content: np.ndarray[Any, Any]) -> ir.Value:
        if name not in self._constants:
            self._constants[name] = register(self._graph, name, ir.tensor(content))
        return self._constants[name]


class _Coding:
    """Codes one weight when the file is written: the codes of a model are never all in memory before."""

    def __init__(self, target: Target, fmt: LogFormat) -> None:
        self._weight, self._turned = target.weight, target.channel_axis == 1
        self._shape, self._format = _by_channel(target), fmt
        try:
            check(array(self._weight))
        except ValueError as error:
            message = f"cannot quantize layer '{target.name}': {error} (tensor '{self._weight.name}')"
            raise InputError(message) from error

    @cached_property
    def codes(self) -> LogCodes:
        weight = array(self._weight)
        rows = weight.T if self._turned else weight.reshape(self._shape[0], -1)
        return quantize(rows, self._format.bits, self._format.size)


def _by_channel(target: Target) -> tuple[int, ...]:
    """The weight's shape with its channels first."""
    shape = stored_sizes(target.weight)
    return shape if target.channel_axis == 0 else shape[::-1]


def _lazy(make: Callable[[], np.ndarray[Any, Any]], shape: tuple[int, ...]) -> ir.LazyTensor:
    kind = ir.DataType.UINT8 if len(shape) == 3 else ir.DataType.FLOAT16
    return ir.LazyTensor(lambda: ir.tensor(make()), dtype=kind, shape=ir.Shape(shape))


__all__ = ["LogStore"]
