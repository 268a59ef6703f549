"""Where a checkpoint lies and what it says about itself: a directory, a GGUF file, or an id on the Hub."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxkit.artifact.digests import combined_digest, file_entry
from onnxkit.errors import EnvironmentProblem, InputError, OnnxkitError, UsageError
from onnxkit.export.adapter import adapter_files, check_adapter
from onnxkit.export.gguf import read_gguf
from onnxkit.export.packed_checkpoint import Packing, read_packing
from onnxkit.safety import Module, check_checkpoint, contained, printable, read_json, read_modules

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_WANTED = (
    "*.json", "*.jinja", "*.txt", "*.model", "*.spm", "*.tiktoken", "README.md", "LICENSE*", "*.py",
    "model.safetensors", "model-*-of-*.safetensors", "[0-9]*_*/*.safetensors",
)  # fmt: skip
_PICKLES = ("pytorch_model.bin", "pytorch_model-*-of-*.bin", "[0-9]*_*/pytorch_model.bin")
_WEIGHTS = "model.safetensors"
_SPARSE = ("big_bird", "bigbird_pegasus")
_INDEX_BYTES = 64 * 1024 * 1024
_UNWANTED = ("onnx/*", "openvino/*", "*/onnx/*", "*/openvino/*", "coreml/*")


@dataclass(frozen=True, kw_only=True)
class Access:
    """How a checkpoint may be reached and read; the fields are `ExportOptions`'."""

    revision: str | None = None
    subfolder: str = ""
    token: str | None = field(default=None, repr=False)
    offline: bool = False
    trust_remote_code: bool = False
    allow_pickle: bool = False
    adapter: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint on this machine that has passed the checks of `safety`.

    Attributes:
        source: as the user named it.
        path: its directory.
        weights_path: the directory with config.json and the weights; another one than `path` in
            older sentence-transformers directories (`0_Transformer`).
        commit: the resolved commit of a Hub checkpoint.
        settings: config.json.
        processor: preprocessor_config.json, or that part of processor_config.json; empty where there is none.
        modules: sentence-transformers' modules, empty where there are none.
        gguf: the file that is the whole checkpoint, or None.
    """

    source: str
    path: Path
    weights_path: Path
    commit: str | None
    access: Access
    settings: Mapping[str, Any]
    processor: Mapping[str, Any]
    modules: tuple[Module, ...]
    gguf: Path | None = None

    @property
    def weight_files(self) -> tuple[Path, ...]:
        """The safetensors files that hold the weights as they will be exported; none where transformers has
        to load them: pickles, GGUF, a base model whose adapter is still to be merged."""
        if self.gguf is not None or self.access.adapter is not None:
            return ()
        return self._safetensors

    @property
    def _safetensors(self) -> tuple[Path, ...]:
        whole, index = self.weights_path / _WEIGHTS, self.weights_path / f"{_WEIGHTS}.index.json"
        if whole.is_file():
            return (whole,)
        if index.is_file():
            names = set(read_json(index, max_bytes=_INDEX_BYTES)["weight_map"].values())
            return tuple(self.weights_path / name for name in sorted(names))
        return ()

    @functools.cached_property
    def packing(self) -> Packing | None:
        """How its safetensors are quantized, by AWQ or GPTQ; None where they are not.

        Raises:
            InputError: a variant of these formats that is not read.
        """
        return read_packing(self.settings, str(self.weights_path / "config.json"))

    @property
    def architectures(self) -> tuple[str, ...]:
        """The classes that config.json names."""
        named = self.settings.get("architectures")
        return tuple(map(str, named)) if isinstance(named, list) else ()

    def load_arguments(self) -> dict[str, Any]:
        """Keyword arguments for every `from_pretrained`: nothing connects, nothing is guessed."""
        arguments = {"local_files_only": True, "trust_remote_code": self.access.trust_remote_code}
        return arguments if self.gguf is None else {**arguments, "gguf_file": self.gguf.name}

    @property
    def sparse(self) -> bool:
        """Whether it attends in blocks (BigBird), which is exported as the full attention of short texts."""
        configured = self.settings.get("attention_type", "block_sparse")
        return self.settings.get("model_type") in _SPARSE and configured == "block_sparse"

    def model_arguments(self) -> dict[str, Any]:
        """`load_arguments` of a config or a model, which is exported as it is then configured.

        A sparse model turns to full attention for good at its first short text: a check would prove nothing.
        """
        full = {"attention_type": "original_full"} if self.sparse else {}
        return {**self.load_arguments(), **full}

    def config(self) -> PretrainedConfig:
        """The parsed config.

        Raises:
            InputError: transformers does not know the model type, or cannot parse the config.
        """
        from transformers import AutoConfig

        self._check_model_type()
        try:
            config: PretrainedConfig = AutoConfig.from_pretrained(self.weights_path, **self.model_arguments())
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            kind = self.settings.get("model_type", "no model_type")
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"{self.weights_path / 'config.json'} ({kind}): {reason}") from error
        if self.packing is not None:  # decoded here: transformers would ask for a package for it
            del config.quantization_config
        return config

    def _check_model_type(self) -> None:
        """Say it in our words where transformers would not know the model; GGUF has names of its own."""
        import transformers

        kind, file = self.settings.get("model_type"), self.weights_path / "config.json"
        if self.gguf is not None or self.access.trust_remote_code:
            return
        if kind is None:
            raise InputError(f"{file} has no model_type: it does not say which model this is")
        if not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
            raise InputError(
                f"{file}: transformers {transformers.__version__} does not know the model type {kind}; "
                "a newer version may"
            )

    def digest(self) -> str:
        """The commit, or for what is local one digest of config and weights, the adapter's with them."""
        extra = adapter_files(self.access.adapter) if self.access.adapter is not None else ()
        if self.commit is not None and not extra:
            return self.commit
        own = (self.gguf,) if self.gguf else (self.weights_path / "config.json", *self._safetensors)
        return combined_digest({file.name: file_entry(file) for file in (*own, *extra)})


def open_checkpoint(source: str, access: Access) -> Checkpoint:
    """Find a checkpoint, download what is needed of it, and check every file before it is used.

    Raises:
        InputError: no such directory or repository, no weights, damaged files.
        UnsafeError: remote code, pickles, paths that lead out.
        EnvironmentProblem: the Hub cannot be reached, a package is missing for GGUF or the adapter.
    """
    if access.adapter is not None:
        check_adapter(access.adapter, allow_pickle=access.allow_pickle)
    local = Path(source).expanduser()
    if local.exists():
        path, commit = local, None
        if not local.is_dir():
            return _describe_gguf(source, local, access)
        if access.revision:
            raise UsageError(f"{printable(source)} is a directory: --revision does not apply")
    elif _HUB_ID.fullmatch(source) and not source.startswith("."):
        path, commit = _download(source, access)
    else:
        raise InputError(
            f"there is no directory {printable(source)}, and it is no Hub id (organisation/name)"
        )
    if access.subfolder:
        path = contained(path, access.subfolder)
    return _describe(source, path, commit, access)


def _describe(source: str, path: Path, commit: str | None, access: Access) -> Checkpoint:
    modules = read_modules(path / "modules.json") if (path / "modules.json").is_file() else ()
    transformer = next((module.path for module in modules if module.kind == "Transformer"), "")
    weights_path = contained(path, transformer) if transformer else path
    check_checkpoint(
        weights_path, trust_remote_code=access.trust_remote_code, allow_pickle=access.allow_pickle
    )
    trusted = access.trust_remote_code
    settings = read_json(weights_path / "config.json", trust_remote_code=trusted)
    return Checkpoint(
        source=source,
        path=path,
        weights_path=weights_path,
        commit=commit,
        access=access,
        settings=settings,
        processor=_processor(weights_path, trusted=trusted),
        modules=modules,
    )


def _processor(folder: Path, *, trusted: bool) -> Mapping[str, Any]:
    """What prepares images or audio: a file of its own, or a part of that of all processors."""
    own, joint = folder / "preprocessor_config.json", folder / "processor_config.json"
    if own.is_file():
        return read_json(own, trust_remote_code=trusted)
    whole = read_json(joint, trust_remote_code=trusted) if joint.is_file() else {}
    parts = (whole.get(name) for name in ("image_processor", "feature_extractor"))
    return next((part for part in parts if isinstance(part, dict)), {})


def _describe_gguf(source: str, file: Path, access: Access) -> Checkpoint:
    if access.subfolder or access.revision:
        raise UsageError(f"{printable(source)} is a file: --subfolder and --revision do not apply")
    return Checkpoint(
        source=source,
        path=file.parent,
        weights_path=file.parent,
        commit=None,
        access=access,
        settings=read_gguf(file),
        processor={},
        modules=(),
        gguf=file,
    )


def _download(source: str, access: Access) -> tuple[Path, str]:
    """The snapshot's directory and its commit."""
    import huggingface_hub
    from huggingface_hub import errors

    wanted = [*_WANTED, *(_PICKLES if access.allow_pickle else ())]
    prefix = f"{access.subfolder.strip('/')}/" if access.subfolder else ""
    try:
        with quiet_hub(offline=access.offline):
            path = huggingface_hub.snapshot_download(
                source,
                revision=access.revision,
                token=access.token,
                allow_patterns=[prefix + pattern for pattern in wanted],
                ignore_patterns=[prefix + pattern for pattern in _UNWANTED],
                local_files_only=access.offline,
            )
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise EnvironmentProblem(
            f"{source} is no local directory, and it is neither in the Hub cache nor can the Hub be reached"
        ) from error
    except errors.HfHubHTTPError as error:
        raise _refusal(source, access, error) from error
    except (errors.HFValidationError, OSError) as error:
        raise EnvironmentProblem(f"{source} cannot be downloaded: {error}") from error
    return Path(path), Path(path).name


def _refusal(source: str, access: Access, error: Exception) -> OnnxkitError:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return InputError(f"{source} is gated: accept its terms on the Hub and pass --token")
    if isinstance(error, errors.RevisionNotFoundError):
        return InputError(f"{source} has no revision {access.revision}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return InputError(
            f"there is neither a directory nor a Hub repository {source} (private ones need --token)"
        )
    return EnvironmentProblem(f"the Hub does not give {source}: {error}")


@contextlib.contextmanager
def quiet_hub(*, offline: bool) -> Iterator[None]:
    """Within the block the Hub's client sends no telemetry, and does not connect at all if `offline`."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_TELEMETRY
    constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE or offline
    constants.HF_HUB_DISABLE_TELEMETRY = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_TELEMETRY = before
