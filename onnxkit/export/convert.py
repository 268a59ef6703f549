"""A traced program as an onnx_ir model in which the semantic operators still stand.

The one module that calls into `torch.onnx`'s internals: the public `torch.onnx.export` cannot leave
out the decompositions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx.defs import OpSchema, get_schema
from onnxscript import evaluator
from onnxscript.function_libs.torch_lib import ops as _torchlib_ops  # noqa: F401 - fills the registry
from onnxscript.function_libs.torch_lib.registration import default_registry
from torch.export import ExportedProgram
from torch.onnx._internal.exporter import _core, _registration
from torch.onnx._internal.exporter._torchlib import _torchlib_registry

from onnxkit.export import fx
from onnxkit.export.operators import OPS
from onnxkit.graph import semantic

TRACE_OPSET = 18
_ROUNDS = 3
"""Of decompositions: what an unknown operator consists of may be unknown, too."""
_FLOATS = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"]
_BOOL = ["tensor(bool)"]
_INT64 = ["tensor(int64)"]


def _schema(name: str, inputs: Mapping[str, list[str]], *results: list[str], **attributes: Any) -> OpSchema:
    """An operator's schema; an input whose name ends in "?" may be left out."""
    single, optional = OpSchema.FormalParameterOption.Single, OpSchema.FormalParameterOption.Optional
    parameters, constraints = [], []
    for position, (given, types) in enumerate(inputs.items()):
        option = optional if given.endswith("?") else single
        parameters.append(OpSchema.FormalParameter(given.rstrip("?"), f"T{position}", param_option=option))
        constraints.append((f"T{position}", types, ""))
    return OpSchema(
        name,
        semantic.DOMAIN,
        semantic.VERSION,
        inputs=parameters,
        outputs=[OpSchema.FormalParameter(f"out{i}", f"R{i}") for i in range(len(results))],
        type_constraints=[*constraints, *((f"R{i}", types, "") for i, types in enumerate(results))],
        attributes=[OpSchema.Attribute(key, kind) for key, kind in attributes.items()],
    )


_kind = OpSchema.AttrType
_QKV = {"q": _FLOATS, "k": _FLOATS, "v": _FLOATS}
_PAST = {"past_k": _FLOATS, "past_v": _FLOATS}
_OPTIONAL = {"mask?": _BOOL, "bias?": _FLOATS, "sinks?": _FLOATS}
_SCALES = {"scale": _kind.FLOAT, "softcap": _kind.FLOAT}
_ATTENTION = _schema(semantic.ATTENTION, {**_QKV, **_OPTIONAL}, _FLOATS, **_SCALES)
_CACHED_ATTENTION = _schema(
    semantic.CACHED_ATTENTION, {**_QKV, **_PAST, **_OPTIONAL}, _FLOATS, _FLOATS, _FLOATS, **_SCALES
)
_MASK = _schema(
    semantic.MASK,
    {"padding?": _BOOL, "batch": _INT64, "queries": _INT64, "keys": _INT64},
    _BOOL,
    window=_kind.INT,
    causal=_kind.INT,
)
_ROTARY = _schema(
    semantic.ROTARY,
    {"x": _FLOATS, "cos": _FLOATS, "sin": _FLOATS},
    _FLOATS,
    interleaved=_kind.INT,
    heads_axis=_kind.INT,
)
_RMS_NORM = _schema(
    semantic.RMS_NORM, {"x": _FLOATS, "weight": _FLOATS}, _FLOATS, epsilon=_kind.FLOAT, offset=_kind.FLOAT
)
_EXPERT_MATMUL = _schema(
    semantic.EXPERT_MATMUL,
    {"x": _FLOATS, "weight": _FLOATS, "experts": _INT64},
    _FLOATS,
    transposed=_kind.INT,
)
_LAST_ROWS = _schema(semantic.LAST_ROWS, {"x": _FLOATS, "count": _INT64}, _FLOATS)
_GELU = _schema(semantic.GELU, {"x": _FLOATS}, _FLOATS, approximate=_kind.STRING)


def _emit(schema: OpSchema, *inputs: Any, **attributes: Any) -> Any:
    return _recorder().eval(schema, inputs, attributes)


def _recorder() -> Any:
    """Torch's evaluator of onnxscript calls, active while a translation runs: it records nodes."""
    return evaluator.default()


def _attention(
    q: Any, k: Any, v: Any, mask: Any = None, bias: Any = None, sinks: Any = None, scale: float = 1.0,
    softcap: float = 0.0,
) -> Any:  # fmt: skip
    return _emit(_ATTENTION, q, k, v, mask, bias, sinks, scale=scale, softcap=softcap)


def _cached_attention(
    q: Any, k: Any, v: Any, past_k: Any, past_v: Any, mask: Any = None, bias: Any = None, sinks: Any = None,
    scale: float = 1.0, softcap: float = 0.0,
) -> Any:  # fmt: skip
    given = (q, k, v, past_k, past_v, mask, bias, sinks)
    return _emit(_CACHED_ATTENTION, *given, scale=scale, softcap=softcap)


def _mask(padding: Any, batch: Any, queries: Any, keys: Any, window: int = 0, causal: bool = False) -> Any:
    return _emit(_MASK, padding, batch, queries, keys, window=window, causal=int(causal))


def _rotary(x: Any, cos: Any, sin: Any, interleaved: bool, heads_axis: int) -> Any:
    return _emit(_ROTARY, x, cos, sin, interleaved=int(interleaved), heads_axis=heads_axis)


def _rms_norm(x: Any, weight: Any, epsilon: float, offset: float) -> Any:
    return _emit(_RMS_NORM, x, weight, epsilon=epsilon, offset=offset)


def _expert_matmul(x: Any, weight: Any, experts: Any, transposed: bool) -> Any:
    return _emit(_EXPERT_MATMUL, x, weight, experts, transposed=int(transposed))


def _last_rows(x: Any, count: Any) -> Any:
    return _emit(_LAST_ROWS, x, count)


def _gelu(x: Any, approximate: str = "none") -> Any:
    return _emit(_GELU, x, approximate=approximate)


def _split(x: Any, sizes: Sequence[int], axis: int) -> list[Any]:
    """One Split with as many outputs as sizes; torchlib's goes through sequences."""
    if any(not isinstance(size, int) for size in sizes):
        raise ValueError("a split into sizes that are not fixed")
    schema = get_schema("Split", TRACE_OPSET)
    equal = len(set(sizes)) == 1
    recorder = _recorder()
    if len(sizes) == 1:
        return [_standard("Identity", x)]
    if equal:
        return list(recorder.eval(schema, (x,), {"axis": axis, "num_outputs": len(sizes)}))
    lengths = ir.tensor(list(sizes), dtype=ir.DataType.INT64)
    given = _standard("Constant", value=lengths)
    parts = list(recorder.eval(schema, (x, given), {"axis": axis, "num_outputs": len(sizes)}))
    parts[0].producer().attributes.pop("num_outputs")  # it told the recorder how many; the sizes say it, too
    return parts


def _standard(op: str, *inputs: Any, **attributes: Any) -> Any:
    return _recorder().eval(get_schema(op, TRACE_OPSET), inputs, attributes)


def _split_by_size(x: Any, size: int, dim: int = 0) -> list[Any]:
    length = _axis_length(x, dim)
    full, rest = divmod(length, size)
    return _split(x, [size] * full + [rest] * bool(rest), dim)


def _split_with_sizes(x: Any, sizes: Sequence[int], dim: int = 0) -> list[Any]:
    return _split(x, sizes, dim)


def _chunk(x: Any, chunks: int, dim: int = 0) -> list[Any]:
    return _split_by_size(x, -(-_axis_length(x, dim) // chunks), dim)


def _unbind(x: Any, dim: int = 0) -> list[Any]:
    parts = _split(x, [1] * _axis_length(x, dim), dim)
    axes = _standard("Constant", value=ir.tensor([dim], dtype=ir.DataType.INT64))
    return [_standard("Squeeze", part, axes) for part in parts]


def _convolution(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> Any:
    """Torchlib's gives a convolution without bias one that is computed, which no quantizer takes."""
    rank = len(weight.shape) - 2
    if len(x.shape) != rank + 2:
        raise ValueError("a convolution of a single sample")
    strides, pads, dilations = (
        list(given) * (rank if len(given) == 1 else 1) for given in (stride, padding, dilation)
    )
    given = (x, weight) if bias is None else (x, weight, bias)
    return _standard("Conv", *given, strides=strides, pads=pads * 2, dilations=dilations, group=groups)


def _conv2d_named_padding(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Sequence[int] = (1, 1),
    padding: str = "valid",
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Any:
    automatic = {"valid": "VALID", "same": "SAME_UPPER"}[padding]
    given = (x, weight) if bias is None else (x, weight, bias)
    return _standard(
        "Conv", *given, strides=list(stride), dilations=list(dilation), group=groups, auto_pad=automatic
    )


def _batch_norm(
    x: Any, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, momentum: float, eps: float,
    cudnn_enabled: bool = False,
) -> Any:  # fmt: skip
    if training or mean is None or variance is None:
        raise ValueError("a batch normalization by the batch's own statistics")
    channels = [_axis_length(mean, 0)]
    weight = _filled(channels, 1.0, mean) if weight is None else weight
    bias = _filled(channels, 0.0, mean) if bias is None else bias
    given = (x, weight, bias, mean, variance)
    return _standard("BatchNormalization", *given, epsilon=eps, training_mode=0)


def _filled(shape: Sequence[int], content: float, like: Any) -> Any:
    array = np.full(shape, content, dtype=np.float32).astype(like.dtype.numpy())
    return _standard("Constant", value=ir.tensor(array, dtype=like.dtype))


def _weight_norm(direction: Any, length: Any, dim: int = 0) -> Any:
    """The weight of a `weight_norm` module: its direction, scaled to `length` over all axes but `dim`."""
    axes = [axis for axis in range(len(direction.shape)) if axis != dim % len(direction.shape)]
    given = _standard("Constant", value=ir.tensor(axes, dtype=ir.DataType.INT64))
    norm = _standard("ReduceL2", direction, given, keepdims=1)
    return _standard("Mul", direction, _standard("Div", length, norm))


def _subtracted_from(x: Any, other: Any, alpha: float = 1) -> Any:
    """other - alpha·x; torch's decompositions, which do the same, trace the whole program again."""
    dtype = x.dtype
    if dtype.is_integer():  # floats beside integers make floats
        float_number = any(isinstance(number, float) for number in (other, alpha))
        wider = other.dtype if hasattr(other, "shape") and not other.dtype.is_integer() else None
        dtype = wider or (ir.DataType.FLOAT if float_number else dtype)
    first, x = (_of_type(each, dtype) for each in (other, x))
    if alpha != 1:
        x = _standard("Mul", x, _of_type(alpha, dtype))
    return _standard("Sub", first, x)


def _of_type(value: Any, dtype: ir.DataType) -> Any:
    """A value or a number, in a type."""
    if not hasattr(value, "shape"):
        return _standard("Constant", value=ir.tensor(np.array(value, dtype.numpy())))
    return value if value.dtype == dtype else _standard("Cast", value, to=dtype)


def _variance(
    x: Any, dim: Sequence[int] | None = None, correction: float | None = None, keepdim: bool = False
) -> Any:
    dim = list(dim) if dim else [*range(len(x.shape))]
    correction = 1 if correction is None else correction
    axes = _standard("Constant", value=ir.tensor(dim, dtype=ir.DataType.INT64))
    apart = _standard("Sub", x, _standard("ReduceMean", x, axes, keepdims=1))
    total = _standard("ReduceSumSquare", apart, axes, keepdims=int(keepdim))
    lengths = [x.shape[axis] for axis in dim]
    if all(isinstance(length, int) for length in lengths):
        return _standard("Div", total, _of_type(max(0, math.prod(lengths) - correction), x.dtype))
    sizes = _standard("ReduceProd", _standard("Gather", _standard("Shape", x), axes), keepdims=0)
    count = _standard("Sub", _standard("CastLike", sizes, x), _of_type(correction, x.dtype))
    return _standard("Div", total, _standard("Max", count, _of_type(0, x.dtype)))


def _deviation(x: Any, *dim: Any, **other: Any) -> Any:
    return _standard("Sqrt", _variance(x, *dim, **other))


def _square(x: Any) -> Any:
    return _standard("Mul", x, x)


def _reshape_as(x: Any, other: Any) -> Any:
    return _standard("Reshape", x, _standard("Shape", other))


def _reversed(x: Any) -> Any:
    return _standard("Transpose", x, perm=list(range(len(x.shape)))[::-1])


def _axis_length(x: Any, dim: int) -> int:
    length = x.shape[dim] if x.shape is not None else None
    if not isinstance(length, int):
        raise ValueError(f"an axis of {length} cannot be taken apart")
    return length


TRANSLATIONS: dict[Any, Callable[..., Any]] = {
    OPS.attention.default: _attention,
    OPS.cached_attention.default: _cached_attention,
    OPS.mask.default: _mask,
    OPS.rotary.default: _rotary,
    OPS.rms_norm.default: _rms_norm,
    OPS.expert_matmul.default: _expert_matmul,
    OPS.last_rows.default: _last_rows,
    torch.ops.aten.gelu.default: _gelu,
    torch.ops.aten.split.Tensor: _split_by_size,
    torch.ops.aten.split_with_sizes.default: _split_with_sizes,
    torch.ops.aten.chunk.default: _chunk,
    torch.ops.aten.unbind.int: _unbind,
    torch.ops.aten.conv1d.default: _convolution,
    torch.ops.aten.conv2d.default: _convolution,
    torch.ops.aten.conv3d.default: _convolution,
    torch.ops.aten.conv2d.padding: _conv2d_named_padding,
    torch.ops.aten.rsub.Scalar: _subtracted_from,
    torch.ops.aten.rsub.Tensor: _subtracted_from,
    torch.ops.aten.var.correction: _variance,
    torch.ops.aten.std.correction: _deviation,
    torch.ops.aten.square.default: _square,
    torch.ops.aten.reshape_as.default: _reshape_as,
    torch.ops.aten.numpy_T.default: _reversed,
    torch.ops.aten.batch_norm.default: _batch_norm,
    torch.ops.aten._weight_norm.default: _weight_norm,
}
"""Torch operator → function that writes the ONNX nodes; `torch.onnx.export` takes it too."""


def to_onnx(
    program: ExportedProgram, *, decompose: bool, translations: Mapping[Any, Any] | None = None
) -> ir.Model:
    """Convert a program, by our own clean-up or (`decompose`) after torch's decompositions.

    Raises:
        fx.NeedsDecomposition, torch.onnx.errors.OnnxExporterError: it cannot be converted this way.
    """
    own = {**(translations or {}), **TRANSLATIONS}
    if decompose:
        registry = _registration.ONNXRegistry.from_torchlib(opset_version=TRACE_OPSET)
        _add(registry, own)
        return _core.exported_program_to_ir(program, registry=registry)
    program = _without_unknown(program, own)
    fx.clean(program)
    registry = _registry_of({node.target for node in program.graph.nodes if callable(node.target)})
    _add(registry, own)
    return _core._exported_program_to_onnx_program(program, registry=registry).model


def _add(registry: _registration.ONNXRegistry, translations: Mapping[Any, Any]) -> None:
    for target, function in translations.items():
        registry.register_op(target, function, is_complex=False)


def _without_unknown(program: ExportedProgram, translations: Mapping[Any, Any]) -> ExportedProgram:
    """Decompose the operators, and only those, that no translation knows (`softsign`)."""
    fx.write_plainly(program)
    fx.make_functional(program)
    if any(fx.is_in_place(node) for node in program.graph.nodes):  # on views: torch knows how
        program = program.run_decompositions({})
    for _ in range(_ROUNDS):
        used = fx.foreign_operators(program)
        registry = _registry_of(used)
        _add(registry, translations)
        single = {op for op in used if isinstance(op, torch._ops.OpOverload)}
        unknown = {op for op in single if not registry.is_registered(op)}
        every = torch.export.default_decompositions() if unknown else {}
        table = {op: every[op] for op in unknown if op in every}
        if not table:
            break
        program = program.run_decompositions(table)
    return program


def _registry_of(targets: Collection[Any]) -> _registration.ONNXRegistry:
    """Torchlib's functions for these operators only: to resolve and compile all 600 costs a second."""
    registry = _registration.ONNXRegistry()
    registry._opset_version = TRACE_OPSET
    for meta in _torchlib_registry.get_torchlib_ops():
        if meta.fx_target in targets:
            registry._register(meta.fx_target, meta)
    by_name = {_qualified_name(target): target for target in targets}
    for name, entry in default_registry.items():
        target = by_name.get(name.removesuffix(".default"))
        if target is None:
            continue
        for functions, is_complex in ((entry.overloads, False), (entry.complex, True)):
            for function in functions:
                _register(registry, target, function, is_complex)
    registry._cleanup_registry_based_on_opset_version()
    return registry


def _register(
    registry: _registration.ONNXRegistry, target: Any, function: Callable[..., Any], is_complex: bool
) -> None:
    meta = _registration.OnnxDecompMeta(
        onnx_function=function, fx_target=target, signature=None, is_custom=False, is_complex=is_complex
    )
    registry._register(target, meta)


def _qualified_name(target: Any) -> str:
    """Torchlib's name of an operator: "aten::add.Tensor", "_operator::add", "math::ceil"."""
    if isinstance(target, torch._ops.OpOverload):
        return str(target.name()).removesuffix(".default")  # type: ignore[no-untyped-call]
    return f"{getattr(target, '__module__', '')}::{getattr(target, '__name__', '')}"
