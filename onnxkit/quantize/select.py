"""Which nodes are quantized, and why the others are not.

Order of decisions: the operator's own limits, the user's patterns and operator types, then policies that
keep what is sensitive and too small to gain (see `_policy`).
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxkit.errors import InputError, UsageError, suggestion
from onnxkit.graph.edit import stored_sizes, subgraphs
from onnxkit.graph.integers import INTEGER_OPS
from onnxkit.quantize.operators import OPERATORS, Refusal, Target
from onnxkit.quantize.options import QuantizeOptions
from onnxkit.quantize.report import KeptLayer
from onnxkit.quantize.schemes import SCHEMES, Scheme

SMALL_PRODUCT = 1024  # weights; below it the conversion costs more than the product
SMALL_TABLE = 16384  # elements
SMALL_HEAD = 0.05  # of the model's quantizable weights
_TRANSPARENT = {"Add", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Cast", "Softmax", "Sigmoid", "Tanh"}

LOG_VALUES = ("onnxkit.log4.values", "onnxkit.log8.values")
"""Names of the tables that logarithmic codes are decoded by."""

_PRODUCTS = {"MatMul", "Gemm", "Conv", "FusedMatMul", "FusedGemm", "FusedConv"}
_MOVING = {"Cast", "Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze"}
_DECODING = {"Mul", "Sub", "Add", *_MOVING}
"""What other tools decode integers of weight-only exports by."""
_CODES = {ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4}
_HALF = {ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """The decision on every node of a quantizable operator, in graph order.

    Attributes:
        experts: why the experts of a mixture stay float, and how much of the graph they are; None where they
            do not, or there are none.
    """

    targets: tuple[Target, ...]
    kept: tuple[KeptLayer, ...]
    experts: str | None = None


def refuse_unsuitable(model: ir.Model, where: str) -> None:
    """Raise InputError for a model that is already quantized or of half precision."""
    for node in model.graph.all_nodes():
        if node.op_type in INTEGER_OPS:
            raise InputError(
                f"{where} is already quantized (node '{node.name}' is {node.op_type}): "
                "quantize the float model that it was made from"
            )
        if node.op_type in _PRODUCTS and _stores_codes(node.inputs[1]):
            raise InputError(
                f"{where} is already quantized (a weight of node '{node.name}' is stored as integers): "
                "quantize the float model that it was made from"
            )
    if any(str(name).startswith(LOG_VALUES) for name in model.graph.initializers):
        raise InputError(
            f"{where} is already quantized (its weights are logarithmic codes): "
            "quantize the float model that it was made from"
        )
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype in _HALF and len(tensor.shape) >= 2:
            raise InputError(
                f"{where} is already half precision (weight '{value.name}' is {_HALF[tensor.dtype]}): "
                "quantize the fp32 model, for instance the output of 'optimize -O3'"
            )


def _stores_codes(value: ir.Value | None) -> bool:
    """Whether a matrix is made of stored integers, by Cast and arithmetic with other stored tensors.

    One of zeros and ones is a mask.
    """
    waiting, codes = [value], False
    while waiting:
        each = waiting.pop()
        stored = None if each is None else ir.convenience.get_const_tensor(each)
        if stored is not None:
            many = stored.dtype in _CODES and len(stored.shape) >= 2
            codes = codes or (many and len(np.unique(stored.numpy())) > 2)
            continue
        maker = None if each is None else each.producer()
        if maker is None or maker.op_type not in _DECODING:
            return False
        waiting.extend(maker.inputs[:1] if maker.op_type in _MOVING else maker.inputs)
    return codes


def select(model: ir.Model, scheme: Scheme, options: QuantizeOptions) -> Selection:
    """Decide on each node of a model's only graph: see `select_all`."""
    return select_all({"model": model}, scheme, options)["model"]


def select_all(
    models: Mapping[str, ir.Model], scheme: Scheme, options: QuantizeOptions
) -> dict[str, Selection]:
    """Decide on each node of a model's graphs, which are named by their component.

    Raises:
        UsageError: a pattern or an operator type that matches nothing; names the nearest.
        InputError: nothing is left to quantize in any graph.
    """
    everything = [node for model in models.values() for node in model.graph]
    wishes = _Wishes(
        scheme=scheme,
        types=_op_types(options.op_types, scheme),
        asked=frozenset(options.op_types),
        include=_compiled(options.include, everything, "--include"),
        exclude=_compiled(options.exclude, everything, "--exclude"),
        stay=_compiled(listed(options.exclude_from), everything, f"--exclude-from {options.exclude_from}:"),
        float_tables=options.embeddings == "keep",
    )
    found = {name: _select(model, name, wishes) for name, model in models.items()}
    if not any(selection.targets for selection in found.values()):
        kept = [layer for selection in found.values() for layer in selection.kept]
        raise InputError(_nothing(kept, wishes))
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Wishes:
    """What scheme and user ask for: operator types (`asked`: named by the user), and patterns of names."""

    scheme: Scheme
    types: frozenset[str]
    asked: frozenset[str]
    include: Sequence[re.Pattern[str]]
    exclude: Sequence[re.Pattern[str]]
    stay: Sequence[re.Pattern[str]]
    float_tables: bool


def _select(model: ir.Model, component: str, wishes: _Wishes) -> Selection:
    nodes = list(model.graph)
    candidates: list[Target] = []
    kept: list[KeptLayer] = []
    experts = _float_experts(model, wishes)
    for node in nodes:
        operator = OPERATORS.get((node.domain, node.op_type))
        found = operator.recognize(node) if operator is not None else None
        if found is None:
            continue
        reason = found.reason if isinstance(found, Refusal) else _by_user(node, wishes)
        if experts is not None and isinstance(found, Target) and found.kind == "experts":
            reason = experts
        if reason is None and isinstance(found, Target) and found.kind == "embedding" and _masks(found):
            reason = "its table masks with infinite values"
        if reason is None and isinstance(found, Target):
            candidates.append(found)
        else:
            kept.append(_keep(node, str(reason)))
    targets, by_policy = _apply_policies(candidates, wishes)
    names = {str(node.name): index for index, node in enumerate(nodes)}
    kept += [_keep(node, "in a branch or loop") for node in _inner_layers(nodes)]
    everything = sorted([*kept, *by_policy], key=lambda layer: names.get(layer.name, len(nodes)))
    named = tuple(dataclasses.replace(layer, component=component) for layer in everything)
    return Selection(targets=tuple(targets), kept=named, experts=experts)


def _masks(target: Target) -> bool:
    """Whether a table holds infinities, which are added to scores: codes have none."""
    if target.weight.const_value is None:
        return False
    table = target.weight.const_value.numpy()
    # NaN, which is refused elsewhere, hides no infinity here; a table is not copied for the look.
    ends = np.fmin.reduce(table, axis=None), np.fmax.reduce(table, axis=None)
    return bool(np.isinf(ends).any())


def _float_experts(model: ir.Model, wishes: _Wishes) -> str | None:
    """What is said of experts that the scheme has no format for."""
    if wishes.scheme.way in OPERATORS["", "Loop"].possible_for:
        return None
    rows = ((OPERATORS.get((node.domain, node.op_type)), node) for node in model.graph)
    found = [row.recognize(node) for row, node in rows if row is not None]
    inside = sum(t.parameters for t in found if isinstance(t, Target) and t.kind == "experts")
    if not inside:
        return None
    tensors = [value.const_value for value in model.graph.initializers.values()]
    everything = sum(int(t.size) for t in tensors if t is not None and t.dtype == ir.DataType.FLOAT)
    possible = OPERATORS["", "Loop"].possible_for
    able = ", ".join(name for name, scheme in SCHEMES.items() if scheme.way in possible)
    share = 100 * inside / everything
    return f"{share:.0f} % of the weights are in experts, which stay float; {able} quantize them"


def _by_user(node: ir.Node, wishes: _Wishes) -> str | None:
    name = str(node.name)
    if node.op_type not in wishes.types:
        return f"{node.op_type} is not among the operator types to quantize"
    if _any(wishes.exclude, name):
        return "excluded by pattern"
    if _any(wishes.stay, name):
        return "excluded by the exclusion file"
    if wishes.float_tables and node.op_type == "Gather":
        return "--embeddings keep"
    if wishes.include and not _any(wishes.include, name):
        return "not included by pattern"
    return None


def _apply_policies(candidates: Sequence[Target], wishes: _Wishes) -> tuple[list[Target], list[KeptLayer]]:
    """Split the candidates; an explicit --include switches the policies off."""
    if wishes.include:
        return list(candidates), []
    total = sum({t.weight: t.parameters for t in candidates}.values())
    targets: list[Target] = []
    kept: list[KeptLayer] = []
    for target in candidates:
        reason = _policy(target, total, wishes)
        if reason is None:
            targets.append(target)
        else:
            kept.append(_keep(target.node, reason))
    return _with_tables_of(targets, kept)


def _policy(target: Target, total: int, wishes: _Wishes) -> str | None:
    """Why a layer that could be quantized should not be.

    The first convolution sees the raw input (pixels, samples) and has few weights; a depthwise one sums few
    products, so that little of their error evens out, and is no faster in 8 bits; a small output head adds
    its error to the result undamped (a weight-only one's is small, and its bytes count); small tables and
    products gain nothing.
    """
    activation = target.activation
    if target.kind == "conv" and target.node.op_type not in wishes.asked:
        if activation is not None and activation.is_graph_input():
            return "first layer: it reads the model's input"
        if _is_depthwise(target) and not wishes.scheme.weight_only:
            return "depthwise convolution: sensitive, and no faster in 8 bits"
    elif target.kind == "embedding":
        if target.parameters < SMALL_TABLE:
            return f"a table of fewer than {SMALL_TABLE} elements"
    elif target.kind == "linear":
        if target.parameters < SMALL_PRODUCT:
            return f"fewer than {SMALL_PRODUCT} weights"
        small = target.parameters < SMALL_HEAD * total and not wishes.scheme.weight_only
        if small and makes_output(target.node.outputs[0]):
            return "output head: sensitive, and under 5 % of the weights"
    return None


def _is_depthwise(target: Target) -> bool:
    """Whether each output channel reads one of several input channels."""
    group = target.node.attributes.get("group")
    return group is not None and group.as_int() > 1 and stored_sizes(target.weight)[1] == 1


def makes_output(value: ir.Value) -> bool:
    """Whether the value reaches a graph output through nothing but element-wise or shape operators."""
    if value.is_graph_output():
        return True
    readers = [use.node for use in value.uses()]
    return len(readers) == 1 and readers[0].op_type in _TRANSPARENT and makes_output(readers[0].outputs[0])


def _with_tables_of(targets: list[Target], kept: list[KeptLayer]) -> tuple[list[Target], list[KeptLayer]]:
    """A table that a float layer goes on reading stays float as well: its codes would be a second copy."""
    replaced = {target.node for target in targets}
    stay: list[Target] = []
    for target in targets:
        others = [use.node for use in target.weight.uses() if use.node.op_type != "Transpose"]
        if target.kind == "embedding" and any(n not in replaced and n.op_type in _products() for n in others):
            kept.append(_keep(target.node, "a float layer reads the same table"))
        else:
            stay.append(target)
    return stay, kept


def _products() -> set[str]:
    return {op_type for _, op_type in OPERATORS if op_type != "Gather"}


def _keep(node: ir.Node, reason: str) -> KeptLayer:
    return KeptLayer(name=str(node.name), op_type=node.op_type, reason=reason)


def _compiled(patterns: Iterable[str], nodes: Sequence[ir.Node], flag: str) -> list[re.Pattern[str]]:
    """Compile the patterns; each must match the name of a node whose operator can be quantized."""
    names = [str(n.name) for n in nodes if (n.domain, n.op_type) in OPERATORS]
    return _patterns(patterns, names, flag)


def _patterns(patterns: Iterable[str], names: Sequence[str], flag: str) -> list[re.Pattern[str]]:
    compiled = []
    for text in patterns:
        try:
            pattern = re.compile(text)
        except re.error as error:
            raise UsageError(f"{flag} '{text}' is no regular expression: {error}") from error
        if not any(pattern.search(name) for name in names):
            near = _nearest(text, names)
            raise UsageError(f"{flag} '{text}' matches no node that can be quantized; nearest names: {near}")
        compiled.append(pattern)
    return compiled


def left_out(model: ir.Model, options: QuantizeOptions) -> dict[str, str]:
    """Names of nodes, of any operator, that patterns keep as they are -> why.

    For schemes that change the whole graph.

    Raises:
        UsageError: a pattern that matches none.
    """
    names = [str(node.name) for node in model.graph]
    include = _patterns(options.include, names, "--include")
    exclude = _patterns(options.exclude, names, "--exclude")
    found = {name: "not included by pattern" for name in names if include and not _any(include, name)}
    return found | {name: "excluded by pattern" for name in names if _any(exclude, name)}


def _any(patterns: Sequence[re.Pattern[str]], name: str) -> bool:
    return any(pattern.search(name) for pattern in patterns)


def listed(path: Path | None) -> tuple[str, ...]:
    """Patterns of an exclusion file, one a line; blank lines and those that begin with # say nothing.

    Raises:
        InputError: the file cannot be read.
    """
    if path is None:
        return ()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"--exclude-from {path}: is no text in UTF-8") from error
    except OSError as error:
        raise InputError(f"--exclude-from {path}: cannot be read: {error.strerror}") from error
    return tuple(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))


def _nearest(text: str, names: Sequence[str]) -> str:
    """The three names with the longest part in common with the pattern's plain text."""
    plain = re.sub(r"[\\^$()\[\]?*+|]", "", text)

    def common(name: str) -> tuple[int, int]:
        match = difflib.SequenceMatcher(None, plain, name, autojunk=False).find_longest_match()
        return -match.size, len(name)

    return ", ".join(sorted(names, key=common)[:3]) or "none"


def _op_types(asked: Sequence[str], scheme: Scheme) -> frozenset[str]:
    rows = OPERATORS.values()
    if not asked:
        return frozenset(operator.op_type for operator in rows if scheme.way in operator.default_for)
    known = sorted({operator.op_type for operator in rows if scheme.way in operator.possible_for})
    for name in asked:
        if name not in known:
            exists = any(operator.op_type == name for operator in rows)
            what = f"{scheme.name} does not quantize" if exists else "unknown operator type"
            raise UsageError(f"{what} '{name}' in --op-types: {suggestion(name, known)}")
    return frozenset(asked)


def _inner_layers(nodes: Iterable[ir.Node]) -> Iterator[ir.Node]:
    """Layers in branches and loops (If, Loop, Scan), which stay as they are; those of experts are not."""
    for outer in nodes:
        for graph in () if _is_layer(outer) else subgraphs(outer):
            yield from filter(_is_layer, graph)
            yield from _inner_layers(graph)


def _is_layer(node: ir.Node) -> bool:
    row = OPERATORS.get((node.domain, node.op_type))
    return row is not None and isinstance(row.recognize(node), Target)


def _nothing(kept: Sequence[KeptLayer], wishes: _Wishes) -> str:
    if not kept:
        return "nothing to quantize: no MatMul, Gemm, Attention, Gather or Conv of the graph has fp32 weights"
    first = kept[0]
    text = f"nothing left to quantize: {len(kept)} layers stay float (first: '{first.name}', {first.reason})"
    if first.op_type in wishes.types or wishes.asked:
        return text
    able = [name for name, scheme in SCHEMES.items() if first.op_type in _op_types((), scheme)]
    return f"{text}; {', '.join(able)} quantize {first.op_type}" if able else text
