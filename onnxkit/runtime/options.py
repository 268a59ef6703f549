"""What a session is asked for, and what a model's inputs and outputs look like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

GraphOptimization = Literal["none", "basic", "extended", "all"]


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """How to run a model.

    Attributes:
        ep: execution provider: "cpu", "cuda" or a full name ("CUDAExecutionProvider").
        ep_options: the provider's own options, by ONNX Runtime's names ({"device_id": "1"}).
        threads: threads of one operator; None takes the usable cores (affinity, cgroup quota).
        graph_optimization: how much ONNX Runtime itself rewrites the graph while loading.
        profile_prefix: where ONNX Runtime writes its trace; None writes none.
        whole_scores: let GroupQueryAttention compute on the CPU with a matrix of scores for each head
            instead of tiles: faster for a token, and for a chunk of a prompt; memory grows with the chunk
            times all tokens. ONNX Runtime's own variable ORT_GQA_DISABLE_FLASH_ATTENTION overrides it.
    """

    ep: str = "cpu"
    ep_options: Mapping[str, str] = field(default_factory=dict)
    threads: int | None = None
    graph_optimization: GraphOptimization = "all"
    profile_prefix: Path | None = None
    whole_scores: bool = False


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """An input or output of a model.

    Attributes:
        name: the graph's name for it.
        dtype: numpy's name ("int64", "float32", "float16", "bool"), ml_dtypes' ("bfloat16",
            "float8_e4m3fn"), "str" for strings; what is no tensor keeps ONNX Runtime's own
            description ("seq(tensor(float))").
        shape: an int where the dimension is fixed, its name where it is free, None where unknown.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]


_DTYPES = {
    "float": "float32",
    "double": "float64",
    "string": "str",
    "float8e4m3fn": "float8_e4m3fn",
    "float8e4m3fnuz": "float8_e4m3fnuz",
    "float8e5m2": "float8_e5m2",
    "float8e5m2fnuz": "float8_e5m2fnuz",
}


def dtype_name(ort_type: str) -> str:
    """Turn ONNX Runtime's "tensor(float)" into numpy's "float32"."""
    if not (ort_type.startswith("tensor(") and ort_type.endswith(")")):
        return ort_type
    inner = ort_type[len("tensor(") : -1]
    return _DTYPES.get(inner, inner)
