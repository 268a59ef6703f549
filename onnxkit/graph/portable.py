"""The portable dialect: semantic operators written out as opset 18 primitives, each set a region.

Runs everywhere, quantizes with stock tools, and keeps in its metadata what every set of nodes means.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxkit.graph import semantic
from onnxkit.graph.edit import Editor, permutation, producer
from onnxkit.graph.names import module_path
from onnxkit.graph.regions import Region

_SWAP = [0, 2, 1, 3]
_DIALECT_NODES = (semantic.MASK, semantic.ROTARY, semantic.ATTENTION, semantic.GELU)


def lower(model: ir.Model, *, prefix: str = "") -> list[Region]:
    """Write every semantic operator out, and return the regions that came of it.

    Their nodes are annotated later, when values have their final names. `prefix` is what stands
    before every module path.

    Raises:
        ValueError: an operator whose shapes the trace did not leave on its values.
    """
    return _Lowering(model, prefix).run()


_LOWEST = {ir.DataType.FLOAT16: -32752.0, ir.DataType.BFLOAT16: -1.7e38}


def lowest(dtype: ir.DataType) -> float:
    """What a masked score gets added: large enough that its softmax is zero.

    The smallest float32, as PyTorch's eager attention has it; half the smallest value of the 16-bit
    types, so that neither rounding it nor adding a score to it gives -inf (a row of which would be NaN).
    """
    return _LOWEST.get(dtype, float(np.finfo(np.float32).min))


class _Part:
    """Adds nodes before a semantic node and remembers them."""

    def __init__(self, editor: Editor, at: ir.Node) -> None:
        self.editor, self.at = editor, at
        self.nodes: list[ir.Node] = []

    def __call__(
        self,
        op: str,
        *inputs: ir.Value | None,
        shape: Iterable[Any] | None = None,
        dtype: ir.DataType | None = None,
        **attributes: Any,
    ) -> ir.Value:
        node = self.editor.add(self.at, op, inputs, attributes=attributes, shape=shape, dtype=dtype)
        self.nodes.append(node)
        return node.outputs[0]

    def ints(self, *content: int) -> ir.Value:
        return self.editor.constant(np.array(content, dtype=np.int64))

    def scalar(self, content: float, dtype: ir.DataType) -> ir.Value:
        return self.editor.constant(content, dtype)


class _Lowering:
    def __init__(self, model: ir.Model, prefix: str) -> None:
        self.model, self.prefix = model, prefix
        self.editor = Editor(model.graph)
        self.regions: list[Region] = []
        self.additive: dict[ir.Value, ir.Value] = {}
        self._ids: set[str] = set()

    def run(self) -> list[Region]:
        steps = (self._mask, self._rotary, self._attention, self._gelu)
        for op, step in zip(_DIALECT_NODES, steps, strict=True):
            for node in list(self.model.graph):
                if node.domain == semantic.DOMAIN and node.op_type == op:
                    step(node)
        self._drop_semantic_nodes()
        order = {node: position for position, node in enumerate(self.model.graph)}
        return sorted(self.regions, key=lambda region: order[region.nodes[0]])

    def _drop_semantic_nodes(self) -> None:
        for node in reversed(list(self.model.graph)):
            if node.domain == semantic.DOMAIN:
                self.model.graph.remove(node, safe=True)

    def _record(
        self,
        op: str,
        part: _Part,
        attrs: Mapping[str, Any],
        inputs: Mapping[str, ir.Value | None],
        out: ir.Value,
    ) -> None:
        name = base = f"{module_path(part.at, self.prefix)}#{op}"
        number = 1
        while name in self._ids:
            number += 1
            name = f"{base}_{number}"
        self._ids.add(name)
        nodes = tuple(part.nodes)
        self.regions.append(
            Region(id=name, op=op, attrs=attrs, inputs=inputs, outputs={"out": out}, nodes=nodes)
        )

    def _gelu(self, node: ir.Node) -> None:
        part, x = _Part(self.editor, node), _required(node, 0)
        dtype = x.dtype or ir.DataType.FLOAT
        approximate = node.attributes["approximate"].as_string()
        out = _tanh_gelu(part, x, dtype) if approximate == "tanh" else _erf_gelu(part, x, dtype)
        self._record("gelu", part, {"approximate": approximate}, {"x": x}, out)
        self.editor.replace(node.outputs[0], out)

    def _mask(self, node: ir.Node) -> None:
        padding = node.inputs[0] if node.inputs else None
        causal, window = node.attributes["causal"].as_int(), node.attributes["window"].as_int()
        part = _Part(self.editor, node)
        allowed = _allowed(part, node, padding, bool(causal), window)
        users = [use.node for use in node.outputs[0].uses()]
        dtypes = [
            u.inputs[0].dtype for u in users if u.op_type == semantic.ATTENTION and u.inputs[0] is not None
        ]
        dtype = next((d for d in dtypes if d is not None), ir.DataType.FLOAT)
        zero, low = part.scalar(0.0, dtype), part.scalar(lowest(dtype), dtype)
        bias = part("Where", allowed, zero, low, shape=allowed.shape, dtype=dtype)
        attrs = {"causal": bool(causal), "window": window}
        inputs = {"padding": padding}
        if causal or window:
            inputs |= {"queries": node.inputs[2], "keys": node.inputs[3]}
        self._record("mask", part, attrs, inputs, bias)
        self.additive[node.outputs[0]] = bias
        for use in list(node.outputs[0].uses()):
            if use.node.domain != semantic.DOMAIN:
                use.node.replace_input_with(use.idx, allowed)

    def _rotary(self, node: ir.Node) -> None:
        x, cos, sin = (_required(node, i) for i in range(3))
        heads, size = _sizes(x, 1, 3)
        flat = _flat(self.editor, node, x, heads * size)
        part = _Part(self.editor, node)
        if flat is None:
            out = _rotate(part, x, cos, sin, heads, axis=1)
            attrs = {"interleaved": False, "layout": "bhsd", "num_heads": heads, "head_dim": size}
            self._record("rotary", part, attrs, {"x": x, "cos": cos, "sin": sin}, out)
            self.editor.replace(node.outputs[0], out)
            return
        split = part("Reshape", flat, part.ints(0, 0, heads, size))
        turned = _rotate(part, split, cos, sin, heads, axis=2)
        out = part("Reshape", turned, part.ints(0, 0, heads * size), shape=flat.shape, dtype=x.dtype)
        attrs = {"interleaved": False, "layout": "bsh", "num_heads": heads, "head_dim": size}
        self._record("rotary", part, attrs, {"x": flat, "cos": cos, "sin": sin}, out)
        outside = _Part(self.editor, node)
        back = outside("Reshape", out, outside.ints(0, 0, heads, size))
        self.editor.replace(node.outputs[0], outside("Transpose", back, perm=_SWAP))

    def _attention(self, node: ir.Node) -> None:
        q, k, v = (_required(node, i) for i in range(3))
        (heads, size), (kv_heads, v_size) = _sizes(q, 1, 3), _sizes(v, 1, 3)
        bias = self._bias(node)
        widths = (heads * size, kv_heads * size, kv_heads * v_size)
        flat = [_flat(self.editor, node, x, w) for x, w in zip((q, k, v), widths, strict=True)]
        known = [x for x in flat if x is not None]
        dense = len(known) == 3
        inputs = dict(zip("qkv", known if dense else (q, k, v), strict=True))
        part = _Part(self.editor, node)
        split = [(heads, size), (kv_heads, size), (kv_heads, v_size)]
        per_head = [
            _per_head(part, x, *hd) if dense else x for x, hd in zip(inputs.values(), split, strict=True)
        ]
        per_head[1:] = [_repeat(part, x, heads // kv_heads, heads) for x in per_head[1:]]
        context = _scores_to_context(part, per_head, node.attributes["scale"].as_float(), bias, q.dtype)
        attrs = {
            "num_heads": heads, "kv_num_heads": kv_heads, "head_dim": size, "v_head_dim": v_size,
            "scale": node.attributes["scale"].as_float(), "causal": False,
            "layout": "bsh" if dense else "bhsd",
        }  # fmt: skip
        if dense:
            rows = part("Transpose", context, perm=_SWAP)
            shape = [*(q.shape or [])][:1] + [*(q.shape or [])][2:3] + [heads * v_size]
            out = part("Reshape", rows, part.ints(0, 0, heads * v_size), shape=shape or None, dtype=q.dtype)
        else:
            out = context
        self._record("attention", part, attrs, {**inputs, **bias}, out)
        self._hand_over(node, out, dense, heads, v_size)

    def _bias(self, node: ir.Node) -> dict[str, ir.Value]:
        """The additive inputs, by role; a boolean mask of the model's own making becomes additive here."""
        q, mask, bias = node.inputs[0], *([*node.inputs[3:5], None, None][:2])
        found: dict[str, ir.Value] = {}
        if mask is not None and mask in self.additive:
            found["mask"] = self.additive[mask]
        elif mask is not None:
            part = _Part(self.editor, node)
            dtype = (q.dtype if q is not None else None) or ir.DataType.FLOAT
            found["mask"] = part("Where", mask, part.scalar(0.0, dtype), part.scalar(lowest(dtype), dtype))
        if bias is not None:
            found["bias"] = bias
        return found

    def _hand_over(self, node: ir.Node, out: ir.Value, dense: bool, heads: int, size: int) -> None:
        """Let the users of the semantic `[B,S,H,D]` read the region's output."""
        old = node.outputs[0]
        outside = _Part(self.editor, node)
        if not dense:
            self.editor.replace(old, outside("Transpose", out, perm=_SWAP))
            return
        for user in [use.node for use in old.uses()]:
            merged = user.outputs[0].shape if user.op_type == "Reshape" else None
            if merged is not None and len(merged) == 3 and merged[2] == heads * size:
                self.editor.replace(user.outputs[0], out)
                self.model.graph.remove(user, safe=True)
        if old.uses() or old.is_graph_output():
            self.editor.replace(old, outside("Reshape", out, outside.ints(0, 0, heads, size)))


def _required(node: ir.Node, position: int) -> ir.Value:
    value = node.inputs[position]
    if value is None:
        raise ValueError(f"{node.op_type} without its input {position}")
    return value


def _sizes(value: ir.Value, *axes: int) -> tuple[int, ...]:
    if value.shape is None or any(not isinstance(value.shape[axis], int) for axis in axes):
        raise ValueError(f"{value.name}: axes {axes} have no known sizes")
    return tuple(int(value.shape[axis]) for axis in axes)  # type: ignore[arg-type]


def _flat(editor: Editor, at: ir.Node, x: ir.Value, width: int) -> ir.Value | None:
    """`[B,S,H·D]` behind x `[B,H,S,D]`, where x is a transposed `[B,S,H,D]`."""
    swap = producer(x, "Transpose")
    if swap is None or permutation(swap) != _SWAP or swap.inputs[0] is None:
        return None
    split = producer(swap.inputs[0], "Reshape")
    source = split.inputs[0] if split is not None else None
    if (
        source is not None
        and source.shape is not None
        and len(source.shape) == 3
        and source.shape[2] == width
    ):
        return source
    outside = _Part(editor, at)
    return outside("Reshape", swap.inputs[0], outside.ints(0, 0, width), dtype=x.dtype)


def _per_head(part: _Part, x: ir.Value, heads: int, size: int) -> ir.Value:
    """`[B,S,H·D]` → `[B,H,S,D]`."""
    return part("Transpose", part("Reshape", x, part.ints(0, 0, heads, size)), perm=_SWAP)


def _repeat(part: _Part, x: ir.Value, times: int, heads: int) -> ir.Value:
    """Each key and value head serves `times` query heads."""
    if times == 1:
        return x
    apart = part("Unsqueeze", x, part.ints(2))
    wide = part("Expand", apart, part.ints(1, 1, times, 1, 1))
    sizes = part("Shape", x, start=2)
    target = part("Concat", part.ints(0, heads), sizes, axis=0)
    return part("Reshape", wide, target)


def _scores_to_context(
    part: _Part,
    qkv: Sequence[ir.Value],
    scale: float,
    bias: Mapping[str, ir.Value],
    dtype: ir.DataType | None,
) -> ir.Value:
    """softmax(q·kᵀ·scale + bias + mask)·v, all `[B,H,S,D]`."""
    q, k, v = qkv
    swap = producer(k, "Transpose")
    if swap is not None and swap in part.nodes and permutation(swap) == _SWAP:
        swap.attributes["perm"] = ir.AttrInt64s("perm", [0, 2, 3, 1])
        turned = k
    else:
        turned = part("Transpose", k, perm=[0, 1, 3, 2])
    scores = part("Mul", part("MatMul", q, turned), part.scalar(scale, dtype or ir.DataType.FLOAT))
    for role in ("bias", "mask"):
        if role in bias:
            scores = part("Add", scores, bias[role])
    return part("MatMul", part("Softmax", scores, axis=-1), v, dtype=dtype)


def _allowed(part: _Part, node: ir.Node, padding: ir.Value | None, causal: bool, window: int) -> ir.Value:
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
        "Unsqueeze", _band(part, _required(node, 2), _required(node, 3), causal, window), part.ints(0, 1)
    )
    return near if allowed is None else part("And", allowed, near, dtype=ir.DataType.BOOL)


def _band(part: _Part, queries: ir.Value, keys: ir.Value, causal: bool, window: int) -> ir.Value:
    """Bool `[S,T]`. A causal window reaches window - 1 back, a bidirectional one `window` both ways."""
    zero, one = (part.editor.constant(np.array(i, dtype=np.int64)) for i in (0, 1))
    key = part("Range", zero, keys, one, dtype=ir.DataType.INT64)
    query = part("Unsqueeze", part("Range", zero, queries, one, dtype=ir.DataType.INT64), part.ints(1))
    limit = part.editor.constant(np.array(window, dtype=np.int64))
    if not causal:
        return part("LessOrEqual", part("Abs", part("Sub", key, query)), limit)
    past = part("LessOrEqual", key, query)
    return part("And", past, part("Greater", key, part("Sub", query, limit))) if window else past


def _rotate(part: _Part, x: ir.Value, cos: ir.Value, sin: ir.Value, heads: int, axis: int) -> ir.Value:
    """x·cos + (-x₂, x₁)·sin with cos and sin `[B|1,S,D]` unsqueezed at the heads' axis."""
    dtype = x.dtype or cos.dtype
    wide = []
    for table in (cos, sin):
        same = table.dtype == dtype or dtype is None
        cast = table if same else part("Cast", table, to=int(dtype or 1), dtype=dtype)
        wide.append(part("Unsqueeze", cast, part.ints(axis)))
    halves = part.editor.add(part.at, "Split", [x], attributes={"axis": -1, "num_outputs": 2}, outputs=2)
    part.nodes.append(halves)
    first, second = halves.outputs
    turned = part("Concat", part("Neg", second), first, axis=-1)
    return part("Add", part("Mul", x, wide[0]), part("Mul", turned, wide[1]), shape=x.shape, dtype=dtype)


def _erf_gelu(part: _Part, x: ir.Value, dtype: ir.DataType) -> ir.Value:
    """x·½·(1 + erf(x/√2))."""
    erf = part("Erf", part("Div", x, part.scalar(math.sqrt(2.0), dtype)))
    product = part("Mul", x, part("Add", erf, part.scalar(1.0, dtype)))
    return part("Mul", product, part.scalar(0.5, dtype), shape=x.shape, dtype=dtype)


def _tanh_gelu(part: _Part, x: ir.Value, dtype: ir.DataType) -> ir.Value:
    """x·½·(1 + tanh(√(2/π)·(x + 0.044715·x³)))."""
    cube = part("Mul", part("Mul", x, x), x)
    inner = part("Add", x, part("Mul", cube, part.scalar(0.044715, dtype)))
    tanh = part("Tanh", part("Mul", inner, part.scalar(math.sqrt(2 / math.pi), dtype)))
    half = part("Mul", x, part.scalar(0.5, dtype))
    return part("Mul", half, part("Add", tanh, part.scalar(1.0, dtype)), shape=x.shape, dtype=dtype)
