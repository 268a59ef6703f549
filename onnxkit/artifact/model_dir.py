"""A model directory, opened: ours with its manifest, another tool's, or a bare `.onnx` file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from onnxkit.artifact.companions import REFERENCE_NAME, companion_files, travels
from onnxkit.artifact.digests import FileEntry, combined_digest, file_entry
from onnxkit.artifact.infer import infer_task
from onnxkit.artifact.layout import locate
from onnxkit.artifact.manifest import MANIFEST_NAME, Component, Manifest
from onnxkit.artifact.reference import ReferenceCase, load_reference
from onnxkit.artifact.specs import input_specs, output_specs
from onnxkit.artifact.task_names import normalize_task
from onnxkit.errors import InputError
from onnxkit.runtime import TensorSpec
from onnxkit.safety import (
    check_directory,
    contained,
    external_files,
    path_kind,
    read_json,
    read_json_value,
    read_model,
    regular_file,
)


@dataclass(frozen=True, kw_only=True)
class ModelDir:
    """A model that can be run. Make one with `ModelDir.open`.

    Attributes:
        path: the directory.
        task: exact task name, or "raw".
        components: the graphs by name; a single one is called "model", those of an encoder-decoder
            "encoder", "decoder" and, in optimum's layout, "decoder_with_past".
        weight_files: ONNX files and their external data, by name relative to `path`.
        config: the parsed config.json, empty where there is none.
        manifest: the manifest, or None for another tool's directory.
    """

    path: Path
    task: str
    components: Mapping[str, Component]
    weight_files: tuple[str, ...]
    config: Mapping[str, Any]
    manifest: Manifest | None

    @classmethod
    def open(cls, path: str | Path, *, task: str | None = None) -> ModelDir:
        """Open a model directory or an `.onnx` file; every graph in it is vetted.

        With a manifest, every file must exist with the size that it says. Without one, inputs and outputs
        come from the graph, and the task from its outputs and config.json. `task` overrides either.

        Raises:
            InputError: nothing usable there, a damaged file, a wrong size, a newer manifest.
            UnsafeError: a file leads out of the directory.
            UsageError: `task` is no task.
        """
        path = Path(path)
        asked = None if task is None else normalize_task(task)
        root, files = (path, None) if path_kind(path / MANIFEST_NAME) == "file" else locate(path)
        manifest = _read_manifest(root) if (root / MANIFEST_NAME).is_file() else None
        if manifest and (
            files is None or {c.file for c in manifest.components.values()} >= set(files.values())
        ):
            return _open_ours(root, manifest, asked)
        return _open_foreign(root, files or {}, asked)

    @property
    def model_file(self) -> Path:
        """The ONNX file of the only component, or of the one called "model".

        Raises:
            InputError: the directory holds several components and none of that name.
        """
        return self.path / self._main.file

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What a caller feeds to `model_file`."""
        return self._main.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `model_file` returns."""
        return self._main.outputs

    @property
    def _main(self) -> Component:
        if len(self.components) == 1:
            return next(iter(self.components.values()))
        if "model" not in self.components:
            files = ", ".join(component.file for component in self.components.values())
            raise InputError(f"{self.path}: no single graph to run; name one of its files: {files}")
        return self.components["model"]

    @cached_property
    def size_bytes(self) -> int:
        """Size of the graphs and their weights, in bytes; companions do not count."""
        return sum((self.path / name).stat().st_size for name in self.weight_files)

    def companions(self) -> tuple[Path, ...]:
        """Return the files that every stage copies along: all but graphs, weights, data sets, manifest."""
        return tuple(self.path / name for name in self.companion_names())

    def companion_names(self) -> tuple[str, ...]:
        """Return the names of `companions()` relative to `path`, sorted."""
        if self.manifest is None:
            return companion_files(self.path)
        return tuple(sorted(n for n in self.manifest.files if n not in self.weight_files and _travels_on(n)))

    def entries(self) -> dict[str, FileEntry]:
        """Read all files of the model and return their digests and sizes by name."""
        names = self.manifest.files if self.manifest else {*self.weight_files, *self.companion_names()}
        return {name: file_entry(contained(self.path, name)) for name in sorted(names)}

    def digest(self) -> str:
        """Return one digest of all files of the model (read now), `sha256:<hex>`.

        Raises:
            InputError: a file differs from the manifest.
        """
        return combined_digest(self._checked())

    def verify_digests(self) -> tuple[str, ...]:
        """Read every file, compare it with the manifest, and return the names that were compared.

        Without a manifest there is nothing to compare with: the result is empty.

        Raises:
            InputError: a file is missing or differs; the message names it.
        """
        return tuple(self._checked()) if self.manifest else ()

    def reference(self) -> tuple[ReferenceCase, ...]:
        """Return the reference cases of the directory; empty where it has none."""
        path = self.path / REFERENCE_NAME
        return load_reference(path) if path.is_file() else ()

    def _checked(self) -> dict[str, FileEntry]:
        found = self.entries()
        for name, expected in self.manifest.files.items() if self.manifest else ():
            if found[name] != expected:
                raise InputError(
                    f"{self.path / name}: its content differs from {MANIFEST_NAME} (sha256 "
                    f"{found[name].sha256[:12]}…, recorded {expected.sha256[:12]}…); make the model again"
                )
        return found


def _travels_on(name: str) -> bool:
    return "/" in name or travels(name)  # a module's own weights (2_Dense/…) travel


def _read_manifest(root: Path) -> Manifest:
    return Manifest.from_plain(read_json_value(root / MANIFEST_NAME), where=str(root / MANIFEST_NAME))


def _open_ours(root: Path, manifest: Manifest, asked: str | None) -> ModelDir:
    check_directory(root)
    _check_sizes(root, manifest)
    weights: set[str] = set()
    for component in manifest.components.values():
        weights.update(_vetted(root, component.file)[1])
    return ModelDir(
        path=root,
        task=asked or manifest.task,
        components=manifest.components,
        weight_files=tuple(sorted(weights)),
        config=_config(root),
        manifest=manifest,
    )


def _check_sizes(root: Path, manifest: Manifest) -> None:
    for component in manifest.components.values():
        if component.file not in manifest.files:
            raise InputError(
                f"{root / MANIFEST_NAME}: damaged manifest: {component.file!r} is not among its files"
            )
    if not manifest.components:
        raise InputError(
            f"{root} holds no model: it is the output of 'quantize --analyze', or {MANIFEST_NAME} is damaged "
            "(no components)"
        )
    for name, entry in manifest.files.items():
        path = contained(root, name)
        size = regular_file(path, f"file, although {MANIFEST_NAME} lists it").st_size
        if size != entry.size_bytes:
            raise InputError(
                f"{path}: {size} bytes, {MANIFEST_NAME} says {entry.size_bytes}: truncated or replaced; "
                "make the model again"
            )


def _open_foreign(root: Path, files: Mapping[str, str], asked: str | None) -> ModelDir:
    vetted = {name: _vetted(root, file) for name, file in files.items()}
    components = {name: component for name, (component, _) in vetted.items()}
    config = _config(root)
    # Of several graphs the decoder's outputs are the model's; the encoder's inputs tell text from audio.
    fed = [spec for component in components.values() for spec in component.inputs]
    given = (components.get("decoder") or next(iter(components.values()))).outputs
    return ModelDir(
        path=root,
        task=asked or infer_task(config, fed, given),
        components=components,
        weight_files=tuple(sorted({name for _, weights in vetted.values() for name in weights})),
        config=config,
        manifest=None,
    )


def _vetted(root: Path, file: str) -> tuple[Component, tuple[str, ...]]:
    """Read and vet one graph; return its component and the names of its file and external data."""
    path = contained(root, file)
    model = read_model(path)
    folder = file.rpartition("/")[0]
    data = (f"{folder}/{name}" if folder else name for name in external_files(model))
    component = Component(file=file, inputs=input_specs(model), outputs=output_specs(model))
    return component, tuple(sorted({file, *data}))


def _config(root: Path) -> dict[str, Any]:
    # Nothing is loaded by what it says (only export does that, after its own check), so a
    # config that names remote code is harmless here.
    path = root / "config.json"
    return read_json(path, trust_remote_code=True) if path.is_file() else {}
