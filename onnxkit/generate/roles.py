"""Which of a decoder graph's inputs and outputs mean what."""

from __future__ import annotations

from dataclasses import dataclass

from onnxkit.errors import InputError
from onnxkit.generate.cache import CacheTensor, cache_tensor
from onnxkit.runtime import Session

_IDS = ("input_ids", "decoder_input_ids")
_MASKS = ("attention_mask", "decoder_attention_mask")
_KEEP = "num_logits_to_keep"
_KNOWN = {*_IDS, *_MASKS, "position_ids", "encoder_attention_mask"}
_CACHE_KEY = "onnxkit.cache"


@dataclass(frozen=True, kw_only=True)
class Roles:
    """A decoder graph's inputs, by what they mean; None for what it does not have.

    Attributes:
        ids: token ids, int64 [rows, new].
        mask: attention mask, int64 [rows, total]: zeros are padding, at the left.
        positions: int64 [rows, new].
        encoder_mask: int64 [rows, encoder length].
        keep: int64 scalar: of how many last positions logits are computed (0: all).
        cache: self-attention's keys and values, which grow.
        cross: keys and values of the encoder's output, which do not; `present` is the encoder's output.
        logits: the output, [rows, new or kept, vocabulary], and its type.
        logits_dtype: as in TensorSpec.
        vocabulary: size of the last axis of the logits; None when the graph does not tell.
        shared: whether the cache is one buffer, past and present at once (see `SharedCache`).
    """

    ids: str
    mask: str | None
    positions: str | None
    encoder_mask: str | None
    keep: str | None
    cache: tuple[CacheTensor, ...]
    cross: tuple[CacheTensor, ...]
    logits: str
    logits_dtype: str
    vocabulary: int | None
    shared: bool


def roles_of(session: Session) -> Roles:
    """Read the roles off the names that design.md (and the ecosystem) fixes.

    Raises:
        InputError: the graph has no cache, or an input whose meaning is unknown.
    """
    inputs = {spec.name: spec for spec in session.inputs}
    outputs = {spec.name: spec for spec in session.outputs}
    tensors = _cache_tensors(session)
    past = {tensor.past for tensor in tensors}
    ids = next((name for name in _IDS if name in inputs), None)
    if ids is None or "logits" not in outputs:
        raise InputError(f"{session.model}: no decoder: it has no input_ids, or no logits")
    if not past:
        raise InputError(
            f"{session.model}: a decoder without past_key_values, so every step would compute all again: "
            "export it anew with onnxkit export (other tools: task …-with-past)"
        )
    if unknown := [name for name in inputs if name not in _KNOWN | past]:
        raise InputError(
            f"{session.model}: input {', '.join(unknown)}, which onnxkit cannot feed: export it anew"
        )
    mask = next((name for name in _MASKS if name in inputs), None)
    logits = outputs["logits"]
    size = logits.shape[-1] if logits.shape else None
    return Roles(
        ids=ids,
        mask=mask,
        positions="position_ids" if "position_ids" in inputs else None,
        encoder_mask="encoder_attention_mask" if "encoder_attention_mask" in inputs else None,
        keep=next((spec.name for spec in session.overridable if spec.name == _KEEP), None),
        cache=tuple(tensor for tensor in tensors if ".encoder." not in tensor.past),
        cross=tuple(tensor for tensor in tensors if ".encoder." in tensor.past),
        logits="logits",
        logits_dtype=logits.dtype,
        vocabulary=size if isinstance(size, int) else None,
        shared=session.metadata.get(_CACHE_KEY) == "shared",
    )


def _cache_tensors(session: Session) -> list[CacheTensor]:
    tensors = []
    for spec in session.inputs:
        if not spec.name.startswith("past_key_values."):
            continue
        tensor = cache_tensor(spec, spec.name.replace("past_key_values", "present", 1))
        if tensor is None:
            shape = ", ".join(str(size) for size in spec.shape)
            raise InputError(
                f"{session.model}: cache {spec.name} is ({shape}), not (batch, heads, past, width) "
                "with fixed heads and width: export it anew with onnxkit"
            )
        tensors.append(tensor)
    return tensors
