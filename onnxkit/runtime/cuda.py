"""Why CUDA cannot be used here, and what to do about it."""

from __future__ import annotations

import contextlib
import ctypes
import io
import platform
from dataclasses import dataclass
from typing import Any

from onnxkit.runtime.library import import_onnxruntime, installed_wheels
from onnxkit.runtime.providers import CUDA

# What libonnxruntime_providers_cuda.so links to or loads, by CUDA major version ({0}).
_LIBRARIES = (
    "libcudart.so.{0}", "libcublasLt.so.{0}", "libcublas.so.{0}", "libcurand.so.10",
    "libcufft.so.{1}", "libcudnn.so.9",
)  # fmt: skip
_CUFFT_OF = {12: 11, 13: 12}


@dataclass(frozen=True, kw_only=True)
class CudaState:
    """What of CUDA is here.

    Attributes:
        wheels: installed ONNX Runtime distributions and versions.
        provider_built_in: whether this ONNX Runtime was built with the CUDA provider.
        cuda_version: the CUDA version that it was built for ("13.0"), "" for none.
        found: CUDA libraries that load; `missing`: the others.
        driver: what the driver says: "ok", or the reason why not.
        devices: number of CUDA devices.
    """

    wheels: dict[str, str]
    provider_built_in: bool
    cuda_version: str
    found: tuple[str, ...]
    missing: tuple[str, ...]
    driver: str
    devices: int

    @property
    def problem(self) -> str:
        """Why CUDA cannot work, with the way out; "" when no reason is seen."""
        if len(self.wheels) > 1:
            names = " and ".join(self.wheels)
            return f"{names} are both installed and overwrite each other: {self.reinstall}"
        if not self.provider_built_in:
            name = next(iter(self.wheels), "this onnxruntime")
            return f"{name} is built without CUDA: {self.reinstall}"
        reasons = []
        if self.driver != "ok":
            reasons.append(
                f"{self.driver}: install NVIDIA's driver, or give the container its GPUs (--gpus all)"
            )
        if self.missing:
            reasons.append(f"{', '.join(self.missing)} cannot be loaded: {self.install}")
        return "; ".join(reasons)

    @property
    def install(self) -> str:
        """The pip line that installs the missing CUDA libraries."""
        version = self.wheels.get("onnxruntime-gpu")
        return f'pip install "onnxruntime-gpu[cuda,cudnn]{"==" + version if version else ""}"'

    @property
    def reinstall(self) -> str:
        """The pip line that replaces whatever is installed by the GPU wheel alone."""
        return f'pip uninstall -y {" ".join(self.wheels)} && pip install "onnxruntime-gpu[cuda,cudnn]"'


def preload_cuda(ort: Any) -> None:
    """Load the CUDA libraries of the nvidia-* wheels, where they are; its own prints are dropped."""
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()


def examine_cuda() -> CudaState:
    """Look at wheels, driver and libraries; create no session."""
    ort = import_onnxruntime()
    preload_cuda(ort)
    version = str(getattr(ort, "cuda_version", "") or "")
    major = int(version.split(".")[0]) if version.split(".")[0].isdigit() else 0
    found: list[str] = []
    missing: list[str] = []
    if major and platform.system() == "Linux":
        for pattern in _LIBRARIES:
            name = pattern.format(major, _CUFFT_OF.get(major, major - 1))
            (found if _loads(name) else missing).append(name)
    driver, devices = _driver()
    return CudaState(
        wheels=installed_wheels(),
        provider_built_in=CUDA in ort.get_available_providers(),
        cuda_version=version,
        found=tuple(found),
        missing=tuple(missing),
        driver=driver,
        devices=devices,
    )


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def _driver() -> tuple[str, int]:
    """Return ("ok", devices), or the reason why the driver gives none (CUDA driver API)."""
    name = "nvcuda.dll" if platform.system() == "Windows" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return f"no NVIDIA driver ({name} not found)", 0
    if error := driver.cuInit(0):
        reasons = {100: "it sees no device", 803: "it does not match the kernel module"}
        return f"the NVIDIA driver does not start (cuInit: {reasons.get(error, f'error {error}')})", 0
    count = ctypes.c_int(0)
    if driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return "the NVIDIA driver sees no GPU", 0
    return "ok", count.value
