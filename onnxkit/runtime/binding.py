"""IO binding: a session's inputs and outputs stay where they are between runs.

A decoder has dozens of cache tensors; handing them over as arrays costs more than a step of a small
model. Here each is bound once, by its address, and only what changed is bound again. ONNX
Runtime's raw binding is used, since its Python wrapper does checks for every tensor of every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from onnxkit.errors import InputError, ResourceError
from onnxkit.runtime.denormals import float_state
from onnxkit.runtime.failures import run_failure
from onnxkit.runtime.interrupt import terminable
from onnxkit.runtime.library import LOG_FATAL, import_onnxruntime
from onnxkit.runtime.options import TensorSpec
from onnxkit.runtime.providers import CUDA

if TYPE_CHECKING:
    import numpy as np

    from onnxkit.runtime.session import Session

# onnx.proto's TensorProto.DataType, and numpy's type of the same bits.
_TYPES = {
    "float32": (1, "float32"), "uint8": (2, "uint8"), "int8": (3, "int8"), "int32": (6, "int32"),
    "int64": (7, "int64"), "bool": (9, "bool"), "float16": (10, "float16"), "float64": (11, "float64"),
    "bfloat16": (16, "uint16"),
}  # fmt: skip


def bits_dtype(dtype: str) -> str:
    """Return numpy's name for the memory of `dtype`: itself, or uint16 for bfloat16."""
    return _type(dtype)[1]


class Buffer:
    """Memory for one tensor that runs read and write in place: numpy's, or an OrtValue on a device.

    Attributes:
        dtype: TensorSpec's name; the memory of bfloat16 is uint16.
        shape: its dimensions; a binding may use the first rows alone.
        address: of its first byte, where the session computes.
    """

    def __init__(self, session: Session, shape: Sequence[int], dtype: str) -> None:
        """Allocate zeros (on a CPU the pages cost nothing until they are written)."""
        import numpy as np

        self.dtype = dtype
        self.shape = tuple(shape)
        try:
            zeros = np.zeros(self.shape, bits_dtype(dtype))
        except MemoryError as error:
            raise ResourceError(f"{session.model}: no memory for a tensor of {self.shape} {dtype}") from error
        self._array: np.ndarray[Any, Any] | None = None
        self._value: Any = None
        if session.device == "cpu":
            self._array = zeros
            self.address = int(zeros.ctypes.data)
        else:
            values = import_onnxruntime().OrtValue
            self._value = values.ortvalue_from_numpy(zeros, session.device, session.device_id)
            self.address = int(self._value.data_ptr())

    def host(self) -> np.ndarray[Any, Any]:
        """Return the content: on a CPU the memory itself, from a device a copy (give it to `put`)."""
        if self._array is not None:
            return self._array
        import numpy as np

        return np.array(self._value.numpy())

    def put(self, content: np.ndarray[Any, Any]) -> None:
        """Write `content`, of the buffer's shape, back; nothing to do for `host()` of a CPU."""
        if self._array is None:
            self._value.update_inplace(content)
        elif content is not self._array:
            self._array[...] = content


class Binding:
    """A session with bound inputs and outputs. Make one with `Session.binding()`.

    On a CPU nothing is copied: a bound array is read and written where it lies, and changing its
    content needs no new binding. On a device `feed` copies at once: feed again what changed.
    """

    def __init__(self, session: Session, handle: Any) -> None:
        """Bind nothing yet; `handle` is ONNX Runtime's own session."""
        ort = import_onnxruntime()
        self.session = session
        self._handle = handle._sess
        self._raw = handle.io_binding()._iobinding
        self._host = ort.OrtDevice.make("cpu", 0)._get_c_device()
        self._device = ort.OrtDevice.make(session.device, session.device_id)._get_c_device()
        self._run_options = ort.RunOptions
        self._vector = ort.capi.onnxruntime_pybind11_state.OrtValueVector
        self._specs = {spec.name: spec for spec in (*session.inputs, *session.overridable)}
        self._out_specs = {spec.name: spec for spec in session.outputs}
        self._kept: dict[str, Any] = {}
        self._order: dict[str, None] = {}  # as first bound: that of the results

    def feed(self, name: str, array: np.ndarray[Any, Any]) -> None:
        """Bind a C-contiguous host array of the input's dtype (bfloat16: uint16 bits)."""
        shape, code = list(array.shape), _type(self._spec(name).dtype)[0]
        self._kept[name] = array
        self._raw.bind_input(name, self._host, code, shape, array.ctypes.data)

    def feed_buffer(self, name: str, buffer: Buffer, shape: Sequence[int]) -> None:
        """Bind the first elements of `buffer` as an input of `shape`."""
        self._kept[name] = buffer
        self._raw.bind_input(name, self._device, _type(buffer.dtype)[0], list(shape), buffer.address)

    def feed_value(self, name: str, value: Any) -> None:
        """Bind an output of another run or binding (`values()`): it is neither copied nor moved."""
        self._kept.pop(name, None)
        self._raw.bind_ortvalue_input(name, value)

    def fetch(self, name: str, array: np.ndarray[Any, Any]) -> None:
        """Let the run write the output into `array`, C-contiguous and of exactly its shape."""
        self._listed(name)
        self._kept[name] = array
        code = _type(self._out_specs[name].dtype)[0]
        self._raw.bind_output(name, self._host, code, list(array.shape), array.ctypes.data)

    def fetch_buffer(self, name: str, buffer: Buffer, shape: Sequence[int]) -> None:
        """Let the run write the output into the first elements of `buffer`, as `shape`."""
        self._listed(name)
        self._kept[name] = buffer
        self._raw.bind_output(name, self._device, _type(buffer.dtype)[0], list(shape), buffer.address)

    def fetch_value(self, name: str) -> None:
        """Let ONNX Runtime allocate the output where it computes; `values()` has it after the run.

        Call it before every run: else the next one writes into the value of the last.
        """
        self._listed(name)
        self._kept.pop(name, None)
        self._raw.bind_output(name, self._device)

    def run(self) -> None:
        """Run the model once.

        Raises:
            InputError: shapes that a node cannot take.
            ResourceError: out of memory.
            KeyboardInterrupt: Ctrl-C; the run ends within the node that it was at, and what it was
                writing is undefined.
        """
        options = self._run_options()
        options.log_severity_level = LOG_FATAL
        try:
            with terminable(options), float_state(denormals_as_zero=True):
                if self.session.device != "cpu":
                    self._raw.synchronize_inputs()  # `feed` copies asynchronously
                self._handle.run_with_iobinding(self._raw, options)
        except Exception as error:  # pybind classes without a common base
            if options.terminate:
                raise KeyboardInterrupt from error
            raise run_failure(error, self.session.model) from error

    def values(self) -> dict[str, Any]:
        """Return the outputs of the last run by name, as ONNX Runtime's values, which outlive other runs."""
        held = self._vector()  # the elements of get_outputs() are overwritten by the next run
        for value in self._raw.get_outputs():
            held.push_back(value)
        return {name: held[position] for position, name in enumerate(self._order)}

    def _listed(self, name: str) -> None:
        if name not in self._order:
            if name not in self._out_specs:
                has = ", ".join(self._out_specs)
                raise InputError(f"{self.session.model}: no output {name}; it has {has}")
            self._order[name] = None

    def _spec(self, name: str) -> TensorSpec:
        if name not in self._specs:
            raise InputError(f"{self.session.model}: no input {name}; it takes {', '.join(self._specs)}")
        return self._specs[name]


def array_of(value: Any, dtype: str) -> np.ndarray[Any, Any]:
    """Return the content of ONNX Runtime's value as a host array: a view on a CPU, else a copy.

    bfloat16 comes as uint16 bits (numpy has no such type).
    """
    if dtype != "bfloat16":
        array: np.ndarray[Any, Any] = value.numpy()
        return array
    import ctypes

    import numpy as np

    shape = tuple(value.shape())
    count = int(np.prod(shape, dtype=np.int64))
    if not count:
        return np.zeros(shape, np.uint16)
    raw = (ctypes.c_uint16 * count).from_address(value.data_ptr())
    return np.ctypeslib.as_array(raw).reshape(shape).copy()


def device_of(provider: str, options: dict[str, str]) -> tuple[str, int]:
    """Return where a provider keeps its tensors: ("cuda", 0), or ("cpu", 0) for all others."""
    if provider == CUDA:
        return "cuda", int(options.get("device_id", "0") or 0)
    return "cpu", 0


def _type(dtype: str) -> tuple[int, str]:
    if dtype not in _TYPES:
        raise InputError(f"a tensor of {dtype}, which cannot be bound")
    return _TYPES[dtype]
