"""What the caller may choose."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizeOptions:
    """Options of `quantize_model`.

    Attributes:
        scheme: a key of `schemes.SCHEMES`.
        calibration: samples (text, table, folder of images) or raw tensors (npz, folder of npz).
        samples: how many samples of the calibration set are used at most; what is kept out of it to
            measure on is not counted.
        per_channel: one weight scale per output channel instead of one per tensor.
        block_size: weights that share a scale in a weight-only scheme; None: 32.
        symmetric: no zero points in a weight-only scheme; None: True.
        accuracy_level: what a weight-only product computes in (`blockwise.Blocks`); None: 4, int8.
        include: regular expressions; when given, only nodes whose name matches one are quantized, and
            the policies that keep a sensitive layer float do not hold for them.
        exclude: regular expressions; nodes whose name matches one stay float.
        op_types: operator types to quantize; empty means the defaults of `operators.OPERATORS`.
        eval: samples on which accuracy and speed are measured.
        measure: compare the result with the input model (accuracy, speed).
        genai_config: write the configuration of onnxruntime-genai, too; one that is there is fitted anyway.
        columns: our column name -> the file's column name.
        task: overrides the task that the directory names.
        overwrite: replace an existing output.
        seed: of the choice of samples and of random cases.
        threads: for every session; None means the usable cores.
    """

    scheme: str = "int8-dynamic"
    calibration: Path | None = None
    samples: int = 128
    per_channel: bool = True
    block_size: int | None = None
    symmetric: bool | None = None
    accuracy_level: int | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    op_types: tuple[str, ...] = ()
    eval: Path | None = None
    measure: bool = True
    genai_config: bool = False
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    task: str | None = None
    overwrite: bool = False
    seed: int = 0
    threads: int | None = None
