"""Names and options of execution providers."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from onnxkit.errors import UsageError
from onnxkit.runtime.library import import_onnxruntime

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
_SHORT = {"cpu": CPU, "cuda": CUDA}
_SUFFIX = "ExecutionProvider"

# ONNX Runtime ignores a misspelt CUDA option whenever CUDA itself fails, so the names are checked
# here. Those that hand over raw addresses (user_compute_stream, gpu_external_*) are left out.
_CUDA_OPTIONS = frozenset({
    "arena_extend_strategy", "cudnn_conv1d_pad_to_nc1d", "cudnn_conv_algo_search",
    "cudnn_conv_use_max_workspace", "device_id", "do_copy_in_default_stream", "enable_cuda_graph",
    "enable_cudnn", "enable_skip_layer_norm_strict_mode", "fuse_conv_bias", "gpu_mem_limit",
    "prefer_nhwc", "sdpa_kernel", "tunable_op_enable", "tunable_op_max_tuning_duration_ms",
    "tunable_op_tuning_enable", "use_ep_level_unified_stream", "use_tf32",
})  # fmt: skip
_INTEGERS = frozenset({"device_id", "gpu_mem_limit", "sdpa_kernel", "tunable_op_max_tuning_duration_ms"})


def provider_name(ep: str) -> str:
    """Return ONNX Runtime's full name for "cpu", "cuda" or a full name.

    Raises:
        UsageError: ONNX Runtime knows no such provider; the message offers the nearest names.
    """
    if ep in _SHORT:
        return _SHORT[ep]
    if ep in _SHORT.values():
        return ep
    ort = import_onnxruntime()
    known: dict[str, None] = dict.fromkeys([*ort.get_all_providers(), *plugin_devices(ort)])
    if ep in known:
        return ep
    choices = {**_SHORT, **{name.removesuffix(_SUFFIX).lower(): name for name in known}}
    if ep.lower() in choices:
        return choices[ep.lower()]
    spelled = {name.lower(): name for name in known} | {short: short for short in choices}
    near = difflib.get_close_matches(ep.lower(), spelled, n=3, cutoff=0.6)
    offer = [spelled[name] for name in near] or ["cpu", "cuda"]
    raise UsageError(f"unknown execution provider {ep!r}: did you mean {' or '.join(offer)}?")


def plugin_devices(ort: Any) -> dict[str, list[Any]]:
    """Return the devices of plug-in providers (those that are no part of the wheel), by provider."""
    built_in = set(ort.get_available_providers())
    devices: dict[str, list[Any]] = {}
    for device in ort.get_ep_devices():
        if device.ep_name not in built_in:
            devices.setdefault(device.ep_name, []).append(device)
    return devices


def check_provider_options(provider: str, options: Mapping[str, str]) -> None:
    """Refuse options that the provider does not have; ONNX Runtime would ignore them.

    Options of providers other than CPU and CUDA are left to the provider.

    Raises:
        UsageError: an unknown name (with the nearest ones), or no number where one is needed.
    """
    if provider not in (CPU, CUDA):
        return
    known = _CUDA_OPTIONS if provider == CUDA else frozenset()
    for name, value in options.items():
        if not known:
            raise UsageError(f"{provider} has no options: remove --ep-option {name}={value}")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3) or sorted(known)
            raise UsageError(f"{provider} has no option {name!r}: it has {', '.join(near)}")
        if name in _INTEGERS and not str(value).isdecimal():
            raise UsageError(f"--ep-option {name}={value}: {name} is a whole number")
