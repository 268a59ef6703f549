"""The portable dialect: semantic operators written out as opset 18 primitives, each set a region.

Runs everywhere, quantizes with stock tools, and keeps in its metadata what every set of nodes means.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxkit.graph import portable_attention, portable_experts, portable_rotary, semantic, standard
from onnxkit.graph.edit import Editor, Writer
from onnxkit.graph.names import module_path
from onnxkit.graph.portable_attention import SWAP, required
from onnxkit.graph.regions import Region


def lower(model: ir.Model, *, prefix: str = "", opset: int = 18) -> list[Region]:
    """Write every semantic operator out, and return the regions that came of it.

    Their nodes are annotated later, when values have their final names. `prefix` is what stands
    before every module path. From opset 23 on a decoder's attentions, rotations and norms are standard
    operators; an encoder's stay primitives, which every quantizer takes.

    Raises:
        ValueError: an operator whose shapes the trace did not leave on its values.
    """
    cached = any(node.op_type == semantic.CACHED_ATTENTION for node in model.graph)
    return _Lowering(model, prefix, standard=cached and opset >= standard.OPSET).run()


_LOWEST = {ir.DataType.FLOAT16: -32752.0, ir.DataType.BFLOAT16: -1.7e38}


def lowest(dtype: ir.DataType) -> float:
    """What a masked score gets added: large enough that its softmax is zero.

    The smallest float32, as PyTorch's eager attention has it; half the smallest value of the 16-bit
    types, so that neither rounding it nor adding a score to it gives -inf (a row of which would be NaN).
    """
    return _LOWEST.get(dtype, float(np.finfo(np.float32).min))


class _Lowering:
    def __init__(self, model: ir.Model, prefix: str, *, standard: bool) -> None:
        self.model, self.prefix, self.standard = model, prefix, standard
        self.editor = Editor(model.graph)
        self.regions: list[Region] = []
        self.additive: dict[ir.Value, ir.Value] = {}
        self._ids: set[str] = set()

    def run(self) -> list[Region]:
        portable_rotary.widen(self.model.graph)
        writers = {
            semantic.MASK: self._mask,
            semantic.ROTARY: self._rotary,
            semantic.RMS_NORM: self._rms_norm,
            semantic.ATTENTION: self._attention,
            semantic.CACHED_ATTENTION: self._attention,
            semantic.GELU: self._gelu,
            semantic.EXPERT_MATMUL: self._expert_matmul,
            semantic.LAST_ROWS: self._last_rows,
        }  # in this order: an attention reads what masks and rotations have become
        for op, write in writers.items():
            for node in list(self.model.graph):
                if node.domain == semantic.DOMAIN and node.op_type == op:
                    write(node)
        self.regions = [self._settled(region) for region in self.regions]
        self._drop_semantic_nodes()
        order = {node: position for position, node in enumerate(self.model.graph)}
        return sorted(self.regions, key=lambda region: order[region.nodes[0]])

    def _settled(self, region: Region) -> Region:
        """The region with its inputs as they stand now: a norm before a rotation was written out after it."""
        current = self.editor.current
        inputs = {role: current(v) if v is not None else None for role, v in region.inputs.items()}
        return dataclasses.replace(region, inputs=inputs)

    def _drop_semantic_nodes(self) -> None:
        for node in reversed(list(self.model.graph)):
            if node.domain == semantic.DOMAIN:
                self.model.graph.remove(node, safe=True)

    def _record(
        self,
        op: str,
        part: Writer,
        attrs: Mapping[str, Any],
        inputs: Mapping[str, ir.Value | None],
        outputs: Mapping[str, ir.Value],
    ) -> None:
        name = base = f"{module_path(part.at, self.prefix)}#{op}"
        number = 1
        while name in self._ids:
            number += 1
            name = f"{base}_{number}"
        self._ids.add(name)
        nodes = tuple(part.nodes)
        self.regions.append(Region(id=name, op=op, attrs=attrs, inputs=inputs, outputs=outputs, nodes=nodes))

    def _gelu(self, node: ir.Node) -> None:
        part, x = Writer(self.editor, node), required(node, 0)
        dtype = x.dtype or ir.DataType.FLOAT
        approximate = node.attributes["approximate"].as_string()
        out = _tanh_gelu(part, x, dtype) if approximate == "tanh" else _erf_gelu(part, x, dtype)
        self._record("gelu", part, {"approximate": approximate}, {"x": x}, {"out": out})
        self.editor.replace(node.outputs[0], out)

    def _mask(self, node: ir.Node) -> None:
        padding = node.inputs[0] if node.inputs else None
        causal, window = node.attributes["causal"].as_int(), node.attributes["window"].as_int()
        part = Writer(self.editor, node)
        allowed = _allowed(part, node, padding, bool(causal), window)
        users = [use.node for use in node.outputs[0].uses()]
        dtypes = [
            u.inputs[0].dtype for u in users if u.op_type in semantic.ATTENTIONS and u.inputs[0] is not None
        ]
        dtype = next((d for d in dtypes if d is not None), ir.DataType.FLOAT)
        zero, low = part.scalar(0.0, dtype), part.scalar(lowest(dtype), dtype)
        bias = part("Where", allowed, zero, low, shape=node.outputs[0].shape, dtype=dtype)
        attrs = {"causal": bool(causal), "window": window}
        inputs = {"padding": padding}
        if causal or window:
            inputs |= {"queries": node.inputs[2], "keys": node.inputs[3]}
        self._record("mask", part, attrs, inputs, {"out": bias})
        self.additive[node.outputs[0]] = bias
        for use in list(node.outputs[0].uses()):
            if use.node.domain != semantic.DOMAIN:
                use.node.replace_input_with(use.idx, allowed)

    def _rotary(self, node: ir.Node) -> None:
        part = Writer(self.editor, node)
        written = portable_rotary.write(part, node, standard=self.standard)
        self._record("rotary", part, written.attrs, written.inputs, {"out": written.out})
        self.editor.replace(node.outputs[0], portable_rotary.per_head(self.editor, node, written))

    def _rms_norm(self, node: ir.Node) -> None:
        part, x = Writer(self.editor, node), required(node, 0)
        epsilon, offset = (node.attributes[name].as_float() for name in ("epsilon", "offset"))
        weight = shifted_weight(required(node, 1), offset) if offset else required(node, 1)
        out = standard.write_norm(part, x, weight, epsilon) if self.standard else None
        out = _normed(part, x, weight, epsilon) if out is None else out
        self._record("rms_norm", part, {"epsilon": epsilon}, {"x": x, "weight": weight}, {"out": out})
        self.editor.replace(node.outputs[0], out)

    def _expert_matmul(self, node: ir.Node) -> None:
        self.editor.replace(node.outputs[0], portable_experts.write(Writer(self.editor, node), node))

    def _last_rows(self, node: ir.Node) -> None:
        part, x = Writer(self.editor, node), required(node, 0)
        start = part("Unsqueeze", part("Neg", required(node, 1)), part.ints(0))
        out = part("Slice", x, start, part.ints(np.iinfo(np.int64).max), part.ints(1), dtype=x.dtype)
        self.editor.replace(node.outputs[0], out)

    def _attention(self, node: ir.Node) -> None:
        extra = self._laid_over(node)
        part = Writer(self.editor, node)
        written = portable_attention.write(part, node, extra, standard=self.standard)
        self._record("attention", part, written.attrs, written.inputs, written.outputs)
        out, *present = written.outputs.values()
        for old, new in zip(node.outputs[1:], present, strict=True):
            self.editor.replace(old, new)
        sizes = portable_attention.sizes_of(node)
        self._hand_over(node, out, written.attrs["layout"] != "bhsd", sizes.heads, sizes.v_size)

    def _laid_over(self, node: ir.Node) -> dict[str, ir.Value]:
        """Mask, bias and sinks by role; a boolean mask of the model's own making becomes additive here."""
        first = 5 if node.op_type == semantic.CACHED_ATTENTION else 3
        q, (mask, bias, sinks) = node.inputs[0], [*node.inputs[first:], None, None, None][:3]
        found: dict[str, ir.Value] = {}
        if mask is not None and mask in self.additive:
            found["mask"] = self.additive[mask]
        elif mask is not None:
            part = Writer(self.editor, node)
            dtype = (q.dtype if q is not None else None) or ir.DataType.FLOAT
            zero, low = part.scalar(0.0, dtype), part.scalar(lowest(dtype), dtype)
            found["mask"] = part("Where", mask, zero, low, shape=mask.shape, dtype=dtype)
        return found | {role: x for role, x in (("bias", bias), ("sinks", sinks)) if x is not None}

    def _hand_over(self, node: ir.Node, out: ir.Value, dense: bool, heads: int, size: int) -> None:
        """Let the users of the semantic `[B,S,H,D]` read the region's output."""
        old = node.outputs[0]
        outside = Writer(self.editor, node)
        if not dense:
            self.editor.replace(old, outside("Transpose", out, perm=SWAP))
            return
        for user in [use.node for use in old.uses()]:
            merged = user.outputs[0].shape if user.op_type == "Reshape" else None
            if merged is not None and len(merged) == 3 and merged[2] == heads * size:
                self.editor.replace(user.outputs[0], out)
                self.model.graph.remove(user, safe=True)
        if old.uses() or old.is_graph_output():
            self.editor.replace(old, outside("Reshape", out, outside.ints(0, 0, heads, size)))


def _allowed(part: Writer, node: ir.Node, padding: ir.Value | None, causal: bool, window: int) -> ir.Value:
    """Bool `[B|1,1,1|S,T]`: True where a query may look."""
    allowed: ir.Value | None = None
    if padding is not None:
        sizes = list(padding.shape) if padding.shape is not None else [None, None]
        shape = [sizes[0], 1, 1, sizes[1]]
        allowed = part("Unsqueeze", padding, part.ints(1, 2), shape=shape, dtype=ir.DataType.BOOL)
    if not causal and not window:
        if allowed is None:
            raise ValueError("a mask of nothing")
        return allowed
    near = part(
        "Unsqueeze", _band(part, required(node, 2), required(node, 3), causal, window), part.ints(0, 1)
    )
    return near if allowed is None else part("And", allowed, near, dtype=ir.DataType.BOOL)


def _band(part: Writer, queries: ir.Value, keys: ir.Value, causal: bool, window: int) -> ir.Value:
    """Bool `[S,T]`. A causal window reaches window - 1 back, a bidirectional one `window` both ways."""
    zero, one = (part.editor.constant(np.array(i, dtype=np.int64)) for i in (0, 1))
    key = part("Range", zero, keys, one, dtype=ir.DataType.INT64)
    first = zero if queries is keys else part("Sub", keys, queries, dtype=ir.DataType.INT64)
    query = part("Unsqueeze", part("Range", first, keys, one, dtype=ir.DataType.INT64), part.ints(1))
    limit = part.editor.constant(np.array(window, dtype=np.int64))
    if not causal:
        return part("LessOrEqual", part("Abs", part("Sub", key, query)), limit)
    past = part("LessOrEqual", key, query)
    return part("And", past, part("Greater", key, part("Sub", query, limit))) if window else past


def shifted_weight(weight: ir.Value, offset: float) -> ir.Value:
    """An initializer that holds weight + offset in float32, computed when it is read.

    In 16 bits a weight close to zero would lose most of its digits beside a one.
    """
    tensor, graph = weight.const_value, weight.graph
    if tensor is None or graph is None or weight.name is None:
        raise ValueError(f"{weight.name}: the weight of a norm is computed in the graph")
    name = f"{weight.name}_plus_{offset:g}"
    if name not in graph.initializers:
        content = ir.LazyTensor(
            _shifted(tensor, offset, name), dtype=ir.DataType.FLOAT, shape=ir.Shape(tensor.shape.numpy()),
            name=name,
        )  # fmt: skip
        value = ir.Value(name=name, shape=content.shape, const_value=content)
        value.dtype = ir.DataType.FLOAT
        graph.register_initializer(value)
    return graph.initializers[name]


def _shifted(tensor: ir.TensorProtocol, offset: float, name: str) -> Callable[[], ir.TensorProtocol]:
    def read() -> ir.TensorProtocol:
        return ir.tensor(tensor.numpy().astype(np.float32) + np.float32(offset), name=name)

    return read


def _normed(part: Writer, x: ir.Value, weight: ir.Value, epsilon: float) -> ir.Value:
    """x / √(mean(x²) + ε) · weight, in float32 up to the weight, which has x's type or float32."""
    float32 = ir.DataType.FLOAT
    dtype = x.dtype or float32
    exact = x if dtype == float32 else part("Cast", x, to=int(float32), dtype=float32)
    square = part("Pow", exact, part.scalar(2.0, float32), dtype=float32)
    mean = part("ReduceMean", square, part.ints(-1), keepdims=1, dtype=float32)
    root = part("Sqrt", part("Add", mean, part.scalar(epsilon, float32)), dtype=float32)
    normed = part("Div", exact, root, shape=x.shape, dtype=float32)
    if dtype != float32 and weight.dtype != float32:
        normed = part("Cast", normed, to=int(dtype), shape=x.shape, dtype=dtype)
    scaled = part("Mul", weight, normed, shape=x.shape, dtype=weight.dtype)
    if dtype != weight.dtype:
        scaled = part("Cast", scaled, to=int(dtype), shape=x.shape, dtype=dtype)
    return scaled


def _erf_gelu(part: Writer, x: ir.Value, dtype: ir.DataType) -> ir.Value:
    """x·½·(1 + erf(x/√2))."""
    erf = part("Erf", part("Div", x, part.scalar(math.sqrt(2.0), dtype)))
    product = part("Mul", x, part("Add", erf, part.scalar(1.0, dtype)))
    return part("Mul", product, part.scalar(0.5, dtype), shape=x.shape, dtype=dtype)


def _tanh_gelu(part: Writer, x: ir.Value, dtype: ir.DataType) -> ir.Value:
    """x·½·(1 + tanh(√(2/π)·(x + 0.044715·x³)))."""
    cube = part("Mul", part("Mul", x, x), x)
    inner = part("Add", x, part("Mul", cube, part.scalar(0.044715, dtype)))
    tanh = part("Tanh", part("Mul", inner, part.scalar(math.sqrt(2 / math.pi), dtype)))
    half = part("Mul", x, part.scalar(0.5, dtype))
    return part("Mul", half, part("Add", tanh, part.scalar(1.0, dtype)), shape=x.shape, dtype=dtype)
