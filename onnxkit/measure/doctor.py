"""What is installed here, what of it works, and what to do about the rest."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata

from onnxkit import __version__, machine
from onnxkit.errors import EnvironmentProblem
from onnxkit.report import Report
from onnxkit.runtime import RuntimeOptions, import_onnxruntime, open_session, opset_ceiling
from onnxkit.runtime.ceiling import tiny_model
from onnxkit.runtime.cuda import CudaState, examine_cuda
from onnxkit.runtime.library import TELEMETRY_VARIABLE, installed_wheels
from onnxkit.runtime.providers import CUDA

# distribution -> the extra that brings it ("" is the base package).
_PACKAGES = {
    "onnx": "", "onnx-ir": "", "onnxscript": "", "numpy": "", "tokenizers": "", "pillow": "", "jinja2": "",
    "psutil": "", "typer": "", "rich": "", "torch": "export", "transformers": "export", "optimum": "export",
    "safetensors": "export", "huggingface-hub": "export", "pyarrow": "data",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Package:
    """A distribution that onnxkit uses; `version` is None where it is missing."""

    name: str
    version: str | None
    extra: str


@dataclass(frozen=True, kw_only=True)
class Provider:
    """An execution provider that this ONNX Runtime lists, and whether it really runs a model."""

    name: str
    usable: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class CudaReport:
    """What of CUDA is here; see `runtime.cuda.CudaState`."""

    built_for: str
    driver: str
    devices: int
    libraries_found: tuple[str, ...]
    libraries_missing: tuple[str, ...]
    install: str


@dataclass(frozen=True, kw_only=True)
class DoctorReport(Report):
    """The state of this installation and machine.

    Attributes:
        onnxruntime_wheels: installed ONNX Runtime distributions and versions (two are a problem).
        opset, ir: the newest that the installed ONNX Runtime takes; None where it does not import.
        telemetry: "off" with the reason; onnxkit switches it off before it imports ONNX Runtime.
        saturates: whether u8 x s8 products can saturate on this CPU: int8 scales must then allow for it.
        load_average: runnable tasks over the last minute.
        advice: what to mend, each with the command that does it.
    """

    onnxkit: str
    python: str
    platform: str
    packages: tuple[Package, ...]
    onnxruntime_wheels: Mapping[str, str]
    onnxruntime: str | None
    opset: int | None
    ir: int | None
    providers: tuple[Provider, ...]
    cuda: CudaReport | None
    telemetry: str
    cpu: str
    isa: tuple[str, ...]
    vnni: bool
    saturates: bool
    cores: int
    cores_source: str
    memory_total_bytes: int
    memory_available_bytes: int
    load_average: float
    advice: tuple[str, ...]


def examine() -> DoctorReport:
    """Look at everything; a missing or broken ONNX Runtime is reported, not raised."""
    # Looked at first: importing ONNX Runtime sets the variable for this process.
    telemetry = _telemetry()
    packages = tuple(_package(name, extra) for name, extra in _PACKAGES.items())
    broken = ""
    version, ceiling, cuda = None, None, None
    providers: tuple[Provider, ...] = ()
    try:
        version = str(import_onnxruntime().__version__)
        cuda = examine_cuda()
        providers = _providers()
        ceiling = opset_ceiling()
    except EnvironmentProblem as problem:
        broken = str(problem)
    cpu, cores, memory, load = machine.cpu(), machine.usable_cores(), machine.memory(), machine.load()
    return DoctorReport(
        onnxkit=__version__,
        python=f"{platform.python_version()} ({sys.executable})",
        platform=platform.platform(),
        packages=packages,
        onnxruntime_wheels=installed_wheels(),
        onnxruntime=version,
        opset=ceiling.opset if ceiling else None,
        ir=ceiling.ir if ceiling else None,
        providers=providers,
        cuda=_cuda_report(cuda) if cuda and cuda.provider_built_in else None,
        telemetry=telemetry,
        cpu=cpu.model,
        isa=cpu.isa,
        vnni=cpu.vnni,
        saturates=cpu.saturates,
        cores=cores.count,
        cores_source=cores.source,
        memory_total_bytes=memory.total_bytes,
        memory_available_bytes=memory.available_bytes,
        load_average=load.average,
        advice=_advice(broken, packages, cuda, load),
    )


def _package(name: str, extra: str) -> Package:
    try:
        version: str | None = metadata.version(name)
    except metadata.PackageNotFoundError:
        version = None
    return Package(name=name, version=version, extra=extra)


def _telemetry() -> str:
    if os.environ.get(TELEMETRY_VARIABLE) == "1":
        return f"off ({TELEMETRY_VARIABLE}=1 in the environment)"
    return f"off (onnxkit sets {TELEMETRY_VARIABLE}=1 before it imports onnxruntime)"


def _providers() -> tuple[Provider, ...]:
    """Run a model of one node on every provider that ONNX Runtime lists or a plug-in brings."""
    ort = import_onnxruntime()
    names = dict.fromkeys([*ort.get_available_providers(), *(each.ep_name for each in ort.get_ep_devices())])
    return tuple(_try(name) for name in names)


def _try(name: str) -> Provider:
    try:
        open_session(tiny_model(ir=8, opset=17), RuntimeOptions(ep=name, threads=1))
    except EnvironmentProblem as problem:
        return Provider(name=name, usable=False, reason=str(problem))
    return Provider(name=name, usable=True, reason="")


def _cuda_report(state: CudaState) -> CudaReport:
    return CudaReport(
        built_for=state.cuda_version,
        driver=state.driver,
        devices=state.devices,
        libraries_found=state.found,
        libraries_missing=state.missing,
        install=state.install if state.missing else "",
    )


def _advice(
    broken: str, packages: tuple[Package, ...], cuda: CudaState | None, load: machine.Load
) -> tuple[str, ...]:
    advice: list[str] = [broken] if broken else []
    wheels = installed_wheels()
    if len(wheels) > 1 and cuda is not None:
        advice.append(f"{' and '.join(wheels)} are both installed and overwrite each other: {cuda.reinstall}")
    elif cuda is not None and cuda.devices and cuda.problem:
        advice.append(f"{CUDA}: {cuda.problem}")
    missing: dict[str, list[str]] = {}
    for package in packages:
        if package.version is None:
            missing.setdefault(package.extra, []).append(package.name)
    for extra, names in missing.items():
        line = f'pip install "onnxkit[{extra}]"' if extra else f"pip install {' '.join(names)}"
        use = f"for the extra {extra}" if extra else "of the base package"
        advice.append(f"{', '.join(names)} {use} missing: {line}")
    if load.average > load.cores * 0.5:
        advice.append(f"load average {load.average:.1f} on {load.cores} cores: times measured now are noisy")
    return tuple(advice)
