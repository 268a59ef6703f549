"""Checks what is fed, and carries the types that numpy does not have in and out."""

from __future__ import annotations

import ctypes
import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from onnxkit.errors import EnvironmentProblem, InputError
from onnxkit.runtime.library import import_onnxruntime
from onnxkit.runtime.options import TensorSpec, dtype_name

if TYPE_CHECKING:
    import numpy as np

# numpy has no such types: name -> (TensorProto.DataType of onnx.proto, bytes of an element).
_BEYOND_NUMPY = {
    "bfloat16": (16, 2),
    "float8_e4m3fn": (17, 1),
    "float8_e4m3fnuz": (18, 1),
    "float8_e5m2": (19, 1),
    "float8_e5m2fnuz": (20, 1),
}


def check_feeds(
    specs: Mapping[str, TensorSpec], feeds: Mapping[str, np.ndarray[Any, Any]], model: str
) -> None:
    """Raise InputError unless names, dtypes, ranks and fixed dimensions are the model's."""
    if feeds.keys() != specs.keys():
        raise InputError(f"{model}: {_names(specs, feeds)}")
    for name, array in feeds.items():
        if fault := _fault(specs[name], array):
            raise InputError(f"{model}: input {name!r} {fault}")


def _names(specs: Mapping[str, TensorSpec], feeds: Mapping[str, Any]) -> str:
    missing = [name for name in specs if name not in feeds]
    unknown = [name for name in feeds if name not in specs]
    parts = []
    if missing:
        parts.append(f"missing input {', '.join(missing)}")
    if unknown:
        choices = {name.lower(): name for name in missing or specs}
        near = difflib.get_close_matches(unknown[0].lower(), choices, n=1)
        hint = f" (did you mean {choices[near[0]]}?)" if near else ""
        parts.append(f"unknown input {', '.join(unknown)}{hint}")
    return f"{'; '.join(parts)}; it takes {', '.join(specs) or 'no inputs'}"


def _fault(spec: TensorSpec, array: np.ndarray[Any, Any]) -> str:
    """Return what is wrong with `array`, or ""."""
    dtype = getattr(array, "dtype", None)
    if dtype is None:
        return f"is a {type(array).__name__}, not a numpy array"
    if "(" in spec.dtype:
        return f"is a {spec.dtype}, which onnxkit cannot feed"
    if spec.dtype == "str":
        if dtype.kind not in "OUT":
            return f"has dtype {dtype.name}, the model takes strings"
    elif dtype.name != spec.dtype:
        return f"has dtype {dtype.name}, the model takes {spec.dtype}: use .astype({spec.dtype!r})"
    elif not dtype.isnative:
        return f"is big-endian: use .astype({spec.dtype!r})"
    return _shape_fault(spec.shape, array.shape)


def _shape_fault(wanted: Sequence[int | str | None], got: Sequence[int]) -> str:
    fits = len(wanted) == len(got) and all(
        not isinstance(want, int) or want == have for want, have in zip(wanted, got, strict=True)
    )
    # ONNX Runtime shows a tensor of unknown rank as one of rank 0, and takes any there.
    if fits or not wanted:
        return ""
    shown = ", ".join("?" if want is None else str(want) for want in wanted)
    return f"has shape {tuple(got)}, the model takes ({shown})"


def needs_values(specs: Sequence[TensorSpec]) -> bool:
    """Tell whether some type has no numpy one, so that runs must go through OrtValue."""
    return any(spec.dtype in _BEYOND_NUMPY for spec in specs)


def to_values(specs: Mapping[str, TensorSpec], feeds: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
    """Wrap arrays (those of `ml_dtypes` by their bits) as OrtValues."""
    import numpy as np

    values = import_onnxruntime().OrtValue
    wrapped: dict[str, Any] = {}
    for name, array in feeds.items():
        if specs[name].dtype in _BEYOND_NUMPY:
            code, size = _BEYOND_NUMPY[specs[name].dtype]
            bits = np.ascontiguousarray(array).view(f"u{size}").reshape(array.shape)
            wrapped[name] = values.ortvalue_from_numpy_with_onnx_type(bits, code)
        else:
            wrapped[name] = values.ortvalue_from_numpy(np.ascontiguousarray(array).reshape(array.shape))
    return wrapped


def fetch(value: Any) -> Any:
    """Return an OrtValue's array; types that numpy lacks are copied into `ml_dtypes` ones."""
    dtype = dtype_name(value.data_type())
    if dtype not in _BEYOND_NUMPY:
        return value.numpy()
    import numpy as np

    try:
        import ml_dtypes
    except ImportError as error:
        raise EnvironmentProblem(f"{dtype} outputs need ml_dtypes: pip install ml_dtypes") from error
    shape = tuple(value.shape())
    size = _BEYOND_NUMPY[dtype][1] * int(np.prod(shape, dtype=np.int64))
    raw = ctypes.string_at(value.data_ptr(), size) if size else b""
    return np.frombuffer(bytearray(raw), dtype=np.dtype(getattr(ml_dtypes, dtype))).reshape(shape)
