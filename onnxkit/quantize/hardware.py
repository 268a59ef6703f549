"""The machine that the result will run on, and what follows from it."""

from __future__ import annotations

import dataclasses

from onnxkit import machine
from onnxkit.errors import UsageError, suggestion
from onnxkit.machine import Cpu
from onnxkit.quantize.formats import Grid

TARGETS: dict[str, Cpu] = {
    "avx2": Cpu(model="any x86 CPU with AVX2", isa=("avx", "avx2", "fma")),
    "avx512-vnni": Cpu(
        model="any x86 CPU with AVX-512 VNNI", isa=("avx", "avx2", "fma", "avx512f", "avx512_vnni")
    ),
    "arm64": Cpu(model="any ARM64 CPU with dot products", isa=("asimd", "asimddp")),
    "cuda": Cpu(model="an NVIDIA GPU", isa=()),
}
"""What `--target` may name: descriptions of machines other than this one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hardware:
    """A machine, and how weights become integers for it.

    Attributes:
        cpu: its description; a GPU has no instruction sets.
        products: the grid of 8-bit matrix products.
        convolutions: that of convolutions, whose kernels lay weights out in an order of their own.
        reason: why these grids, in plain words.
        fused_attention: whether ONNX Runtime's `QAttention` beats products and the standard Attention apart.
        slow_8_bit_blocks: whether `MatMulNBits` of 8 bits is slower than float32 for many rows at once
            (51 against 90 GOP/s with AVX2, 1.14 of its time with AVX-512 VNNI): there it pays for models that
            generate, one token at a time.
    """

    cpu: Cpu
    products: Grid
    convolutions: Grid
    reason: str
    fused_attention: bool
    slow_8_bit_blocks: bool

    @property
    def name(self) -> str:
        """For reports."""
        return f"{self.cpu.model} ({', '.join(self.cpu.isa)})" if self.cpu.isa else self.cpu.model


def hardware_for(target: str | None) -> Hardware:
    """Describe the machine named, or this one. Nothing may saturate there, and no bit is given away.

    Raises:
        UsageError: an unknown name; offers the nearest.
    """
    if target is None:
        return hardware_of(machine.cpu())
    if target not in TARGETS:
        raise UsageError(f"unknown --target '{target}': {suggestion(target, TARGETS)}")
    return hardware_of(TARGETS[target])


def is_here(target: str | None) -> bool:
    """Whether what is measured on this machine holds for the one named."""
    if target is None:
        return True
    wanted, here = TARGETS[target], machine.cpu()
    return bool(wanted.isa) and set(wanted.isa) <= set(here.isa) and wanted.saturates == here.saturates


def hardware_of(cpu: Cpu) -> Hardware:
    """What follows from a CPU's instruction sets."""
    reason = (
        "8 bits, scaled so that no pair of products saturates on this CPU (x86 without VNNI)"
        if cpu.saturates
        else "8 bits in full: this machine adds products without saturating"
    )
    return Hardware(
        cpu=cpu,
        products="paired" if cpu.saturates else "full",
        convolutions="seven" if cpu.saturates else "full",
        reason=reason,
        fused_attention="avx512f" not in cpu.isa,
        slow_8_bit_blocks=cpu.x86,
    )
