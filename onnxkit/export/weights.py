"""A checkpoint's tensors under the names that the model gives them, read only when they are written."""

from __future__ import annotations

import copy
import json
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.pytorch_utils import Conv1D

from onnxkit.export.packed import PackedWeight
from onnxkit.export.packed_checkpoint import Packing, packed_weights

_DTYPES = {
    "F64": ir.DataType.DOUBLE,
    "F32": ir.DataType.FLOAT,
    "F16": ir.DataType.FLOAT16,
    "BF16": ir.DataType.BFLOAT16,
    "I64": ir.DataType.INT64,
    "I32": ir.DataType.INT32,
    "I16": ir.DataType.INT16,
    "I8": ir.DataType.INT8,
    "U8": ir.DataType.UINT8,
    "BOOL": ir.DataType.BOOL,
}


class Weights(Protocol):
    """Where a graph's initializers get their content."""

    def tensor(self, names: Iterable[str]) -> ir.TensorProtocol | None:
        """The tensor under the first of these names (tied parameters have several) that there is."""
        ...


def safetensors_tensors(files: Iterable[Path]) -> dict[str, ir.ExternalTensor]:
    """Every tensor of these files, mapped, not read. The files have passed `safety.check_checkpoint`."""
    tensors: dict[str, ir.ExternalTensor] = {}
    for file in files:
        real = file.resolve()
        with real.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
        for name, entry in header.items():
            if name != "__metadata__" and entry["dtype"] in _DTYPES:
                tensors[name] = _mapped(real, name, entry, 8 + length)
    return tensors


def _mapped(file: Path, name: str, entry: Mapping[str, Any], base: int) -> ir.ExternalTensor:
    start, end = entry["data_offsets"]
    return ir.ExternalTensor(
        file.name,
        base + start,
        end - start,
        _DTYPES[entry["dtype"]],
        shape=ir.Shape(entry["shape"]),
        name=name,
        base_dir=file.parent,
    )


class StreamedWeights:
    """Safetensors files seen through transformers' own renaming of checkpoint keys.

    Keys that transformers would merge or split (not only rename) are left out: `complete` is then
    False, and the loaded model has to give the weights.

    Attributes:
        packed: the weights that are quantized (`packing`), by the model's name; `tensor` decodes them.
        merged: the quantized ones that transformers would merge or split.
    """

    def __init__(self, files: Iterable[Path], model: PreTrainedModel, packing: Packing | None = None) -> None:
        conversions = get_model_conversion_mapping(model)
        renamings = [c for c in conversions if isinstance(c, WeightRenaming)]
        converters = [c for c in conversions if isinstance(c, WeightConverter)]
        expected = model.state_dict()
        self.complete = True
        self.packed: dict[str, PackedWeight] = {}
        self.merged: list[str] = []
        self._tensors: dict[str, ir.TensorProtocol] = {}
        self._by_key: dict[str, ir.TensorProtocol] = {**safetensors_tensors(files)}
        quantized: Mapping[str, PackedWeight] = {}
        if packing is not None:
            quantized, rest = packed_weights(self._by_key, packing)
            self._by_key = {**dict.fromkeys(quantized), **rest}  # type: ignore[dict-item]
        for key in self._by_key:
            name, merged = rename_source_key(key, renamings, converters, model.base_model_prefix, expected)
            if key in quantized:
                self._by_key[key] = quantized[key].tensor(name, turned=_by_columns(model, name))
            self.complete &= merged is None
            if merged is None:
                self._tensors[name] = self._by_key[key]
                if key in quantized:
                    self.packed[name] = quantized[key]
            elif key in quantized:
                self.merged.append(key)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Everything, decoded and read, under the checkpoint's own keys: what transformers can load."""
        return {key: _as_torch(tensor) for key, tensor in self._by_key.items()}

    def tensor(self, names: Iterable[str]) -> ir.TensorProtocol | None:
        """As the protocol says."""
        return next((self._tensors[name] for name in names if name in self._tensors), None)


def _by_columns(model: PreTrainedModel, name: str) -> bool:
    """Whether the parameter belongs to GPT-2's linear module, whose weights are `[K, N]`."""
    try:
        return isinstance(model.get_submodule(name.rpartition(".")[0]), Conv1D)
    except AttributeError:  # a layer that the config leaves out
        return False


def _as_torch(tensor: ir.TensorProtocol) -> torch.Tensor:
    array = np.array(tensor.numpy())
    if tensor.dtype == ir.DataType.BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


class LoadedWeights:
    """The weights of a model that transformers loaded; `missing` names those that it had to make up."""

    def __init__(self, model: torch.nn.Module, missing: Iterable[str] = ()) -> None:
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self._tensors = {**dict(model.named_buffers()), **parameters}
        for name in missing:
            self._tensors.pop(name, None)

    def tensor(self, names: Iterable[str]) -> ir.TensorProtocol | None:
        """As the protocol says."""
        found = next((self._tensors[name] for name in names if name in self._tensors), None)
        return None if found is None else TorchTensor(found.detach())


class DerivedWeights:
    """Parameters that checkpoints leave out because the class computes them (Marian's sinusoidal positions),
    made by the model's own initialization; everything else comes from `stored`.
    """

    def __init__(self, stored: Weights, model: PreTrainedModel) -> None:
        self._stored, self._model = stored, model
        self._patterns = [re.compile(each) for each in model._keys_to_ignore_on_load_missing or ()]

    def tensor(self, names: Iterable[str]) -> ir.TensorProtocol | None:
        """As the protocol says."""
        names = list(names)
        found = self._stored.tensor(names)
        left_out = [name for name in names if any(pattern.search(name) for pattern in self._patterns)]
        return self._made(left_out[0]) if found is None and left_out else found

    def _made(self, name: str) -> ir.TensorProtocol | None:
        path, _, parameter = name.rpartition(".")
        module = copy.deepcopy(self._model.get_submodule(path)).to_empty(device="cpu")
        getattr(module, parameter).data.fill_(torch.nan)
        model: Any = self._model
        with torch.no_grad():
            model._init_weights(module)
        made = getattr(module, parameter).detach()
        return None if made.isnan().any() else TorchTensor(made)


def tied_names(model: torch.nn.Module) -> dict[str, list[str]]:
    """For every parameter name all names of the same parameter, itself first."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return {name: [name, *(n for n in group if n != name)] for group in groups.values() for name in group}


def attach(
    graph: ir.Graph,
    weights: Weights,
    *,
    buffers: Mapping[str, torch.Tensor],
    ties: Mapping[str, list[str]],
    prefix: str,
    keep_prefix: bool = False,
) -> list[str]:
    """Give every initializer below `prefix` its content, and (unless `keep_prefix`) its name
    without the prefix.

    A tensor of another float type than the graph's is cast when it is written.

    Returns:
        the names of the parameters that the checkpoint does not hold.
    """
    missing: list[str] = []
    for full_name, value in list(graph.initializers.items()):
        if not full_name.startswith(prefix):
            continue
        if not value.uses():
            del graph.initializers[full_name]
            continue
        name = full_name.removeprefix(prefix)
        found = weights.tensor(ties.get(name, [name]))
        if found is None and name in buffers:
            found = TorchTensor(buffers[name])
        if found is None and _has_content(value):  # a constant that the trace made
            found = value.const_value
        if found is None:
            missing.append(name)
            continue
        _check_shape(value, found, name)
        value.const_value = _readable(found, value.dtype or found.dtype, name)
        value.name = full_name if keep_prefix else name
    return missing


def _has_content(value: ir.Value) -> bool:
    raw = getattr(value.const_value, "raw", None)
    return isinstance(raw, torch.Tensor) and raw.device.type != "meta"


def _check_shape(value: ir.Value, found: ir.TensorProtocol, name: str) -> None:
    wanted = tuple(value.shape or ())
    if tuple(found.shape) != wanted:
        raise WrongShape(name, tuple(found.shape), wanted)


class WrongShape(Exception):
    """A tensor of the checkpoint that does not fit its config."""

    def __init__(self, name: str, found: tuple[Any, ...], wanted: tuple[Any, ...]) -> None:
        super().__init__(f"{name} is {list(found)}, the config says {list(wanted)}")


def _readable(tensor: ir.TensorProtocol, dtype: ir.DataType, name: str) -> ir.LazyTensor:
    return ir.LazyTensor(
        _reader(tensor, dtype, name), dtype=dtype, shape=ir.Shape(tensor.shape.numpy()), name=name
    )


def _reader(tensor: ir.TensorProtocol, dtype: ir.DataType, name: str) -> Callable[[], ir.TensorProtocol]:
    def read() -> ir.TensorProtocol:
        array = np.asarray(tensor.numpy())
        cast = array if tensor.dtype == dtype else array.astype(np.float32).astype(dtype.numpy())
        return ir.tensor(np.ascontiguousarray(cast).reshape(array.shape), dtype=dtype, name=name)

    return read
