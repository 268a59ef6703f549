"""Element types of a graph's values, derived from the operators' schemas.

Published files hold no value_info (ONNX Runtime would fuse what is slow on the CPU), so whoever needs
a value's dtype derives it. Shapes are not looked at, and no weight is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx
import onnx_ir as ir

from onnxkit.graph.edit import node_input, subgraphs

_Dtype = ir.DataType | None


def infer_dtypes(model: ir.Model) -> None:
    """Set the dtype of every value, those of subgraphs included, that has none and whose can be told."""
    for initializer in model.graph.initializers.values():
        if initializer.dtype is None and initializer.const_value is not None:
            initializer.dtype = initializer.const_value.dtype
    _infer_graph(model.graph, model.opset_imports)


def _infer_graph(graph: ir.Graph, opsets: dict[str, int]) -> None:
    for node in graph:
        for inner in subgraphs(node):
            _infer_graph(inner, opsets)
        for value, dtype in zip(node.outputs, _output_dtypes(node, opsets), strict=False):
            if value.dtype is None and dtype is not None:
                value.dtype = dtype


def _output_dtypes(node: ir.Node, opsets: dict[str, int]) -> Sequence[_Dtype]:
    rule = _RULES.get((node.domain, node.op_type))
    if rule is not None:
        return [rule(node)] * len(node.outputs)
    bodies = subgraphs(node)
    if bodies:
        return [value.dtype for value in bodies[0].outputs][-len(node.outputs) :]
    if node.domain not in ("", "ai.onnx.ml"):
        return [_of(node, 0)] * len(node.outputs)
    try:
        schema = onnx.defs.get_schema(node.op_type, opsets.get(node.domain, 1), node.domain)
    except onnx.defs.SchemaError:  # kept in ONNX's domain by ONNX Runtime: SimplifiedLayerNormalization
        return [_of(node, 0)] * len(node.outputs)
    return _by_schema(node, schema)


def _by_schema(node: ir.Node, schema: onnx.defs.OpSchema) -> list[_Dtype]:
    """Outputs share their inputs' type variable, or have a type of their own."""
    bound: dict[str, _Dtype] = {}
    for position, value in enumerate(node.inputs):
        formal = schema.inputs[min(position, len(schema.inputs) - 1)]
        if value is not None and value.dtype is not None:
            bound.setdefault(formal.type_str, value.dtype)
    constraints = {entry.type_param_str: entry.allowed_type_strs for entry in schema.type_constraints}
    found: list[_Dtype] = []
    for position in range(len(node.outputs)):
        kind = schema.outputs[min(position, len(schema.outputs) - 1)].type_str
        allowed = constraints.get(kind, [kind])
        found.append(bound.get(kind) or (_parse(allowed[0]) if len(allowed) == 1 else None))
    return found


def _parse(text: str) -> _Dtype:
    """ "tensor(int64)" → INT64."""
    name = text.removeprefix("tensor(").removesuffix(")").upper()
    return ir.DataType[name] if name in ir.DataType.__members__ else None


def _of(node: ir.Node, position: int) -> _Dtype:
    value = node_input(node, position)
    return value.dtype if value is not None else None


def _like(position: int) -> Callable[[ir.Node], _Dtype]:
    return lambda node: _of(node, position)


def _attribute(name: str, default: ir.DataType) -> Callable[[ir.Node], _Dtype]:
    """The dtype that an attribute names, or that of the tensor in it."""

    def rule(node: ir.Node) -> _Dtype:
        attribute = node.attributes.get(name)
        if attribute is None:
            return default
        if attribute.type == ir.AttributeType.TENSOR:
            return attribute.as_tensor().dtype
        return ir.DataType(attribute.as_int())

    return rule


def _constant(node: ir.Node) -> _Dtype:
    value = node.outputs[0].const_value or ir.convenience.get_const_tensor(node.outputs[0])
    return value.dtype if value is not None else None


def _quantize(node: ir.Node) -> _Dtype:
    return _of(node, 2) or _attribute("output_dtype", ir.DataType.UINT8)(node)


_FLOAT = ir.DataType.FLOAT
_RULES: dict[tuple[str, str], Callable[[ir.Node], _Dtype]] = {
    ("", "Cast"): _attribute("to", _FLOAT),
    ("", "CastLike"): _like(1),
    ("", "Constant"): _constant,
    ("", "ConstantOfShape"): _attribute("value", _FLOAT),
    ("", "EyeLike"): _attribute("dtype", _FLOAT),
    ("", "QuantizeLinear"): _quantize,
    ("", "DequantizeLinear"): _like(1),
    ("com.microsoft", "QuantizeLinear"): _quantize,
    ("com.microsoft", "DequantizeLinear"): _like(1),
    ("com.microsoft", "MatMulIntegerToFloat"): _like(2),
    ("com.microsoft", "QAttention"): _like(3),
    ("com.microsoft", "GatherBlockQuantized"): _like(2),
    ("com.microsoft", "EmbedLayerNormalization"): _like(2),
}
"""Operators whose schema does not tell it, by domain and type."""
