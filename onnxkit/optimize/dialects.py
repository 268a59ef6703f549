"""What each execution provider gets, and the names that `--disable-fusion` takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from onnxkit.errors import UsageError, suggestion
from onnxkit.graph import fusions, ort_cpu, ort_cuda
from onnxkit.graph.fusions import Fusion
from onnxkit.graph.lowering import Lowering
from onnxkit.graph.mixtures import EXPERTS
from onnxkit.graph.packing import PACKED_LINEARS
from onnxkit.runtime import provider_name


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How graphs are written for one provider.

    Attributes:
        lowerings: of regions, preferred ones first.
        float16: lowerings of float32 regions whose kernels are float16's, for a graph that becomes that next.
        foreign: fusions by pattern that only foreign graphs need.
        neighbours: fusions of an operator with those around it.
        approximations: fusions that compute another function.
    """

    lowerings: tuple[Lowering, ...]
    float16: tuple[Lowering, ...] = ()
    foreign: tuple[Fusion, ...] = (fusions.GELU,)
    neighbours: tuple[Fusion, ...] = ()
    approximations: tuple[Fusion, ...] = (fusions.FAST_GELU,)

    def before_float16(self) -> Dialect:
        """The dialect of a float32 graph that is converted next."""
        return dataclasses.replace(self, lowerings=(*self.float16, *self.lowerings))

    def summaries(self) -> dict[str, str]:
        """Return what can be disabled, in the order of the tables: what each name stands for."""
        rows: list[Lowering | Fusion] = [*self.lowerings, *self.foreign]
        rows += [*self.neighbours, *self.approximations]
        found: dict[str, str] = {}
        for row in rows:
            found.setdefault(row.name, row.summary)
        return found


DIALECTS: dict[str, Dialect] = {
    # SkipLayerNormalization stays out on the CPU: its kernel costs five times what it replaces. `packing` and
    # `fusions.fuse_skip_rms_norm` say what packed linears and the skip form of RMSNorm cost and win.
    "CPUExecutionProvider": Dialect(
        lowerings=ort_cpu.LOWERINGS, neighbours=(EXPERTS, PACKED_LINEARS, fusions.SKIP_RMS_NORM)
    ),
    "CUDAExecutionProvider": Dialect(
        lowerings=ort_cuda.LOWERINGS,
        float16=ort_cuda.FLOAT16,
        neighbours=(fusions.BIAS_GELU, fusions.SKIP_LAYER_NORM, PACKED_LINEARS, fusions.SKIP_RMS_NORM),
    ),
}


def dialect_of(ep: str) -> Dialect:
    """Return the dialect of a provider, named in short or in full; UsageError when there is none."""
    name = provider_name(ep)
    if name not in DIALECTS:
        raise UsageError(f"optimize writes graphs for cpu and cuda, not for {name}")
    return DIALECTS[name]


def check_fusions(names: Iterable[str], dialect: Dialect) -> None:
    """Raise UsageError, with the nearest names, for a fusion that the dialect does not have."""
    known = dialect.summaries()
    for name in names:
        if name not in known:
            raise UsageError(f"--disable-fusion {name!r}: no such fusion; {suggestion(name, known)}")
