"""One external data file for the graphs of a directory, in which equal tensors stand once."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxkit.errors import ResourceError

_LARGE_BYTES, _PAGE, _LINE = 1 << 20, 4096, 64


class SharedData:
    """Appends tensors to one file and hands back where they stand.

    Tensors are told apart by type, shape and a BLAKE2b digest of their bytes, not by name: an embedding
    that an encoder and a decoder share, and a projection tied to it, are found whatever the graphs call
    them. A file is written by one `SharedData` from its start.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._places: dict[bytes, int] = {}
        self._end = 0

    def place(self, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
        """Write `tensor`, unless an equal one stands there, and return its reference.

        Raises:
            ResourceError: the file cannot be written.
        """
        array = np.ascontiguousarray(tensor.numpy())
        data = array.reshape(-1).view(np.uint8).data if array.size else memoryview(b"")
        header = f"{tensor.dtype.name}{tuple(tensor.shape.numpy())}".encode()
        key = hashlib.blake2b(data, digest_size=32, salt=hashlib.blake2b(header, digest_size=16).digest())
        offset = self._places.get(key.digest())
        if offset is None:
            offset = self._places[key.digest()] = self._append(data)
        return ir.ExternalTensor(
            self.path.name, offset, len(data), tensor.dtype, shape=ir.Shape(tensor.shape.numpy()),
            name=tensor.name or "", base_dir=self.path.parent,
        )  # fmt: skip

    def mark(self) -> int:
        """Where the file ends now: what `rewind` takes."""
        return self._end

    def rewind(self, mark: int) -> None:
        """Forget, and cut off, everything that was written since `mark`."""
        self._places = {key: offset for key, offset in self._places.items() if offset < mark}
        self._end = mark
        if self.path.exists():
            with self.path.open("r+b") as file:
                file.truncate(mark)

    def _append(self, data: memoryview) -> int:
        alignment = _PAGE if len(data) >= _LARGE_BYTES else _LINE
        offset = -(-self._end // alignment) * alignment
        try:
            with self.path.open("r+b" if self._end else "wb") as file:
                file.seek(offset)
                file.write(data)
        except OSError as error:
            raise ResourceError(f"{self.path.name} cannot be written: {error.strerror or error}") from error
        self._end = offset + len(data)
        return offset
