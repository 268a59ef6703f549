"""What a model directory or an ONNX file holds, read from its protobuf alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from onnxkit.artifact import HistoryEntry, ModelDir, Verification
from onnxkit.artifact.specs import input_specs, output_specs
from onnxkit.measure.weight_census import Census, take_census, type_name
from onnxkit.report import Report
from onnxkit.runtime import TensorSpec
from onnxkit.safety import read_model
from onnxkit.safety.onnx_walk import all_nodes

REGION_KEY, OPERATOR_KEY = "onnxkit.region", "onnxkit.op"


@dataclass(frozen=True, kw_only=True)
class QuantizedShare:
    """How much of the matrix products and convolutions with stored weights is quantized.

    Attributes:
        nodes: quantized ones of `linear_nodes`.
        linear_nodes: matrix products and convolutions with a stored weight.
        parameters: weights stored as integers, of `linear_parameters`.
        linear_parameters: all weights of those nodes.
        share: parameters / linear_parameters; 0 where there are none.
        bits_per_weight: of those stored as integers, with scales and zero points; 0 where there are none.
        layers: bits of a code, by the name of the quantized node.
    """

    nodes: int
    linear_nodes: int
    parameters: int
    linear_parameters: int
    share: float
    bits_per_weight: float
    layers: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class ComponentReport:
    """One graph of a directory.

    Attributes:
        name: the component ("model").
        file: its file, relative to the directory.
        inputs: names, dtypes and shapes that a caller feeds.
        outputs: what comes back.
        opsets: version by operator set; "" is written "ai.onnx".
        ir_version: version of the file format.
        producer: name and version of the tool that wrote it.
        parameters: number of weights.
        weight_bytes: bytes of all initializers.
        bytes_by_dtype: the same, by dtype.
        bytes_by_operator: the same, by the operator type that uses them, as in `nodes_by_type`.
        nodes: total number of nodes, those in subgraphs and functions included.
        nodes_by_type: the same, by type; other domains than ONNX's own are prefixed.
        fused: nodes of ONNX Runtime's own operators, by type.
        regions: annotated regions that are still primitive, by operator.
        quantized: the quantized share.
    """

    name: str
    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opsets: Mapping[str, int]
    ir_version: int
    producer: str
    parameters: int
    weight_bytes: int
    bytes_by_dtype: Mapping[str, int]
    bytes_by_operator: Mapping[str, int]
    nodes: int
    nodes_by_type: Mapping[str, int]
    fused: Mapping[str, int]
    regions: Mapping[str, int]
    quantized: QuantizedShare


@dataclass(frozen=True, kw_only=True)
class InspectReport(Report):
    """What `inspect` found.

    Attributes:
        path: what was inspected.
        task: task name, or None where it cannot be told.
        size_bytes: of all files.
        files: size in bytes by relative name.
        components: one entry a graph.
        verified: the check that the last stage made, if it made one.
        history: the stages that the model went through, oldest first.
    """

    path: str
    task: str | None
    size_bytes: int
    files: Mapping[str, int]
    components: tuple[ComponentReport, ...]
    verified: Verification | None
    history: tuple[HistoryEntry, ...]


def inspect_model(path: Path) -> InspectReport:
    """Describe a model directory (ours or another tool's) or a bare ONNX file.

    Raises:
        InputError: nothing to inspect there, or a damaged file. UnsafeError: see `safety`.
    """
    directory = ModelDir.open(path)
    files = _files(path)
    return InspectReport(
        path=str(path),
        task=directory.task,
        size_bytes=sum(files.values()),
        files=files,
        components=tuple(
            _component(name, directory.path, component.file)
            for name, component in directory.components.items()
        ),
        verified=directory.manifest.verified if directory.manifest else None,
        history=directory.manifest.history if directory.manifest else (),
    )


def _files(path: Path) -> dict[str, int]:
    if path.is_file():
        return {path.name: path.stat().st_size}
    return {str(f.relative_to(path)): f.stat().st_size for f in sorted(path.rglob("*")) if f.is_file()}


def _component(name: str, root: Path, file: str) -> ComponentReport:
    model = read_model(root / file)
    census = take_census(model)
    types = Counter(type_name(node) for node in all_nodes(model))
    return ComponentReport(
        name=name,
        file=file,
        inputs=input_specs(model),
        outputs=output_specs(model),
        opsets={entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        ir_version=model.ir_version,
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        parameters=census.parameters,
        weight_bytes=census.bytes_by_dtype.total(),
        bytes_by_dtype=dict(census.bytes_by_dtype.most_common()),
        bytes_by_operator=dict(census.bytes_by_operator.most_common()),
        nodes=types.total(),
        nodes_by_type=dict(types.most_common()),
        fused=dict(_fused(model).most_common()),
        regions=_regions(model),
        quantized=_quantized(census),
    )


def _fused(model: onnx.ModelProto) -> Counter[str]:
    """Count ONNX Runtime's own operators, also the ones that it keeps in ONNX's domain."""
    return Counter(
        node.op_type
        for node in all_nodes(model)
        if node.domain.startswith("com.microsoft") or node.op_type == "SimplifiedLayerNormalization"
    )


def _regions(model: onnx.ModelProto) -> dict[str, int]:
    found: dict[str, str] = {}
    for node in all_nodes(model):
        properties = {entry.key: entry.value for entry in node.metadata_props}
        if REGION_KEY in properties:
            found[properties[REGION_KEY]] = properties.get(OPERATOR_KEY, "unknown")
    return dict(Counter(found.values()).most_common())


def _quantized(census: Census) -> QuantizedShare:
    total = census.linear_parameters
    return QuantizedShare(
        nodes=census.quantized_nodes,
        linear_nodes=census.linear_nodes,
        parameters=census.quantized_parameters,
        linear_parameters=total,
        share=census.quantized_parameters / total if total else 0.0,
        bits_per_weight=8 * census.quantized_bytes / max(1, census.quantized_parameters),
        layers=census.quantized_layers,
    )
