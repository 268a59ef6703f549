"""Opens ONNX Runtime sessions that run where they were asked to, and runs them."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxkit.errors import EnvironmentProblem, InputError, UsageError
from onnxkit.machine import Cores, usable_cores
from onnxkit.runtime.binding import Binding, device_of
from onnxkit.runtime.cuda import examine_cuda, preload_cuda
from onnxkit.runtime.denormals import float_state
from onnxkit.runtime.failures import load_failure, plain, run_failure
from onnxkit.runtime.feeds import check_feeds, fetch, needs_values, to_values
from onnxkit.runtime.interrupt import terminable
from onnxkit.runtime.library import LOG_FATAL, import_onnxruntime, library_version
from onnxkit.runtime.options import GraphOptimization, RuntimeOptions, TensorSpec, dtype_name
from onnxkit.runtime.providers import CPU, CUDA, check_provider_options, plugin_devices, provider_name

if TYPE_CHECKING:
    import numpy as np

_LEVELS = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}

_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"

_NO_TILES = "ORT_GQA_DISABLE_FLASH_ATTENTION"

# How a provider says that it cannot start, as against a model that cannot be loaded.
_START_FAILURES = ("CUDA failure", "CUDNN_STATUS", "CUDA error", "Please install")


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Which provider runs how many nodes, as ONNX Runtime partitioned the graph.

    Counted when nodes are assigned: after the provider-independent rewrites, before the fusions of
    the level "extended".

    Attributes:
        nodes: provider -> number of nodes.
        fallback_nodes: "name (Op)" of each node that is not on the provider that was asked for.
    """

    nodes: Mapping[str, int]
    fallback_nodes: tuple[str, ...]


class Session:
    """A loaded model. Make one with `open_session`.

    Attributes:
        inputs, outputs: what the model takes and gives.
        overridable: inputs with a default, which need not be fed (by `Binding` only).
        metadata: the model's own key/value pairs (metadata_props).
        provider: full name of the provider that really runs it.
        device, device_id: where it keeps its tensors: "cpu" or "cuda".
        threads: threads of one operator, and where the number came from.
        load_ms: what opening took, in milliseconds.
        model: the file, or a description, for messages.
    """

    def __init__(self, handle: Any, *, model: str, provider: str, threads: Cores, load_ms: float) -> None:
        self.model = model
        self.provider = provider
        self.threads = threads
        self.load_ms = load_ms
        self.inputs = _specs(handle.get_inputs())
        self.outputs = _specs(handle.get_outputs())
        self.overridable = _specs(handle.get_overridable_initializers())
        self.metadata: Mapping[str, str] = dict(handle.get_modelmeta().custom_metadata_map)
        self.device, self.device_id = device_of(provider, handle.get_provider_options().get(provider, {}))
        self._handle = handle
        self._placement: Placement | None = None
        self._by_name = {spec.name: spec for spec in self.inputs}
        self._output_names = [spec.name for spec in self.outputs]
        self._needs_values = needs_values((*self.inputs, *self.outputs))
        self._run_options = import_onnxruntime().RunOptions

    @property
    def placement(self) -> Placement:
        """Nodes by provider; every node away from the provider asked for is named."""
        if self._placement is None:
            self._placement = _placement(self._handle, self.provider)
        return self._placement

    def run(
        self, feeds: Mapping[str, np.ndarray[Any, Any]], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Run the model once.

        ONNX Runtime reads contiguous feeds in place, and its CPU outputs are handed over as they
        are: neither is copied. bfloat16 and float8 arrays are `ml_dtypes` ones.

        Args:
            feeds: an array for every input: its dtype exactly, its rank, its fixed dimensions.
            outputs: names of the outputs wanted; None gives all.

        Raises:
            InputError: wrong names, dtypes, ranks or sizes, or shapes that a node cannot take.
            ResourceError: out of memory.
            KeyboardInterrupt: Ctrl-C; the run ends within the node that it was at.
        """
        check_feeds(self._by_name, feeds, self.model)
        names = self._output_names if outputs is None else self._checked_outputs(outputs)
        options = self._run_options()
        options.log_severity_level = LOG_FATAL
        try:
            with terminable(options), float_state(denormals_as_zero=True):
                arrays = self._run(names, feeds, options)
        except Exception as error:  # pybind classes without a common base
            if options.terminate:
                raise KeyboardInterrupt from error
            raise run_failure(error, self.model) from error
        return dict(zip(names, arrays, strict=True))

    def binding(self) -> Binding:
        """Return a new IO binding, with nothing bound: for runs that keep tensors where they are."""
        return Binding(self, self._handle)

    def end_profiling(self) -> Path:
        """Finish the trace of a session that was opened with `profile_prefix`; return its file."""
        name = self._handle.end_profiling()
        if not name:
            raise UsageError(f"{self.model}: the session was opened without profile_prefix")
        return Path(name)

    def _run(self, names: list[str], feeds: Mapping[str, np.ndarray[Any, Any]], options: Any) -> list[Any]:
        if not self._needs_values:
            arrays: list[Any] = self._handle.run(names, dict(feeds), options)
            return arrays
        values = to_values(self._by_name, feeds)
        return [fetch(value) for value in self._handle.run_with_ort_values(names, values, options)]

    def _checked_outputs(self, outputs: Sequence[str]) -> list[str]:
        unknown = [name for name in outputs if name not in self._output_names]
        if unknown:
            has = ", ".join(self._output_names)
            raise InputError(f"{self.model}: no output {', '.join(unknown)}; it has {has}")
        return list(outputs)


def open_session(
    model: Path | bytes, options: RuntimeOptions | None = None, *, weights: Path | None = None
) -> Session:
    """Load a model and make sure that it runs where it was asked to.

    Args:
        model: an ONNX file, or its bytes.
        options: provider, threads, optimization level; the defaults of `RuntimeOptions`.
        weights: the folder of the external data that bytes refer to; a file's is its own.

    Raises:
        UsageError: unknown provider or provider option, threads < 1.
        InputError: the file is missing, corrupt, too new for this ONNX Runtime, or uses an
            operator that it does not have.
        EnvironmentProblem: the provider cannot be used here; the message tells why and the way out.
        ResourceError: not enough memory.
    """
    options = options or RuntimeOptions()
    ort = import_onnxruntime()
    provider = provider_name(options.ep)
    check_provider_options(provider, options.ep_options)
    threads = _threads(options.threads)
    label = str(model) if isinstance(model, Path) else "the model"
    if isinstance(model, Path) and not model.is_file():
        raise InputError(f"{model}: {'a directory, not an ONNX file' if model.is_dir() else 'no such file'}")
    settings = _settings(ort, threads=threads.count, level=options.graph_optimization)
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if weights is not None:
        settings.add_session_config_entry(_WEIGHTS_FOLDER, str(weights.resolve()))
    if options.profile_prefix is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(options.profile_prefix)
    started = time.perf_counter()
    with _whole_scores(options.whole_scores):
        handle = _create(ort, model, label, settings, provider, options.ep_options)
    load_ms = (time.perf_counter() - started) * 1e3
    return Session(handle, model=label, provider=provider, threads=threads, load_ms=load_ms)


def _settings(ort: Any, *, threads: int, level: GraphOptimization) -> Any:
    """Return ONNX Runtime's SessionOptions: silent, `threads` per operator, one operator at a time."""
    settings = ort.SessionOptions()
    settings.log_severity_level = LOG_FATAL
    settings.intra_op_num_threads = threads
    settings.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _LEVELS[level])
    settings.add_session_config_entry("session.set_denormal_as_zero", "1")  # of its threads: `denormals`
    return settings


@contextlib.contextmanager
def _whole_scores(wanted: bool) -> Iterator[None]:
    """Choose GroupQueryAttention's kernel: ONNX Runtime reads the environment while it makes one."""
    if not wanted or _NO_TILES in os.environ:
        yield
        return
    os.environ[_NO_TILES] = "1"
    try:
        yield
    finally:
        del os.environ[_NO_TILES]


def _create(
    ort: Any, model: Path | bytes, label: str, settings: Any, provider: str, ep_options: Mapping[str, str]
) -> Any:
    """Create the session with `provider` first; anything else is an error, never a fallback."""
    plugins = plugin_devices(ort)
    if provider not in ort.get_available_providers() and provider not in plugins:
        raise EnvironmentProblem(_unusable(provider))
    arguments: dict[str, Any] = {"enable_fallback": 0}
    if provider in plugins:
        settings.add_provider_for_devices(plugins[provider], dict(ep_options))
    elif provider == CPU:
        arguments["providers"] = [CPU]
    else:
        if provider == CUDA:
            preload_cuda(ort)
        arguments["providers"] = [(provider, dict(ep_options)), CPU]
    source = str(model) if isinstance(model, Path) else model
    try:
        with float_state():  # the first session of a process switches the thread that opens it
            handle = ort.InferenceSession(source, settings, **arguments)
    except Exception as error:  # pybind classes without a common base
        if provider != CPU and _is_provider_failure(str(error), provider):
            raise EnvironmentProblem(f"{_unusable(provider)} ({plain(str(error))})") from error
        raise load_failure(error, label) from error
    if handle.get_providers()[0] != provider:
        raise EnvironmentProblem(_unusable(provider))
    return handle


def _is_provider_failure(text: str, provider: str) -> bool:
    """Tell a provider that does not start from a model that ONNX Runtime refuses."""
    return any(mark in text for mark in (*_START_FAILURES, provider)) and ("out of memory" not in text)


def _unusable(provider: str) -> str:
    if provider != CUDA:
        return (
            f"{provider} cannot be used: onnxruntime {library_version()} is built without it, or a library "
            "that it needs is missing; use --ep cpu, or install the onnxruntime wheel that has it"
        )
    reason = examine_cuda().problem or "ONNX Runtime could not start it, although driver and libraries load"
    return f"{CUDA} cannot be used: {reason}; or use --ep cpu"


def _threads(asked: int | None) -> Cores:
    if asked is None:
        return usable_cores()
    if asked < 1:
        raise UsageError(f"--threads {asked}: at least 1")
    return Cores(count=asked, source="requested")


def _specs(arguments: Sequence[Any]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name=each.name, dtype=dtype_name(each.type), shape=tuple(each.shape)) for each in arguments
    )


def _placement(handle: Any, provider: str) -> Placement:
    counts: Counter[str] = Counter()
    elsewhere: list[str] = []
    for part in handle.get_provider_graph_assignment_info():
        nodes = part.get_nodes()
        counts[part.ep_name] += len(nodes)
        if part.ep_name != provider:
            elsewhere += [f"{node.name} ({node.op_type})" for node in nodes]
    return Placement(nodes=dict(counts), fallback_nodes=tuple(elsewhere))
