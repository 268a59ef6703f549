"""What an encoder's graph computes: the model, then its named outputs; sentence embeddings with pooling."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from onnxkit.errors import InputError, UnsafeError
from onnxkit.export.parts import whole
from onnxkit.safety import Module, read_json

Entry = Callable[[PreTrainedModel], PreTrainedModel]


class Head(torch.nn.Module):
    """Runs the part of a model that `entry` gives and makes the graph's outputs of its output object."""

    def __init__(self, entry: Entry = whole) -> None:
        super().__init__()
        self._entry = entry

    def forward(
        self, model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]
    ) -> Mapping[str, torch.Tensor]:
        """A part's `run`."""
        return self.outputs(self._entry(model)(**inputs), inputs)

    def outputs(self, output: Any, inputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """(model output, graph inputs by name) → outputs by name."""
        raise TypeError(f"{type(self).__name__} makes no outputs")


class PickOutputs(Head):
    """Hands on the attributes of these names."""

    def __init__(self, names: Sequence[str], entry: Entry = whole) -> None:
        super().__init__(entry)
        self._names = tuple(names)

    def outputs(self, output: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Pick them; InputError when the model does not give one."""
        lacking = [name for name in self._names if getattr(output, name, None) is None]
        if lacking:
            given = ", ".join(output.keys()) if hasattr(output, "keys") else type(output).__name__
            raise InputError(f"the model gives no {', '.join(lacking)}, only {given}")
        return {name: getattr(output, name) for name in self._names}


class LastEnd(Head):
    """The scores of an encoder-decoder that classifies by its decoder's state at a row's last end token.

    Transformers selects the states of all end tokens by a mask, which fits only rows with equally many.
    """

    def forward(
        self, model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]
    ) -> Mapping[str, torch.Tensor]:
        """A row without an end token is classified at its last position."""
        classifier: Any = model
        ids = inputs["input_ids"]
        shift = getattr(model, "_shift_right", None)  # Bart's kin do it themselves
        shifted = {"decoder_input_ids": shift(ids)} if shift is not None else {}
        states = classifier.base_model(**inputs, **shifted).last_hidden_state
        places = torch.arange(ids.shape[1], device=ids.device)
        ends = torch.where(ids == model.config.eos_token_id, places + ids.shape[1], places).argmax(dim=1)
        chosen = states.gather(1, ends[:, None, None].expand(-1, 1, states.shape[2]))
        return {"logits": classifier.classification_head(chosen[:, 0])}


def pool_cls(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The first token's vector."""
    return tokens[:, 0]


def pool_max(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The largest value of each feature over real tokens."""
    return tokens.masked_fill(mask[..., None] == 0, -1e9).amax(dim=1)


def pool_mean(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean over real tokens."""
    weights = mask[..., None].to(tokens.dtype)
    return (tokens * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)


def pool_mean_sqrt_len(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The sum over real tokens, divided by the square root of their number."""
    weights = mask[..., None].to(tokens.dtype)
    return (tokens * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9).sqrt()


def pool_weighted_mean(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean with weights 1, 2, 3 … by position (SGPT, arXiv:2202.08904)."""
    position = torch.ones_like(mask).cumsum(dim=1).to(tokens.dtype)
    weights = (mask.to(tokens.dtype) * position)[..., None]
    return (tokens * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)


def pool_last_token(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The vector of the last real token, wherever the padding stands."""
    position = (mask * torch.ones_like(mask).cumsum(dim=1)).argmax(dim=1)
    index = position[:, None, None].expand(-1, 1, tokens.shape[-1])
    return tokens.gather(1, index).squeeze(1)


Pooling = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

POOLINGS: dict[str, Pooling] = {
    "cls": pool_cls,
    "max": pool_max,
    "mean": pool_mean,
    "mean_sqrt_len_tokens": pool_mean_sqrt_len,
    "weightedmean": pool_weighted_mean,
    "lasttoken": pool_last_token,
}
"""sentence-transformers' pooling modes, in the order in which it concatenates them."""

_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
}

_ACTIVATIONS: dict[str, Callable[[], torch.nn.Module]] = {
    "Identity": torch.nn.Identity,
    "Tanh": torch.nn.Tanh,
    "ReLU": torch.nn.ReLU,
    "GELU": torch.nn.GELU,
    "SiLU": torch.nn.SiLU,
    "Sigmoid": torch.nn.Sigmoid,
}


class _Normalize(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length: torch.Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x / length.clamp(min=1e-12)


class SentenceHead(Head):
    """last_hidden_state → pooling, then the steps (Dense, Normalize, …) → sentence_embedding; in float32."""

    def __init__(self, poolings: Sequence[str], steps: Sequence[torch.nn.Module]) -> None:
        super().__init__()
        self._poolings = tuple(POOLINGS[name] for name in poolings)
        self.steps = torch.nn.Sequential(*steps)

    def outputs(self, output: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Both outputs."""
        tokens = output.last_hidden_state.float()
        mask = inputs["attention_mask"]
        pooled = torch.cat([pool(tokens, mask) for pool in self._poolings], dim=-1)
        return {"sentence_embedding": self.steps(pooled), "last_hidden_state": tokens}


def sentence_head(root: Path, modules: Sequence[Module], *, allow_pickle: bool = False) -> SentenceHead:
    """Build the head that a sentence-transformers directory describes.

    Raises:
        InputError: a module that onnxkit does not know, or a damaged one.
        UnsafeError: pickled Dense weights without `allow_pickle`.
    """
    rest = [module for module in modules if module.kind != "Transformer"]
    if not rest or rest[0].kind != "Pooling":
        kinds = ", ".join(module.kind for module in modules)
        raise InputError(f"{root / 'modules.json'}: expected Transformer, Pooling, …; found {kinds}")
    poolings = _pooling_names(root / rest[0].path / "config.json")
    steps = [_step(root / module.path, module.kind, allow_pickle) for module in rest[1:]]
    return SentenceHead(poolings, [step for step in steps if step is not None]).eval()


def _pooling_names(path: Path) -> list[str]:
    config = read_json(path)
    named = config.get("pooling_mode")
    wanted = {named} if isinstance(named, str) else set(named or ())
    for key, value in config.items():
        if key.startswith("pooling_mode_") and value is True:
            wanted.add(_FLAGS.get(key, key.removeprefix("pooling_mode_")))
    unknown = sorted(str(name) for name in wanted if name not in POOLINGS)
    if unknown or not wanted:
        known = ", ".join(POOLINGS)
        raise InputError(f"{path}: pooling {', '.join(unknown) or 'not named'}; known are {known}")
    return [name for name in POOLINGS if name in wanted]


def _step(directory: Path, kind: str, allow_pickle: bool) -> torch.nn.Module | None:
    match kind:
        case "Normalize":
            return _Normalize()
        case "Dropout":
            return None
        case "Dense":
            return _dense(directory, allow_pickle)
        case "LayerNorm":
            width = int(read_json(directory / "config.json")["dimension"])
            norm = torch.nn.LayerNorm(width)
            norm.load_state_dict(_strip(_tensors(directory, allow_pickle), "norm."))
            return norm
        case _:
            raise InputError(f"{directory}: onnxkit cannot export sentence-transformers' module {kind}")


def _dense(directory: Path, allow_pickle: bool) -> torch.nn.Module:
    path = directory / "config.json"
    config = read_json(path)
    name = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    activation = _ACTIVATIONS.get(name.rsplit(".", 1)[-1]) if name.startswith("torch.nn.") else None
    if activation is None:
        raise InputError(f"{path}: activation function {name}; known are {', '.join(_ACTIVATIONS)}")
    if config.get("module_input_name", "sentence_embedding") != "sentence_embedding":
        raise InputError(f"{path}: a Dense module on {config['module_input_name']} cannot be exported")
    try:
        linear = torch.nn.Linear(config["in_features"], config["out_features"], bias=config.get("bias", True))
        linear.load_state_dict(_strip(_tensors(directory, allow_pickle), "linear."))
    except (KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{directory}: the Dense module's weights do not fit its config: {error}") from error
    return torch.nn.Sequential(linear, activation())


def _strip(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor.float() for name, tensor in tensors.items()}


def _tensors(directory: Path, allow_pickle: bool) -> Mapping[str, torch.Tensor]:
    from safetensors.torch import load_file

    file, pickled = directory / "model.safetensors", directory / "pytorch_model.bin"
    if file.is_file():
        return load_file(file)
    if not pickled.is_file():
        raise InputError(f"{directory}: no model.safetensors")
    if not allow_pickle:
        raise UnsafeError(f"{pickled}: pickled weights are read only with --allow-pickle")
    loaded: dict[str, torch.Tensor] = torch.load(pickled, map_location="cpu", weights_only=True)
    return loaded
