"""What the caller may choose."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class OptimizeOptions:
    """Options of `optimize_model`.

    Attributes:
        level: 0 to 4; `levels.LEVELS` says what each means.
        ep: the provider that the graph is written for: "cpu", "cuda" or a full name.
        disable_fusions: names of lowerings and fusions to leave out.
        task: overrides the task that the directory names.
        measure: time the result against its input.
        genai_config: write the configuration of onnxruntime-genai, too; one that is there is fitted anyway.
        overwrite: replace an existing output.
        seed: of the inputs that the result is checked on.
        inputs: an .npz file with an array for each input of the graph: checked and timed on that instead.
        threads: for every session; None means the usable cores.
    """

    level: int = 2
    ep: str = "cpu"
    disable_fusions: tuple[str, ...] = ()
    task: str | None = None
    measure: bool = True
    genai_config: bool = False
    overwrite: bool = False
    seed: int = 0
    inputs: Path | None = None
    threads: int | None = None
