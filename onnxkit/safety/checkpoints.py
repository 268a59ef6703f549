"""Checkpoint directories: what is checked before transformers or safetensors see any of it."""

from __future__ import annotations

from pathlib import Path

from onnxkit.errors import InputError, UnsafeError
from onnxkit.safety.json_files import read_json, read_json_value, refuse_remote_code
from onnxkit.safety.modules import read_modules
from onnxkit.safety.paths import check_directory, regular_file
from onnxkit.safety.tensor_files import check_gguf, check_safetensors
from onnxkit.safety.text import printable

# Weight maps of very large models are larger than any config.
_MAX_INDEX_BYTES = 64 * 1024 * 1024
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_OTHER = ("*.h5", "*.msgpack", "*.tflite", "*.pb")
# Pickled, but no weights, and never read by us.
_NOT_WEIGHTS = (
    "training_args.bin",
    "optimizer.pt",
    "optimizer.bin",
    "scheduler.pt",
    "scaler.pt",
    "rng_state*.pth",
)


def check_checkpoint(path: Path, *, trust_remote_code: bool = False, allow_pickle: bool = False) -> None:
    """Check a local checkpoint directory before anything loads it.

    Configurations must ask for no code (unless `trust_remote_code`), weight maps name bare files that
    exist, safetensors files are whole, `modules.json` names known classes only, and the weights are no
    pickles (unless `allow_pickle`; they must then still be loaded with `weights_only=True`).

    Raises:
        InputError: no directory, no weights, or something missing, damaged or truncated.
        UnsafeError: remote code, a pickle, a path or a link that leads out.
    """
    check_directory(path)
    _check_configs(path, trust_remote_code=trust_remote_code)
    if (path / "modules.json").is_file():
        read_modules(path / "modules.json")
    for index in sorted(path.glob("*.index.json")):
        _check_weight_map(index)
    _check_weights(path, allow_pickle=allow_pickle)


def _check_configs(path: Path, *, trust_remote_code: bool) -> None:
    if not (path / "config.json").is_file():
        raise InputError(f"{path}: no config.json, so this is no transformers checkpoint")
    # Vocabularies are left alone: a token may well be called "auto_map".
    read_json(path / "config.json", trust_remote_code=trust_remote_code)
    for config in sorted({*path.glob("*config*.json"), *path.glob("*/*config*.json")}):
        if not config.parent.name.startswith(".") and not trust_remote_code:
            refuse_remote_code(read_json_value(config), config)


def _check_weight_map(index: Path) -> None:
    weight_map = read_json(index, max_bytes=_MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise InputError(f"{index}: no weight_map of file names")
    for name in sorted(set(weight_map.values())):
        if not name or name in (".", "..") or any(char in name for char in "/\\\0:"):
            raise UnsafeError(
                f"{index}: refused the weight file {printable(name, limit=120)!r}: only bare names"
            )
        regular_file(index.parent / name, f"weight file, although {index.name} names it")


def _check_weights(path: Path, *, allow_pickle: bool) -> None:
    safetensors = sorted({*path.glob("*.safetensors"), *path.glob("[0-9]*_*/*.safetensors")})
    for file in safetensors:
        check_safetensors(file)
    ggufs = sorted(path.glob("*.gguf"))
    for file in ggufs:
        check_gguf(file)
    pickles = _pickles(path)
    if any(file.parent == path for file in (*safetensors, *ggufs)):
        return
    if pickles and not allow_pickle:
        raise UnsafeError(
            f"{pickles[0]}: the weights are a pickle, which can run code; convert them to safetensors, "
            "or pass --allow-pickle (they are then read with weights_only)"
        )
    if not pickles:
        other = [file.name for pattern in _OTHER for file in sorted(path.glob(pattern))]
        found = f" (only {printable(other[0], limit=80)}, which is no PyTorch format)" if other else ""
        raise InputError(f"{path}: no weights{found}; expected model.safetensors")


def _pickles(path: Path) -> list[Path]:
    found = {file for pattern in _PICKLES for file in path.glob(pattern)}
    return sorted(file for file in found if not any(file.match(name) for name in _NOT_WEIGHTS))
