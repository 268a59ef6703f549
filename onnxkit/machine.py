"""What this machine really gives this process: cores, instruction sets, memory.

No other module reads /proc or /sys. Each function takes the root of the file system as a
parameter, so that tests (and a curious user) can point it at another machine's files.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")

# What the CPU kernels of ONNX Runtime choose their code by, as /proc/cpuinfo spells it.
_ISA = (
    "sse4_2", "avx", "f16c", "fma", "avx2", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni",
    "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16",
    "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme",
)  # fmt: skip
_X86 = frozenset({"sse4_2", "avx", "avx2", "avx512f"})
_VNNI = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
_HUGE_PAGE, _HUGE_PIECE, _LEAST_HUGE = 2 << 20, 32 << 20, 4 << 20
_HUGE_ADVICE = (14, 25)  # MADV_HUGEPAGE, MADV_COLLAPSE
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
# cgroup v1 writes "no limit" as the largest multiple of the page size below 2**63.
_V1_UNLIMITED = 1 << 60


@dataclass(frozen=True, kw_only=True)
class Cores:
    """How many threads this process can really run at once, and which fact said so."""

    count: int
    source: str


@dataclass(frozen=True, kw_only=True)
class Cpu:
    """The processor: its name, and those of its instruction sets that matter for speed."""

    model: str
    isa: tuple[str, ...]

    @property
    def x86(self) -> bool:
        """Whether it is an x86 CPU."""
        return not _X86.isdisjoint(self.isa)

    @property
    def vnni(self) -> bool:
        """Whether the CPU multiplies int8 pairs and adds them in 32 bits in one instruction."""
        return not _VNNI.isdisjoint(self.isa)

    @property
    def saturates(self) -> bool:
        """Whether u8 x s8 products saturate in 16 bits (x86 without VNNI: `vpmaddubsw`)."""
        return self.x86 and not self.vnni


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Memory that this process may use, the smaller of the machine's and its cgroup's."""

    total_bytes: int
    available_bytes: int


@dataclass(frozen=True, kw_only=True)
class Load:
    """What else keeps the machine busy: runnable tasks over the last minute (`uptime`'s figure)."""

    average: float
    cores: int


def usable_cores(*, root: Path = ROOT) -> Cores:
    """Count the cores by CPU affinity and cgroup quota; the smaller one wins.

    A quota of 1.5 cores counts as 2, as two threads can use it.
    """
    everything = os.cpu_count() or 1
    allowed = _affinity() or everything
    quota = _quota(root)
    if quota is not None and math.ceil(quota) < allowed:
        return Cores(count=max(1, math.ceil(quota)), source="cgroup quota")
    return Cores(count=allowed, source="affinity" if allowed < everything else "all cores")


def cpu(*, root: Path = ROOT) -> Cpu:
    """Read the CPU's name and instruction sets (Linux: /proc/cpuinfo; macOS: sysctl)."""
    text = _read(root / "proc/cpuinfo")
    if text is None:
        return _macos_cpu() if platform.system() == "Darwin" else Cpu(model=platform.machine(), isa=())
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    model = fields.get("model name") or fields.get("Hardware") or platform.machine()
    return Cpu(model=model, isa=tuple(name for name in _ISA if name in flags))


def memory(*, root: Path = ROOT) -> Memory:
    """Return total and available memory in bytes, bounded by the memory cgroups of this process."""
    total, available = _machine_memory(root)
    for limit, used in _memory_limits(root):
        total = min(total, limit)
        available = min(available, max(0, limit - used))
    return Memory(total_bytes=total, available_bytes=available)


def peak_memory_bytes(*, root: Path = ROOT) -> int:
    """Return the most resident memory that this process ever had, in bytes.

    Linux's VmHWM begins anew at exec; `getrusage` (used elsewhere) carries the parent's peak over.
    """
    for line in (_read(root / "proc/self/status") or "").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def resident_bytes(*, root: Path = ROOT) -> int:
    """Return the memory that is resident now, in bytes."""
    statm = _read(root / "proc/self/statm")
    if statm is not None:
        return int(statm.split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import psutil

    return int(psutil.Process().memory_info().rss)


def load(*, root: Path = ROOT) -> Load:
    """Return the load average of the last minute."""
    try:
        average = os.getloadavg()[0]
    except OSError:
        average = 0.0
    return Load(average=average, cores=usable_cores(root=root).count)


def cpu_seconds(*, root: Path = ROOT) -> tuple[float, float] | None:
    """Return (busy, total) CPU seconds of the whole machine since boot; None where unknown.

    Two readings tell what others used in between: see `measure.latency`.
    """
    first = (_read(root / "proc/stat") or "").partition("\n")[0].split()
    if len(first) < 5 or first[0] != "cpu":
        return None
    ticks = [int(field) for field in first[1:9]]
    hertz = os.sysconf("SC_CLK_TCK")
    idle = ticks[3] + (ticks[4] if len(ticks) > 4 else 0)
    return (sum(ticks) - idle) / hertz, sum(ticks) / hertz


def allocate_side_by_side() -> None:
    """Let allocations below 32 MiB lie together in this process's heap from now on (glibc's malloc).

    By itself it maps each of them of its own, and of weights of a few MiB only the whole huge pages within
    can be taken up (`use_huge_pages`): 70 % of a 135M model's, where all of them are 3 to 6 % faster to
    decode with. 32 MiB is the largest that it accepts; memory freed at the heap's end stays, up to 256 MiB.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_MMAP_THRESHOLD, 32 << 20)
            mallopt(_TRIM_THRESHOLD, 256 << 20)


def use_huge_pages(*, root: Path = ROOT) -> int:
    """Move this process's large anonymous memory into huge pages; return how many bytes were taken up.

    Most Linux distributions give huge pages only to who asks (`transparent_hugepage/enabled`: madvise), so
    that a model's weights lie in pages of 4 KiB, and reading all of them for every token misses the
    TLB. Asks by madvise(2): MADV_HUGEPAGE, and MADV_COLLAPSE (Linux 6.1) for what is there already. Takes
    about 1.6 s a GB, in pieces, without the interpreter's lock. 0 where the system has none of this.
    """
    enabled = _read(root / "sys/kernel/mm/transparent_hugepage/enabled") or "[never]"
    maps = _read(root / "proc/self/maps") or ""
    if "[never]" in enabled:
        return 0
    advise = ctypes.CDLL(None, use_errno=True).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return sum(
        min(_HUGE_PIECE, end - place)
        for start, end in _anonymous(maps)
        for place in range(start, end, _HUGE_PIECE)
        if not any(advise(place, min(_HUGE_PIECE, end - place), advice) for advice in _HUGE_ADVICE)
    )


def _anonymous(maps: str) -> Iterator[tuple[int, int]]:
    """Yield the whole huge pages [start, end) in the private writable memory of /proc/self/maps."""
    for line in maps.splitlines():
        place, mode, *_, last = line.split()
        if not mode.startswith("rw") or mode.endswith("s") or last not in ("0", "[heap]"):
            continue  # the last field is the inode, 0 for memory without a file, or a name
        start, end = (int(address, 16) for address in place.split("-"))
        start, end = -(-start // _HUGE_PAGE) * _HUGE_PAGE, end // _HUGE_PAGE * _HUGE_PAGE
        if end - start >= _LEAST_HUGE:
            yield start, end


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _affinity() -> int | None:
    getter: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    return len(getter(0)) if getter else None


def _cgroup_dirs(root: Path, controller: str) -> Iterator[tuple[int, Path]]:
    """Yield (cgroup version, directory) that may limit this process, innermost first.

    Inside a container the path of /proc/self/cgroup is the host's and not visible: the walk up to
    the mount's root still meets the container's own limit there.
    """
    mount = root / "sys/fs/cgroup"
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            bases, version = (mount, mount / "unified"), 2
        elif controller in controllers.split(","):
            bases, version = (mount / controller, mount / controllers), 1
        else:
            continue
        for base in dict.fromkeys(bases):
            here = base / path.lstrip("/")
            for directory in (here, *here.parents):
                yield version, directory
                if directory == base:
                    break


def _quota(root: Path) -> float | None:
    """Return the smallest CPU quota in cores, or None without one (cgroup v2 cpu.max, v1 cfs)."""
    quotas: list[float] = []
    for version, directory in _cgroup_dirs(root, "cpu"):
        if version == 2:
            words = (_read(directory / "cpu.max") or "").split() or ["max"]
            quota, period = [*words, "100000"][:2]
        else:
            quota = (_read(directory / "cpu.cfs_quota_us") or "-1").strip()
            period = (_read(directory / "cpu.cfs_period_us") or "100000").strip()
        if quota.isdecimal() and period.isdecimal() and int(quota) > 0 and int(period) > 0:
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _memory_limits(root: Path) -> Iterator[tuple[int, int]]:
    """Yield (limit, used without reclaimable page cache) in bytes of each limiting cgroup."""
    names = {
        2: ("memory.max", "memory.current", "inactive_file"),
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    }
    for version, directory in _cgroup_dirs(root, "memory"):
        limit_file, usage_file, cache = names[version]
        limit = (_read(directory / limit_file) or "max").strip()
        if not limit.isdecimal() or int(limit) >= _V1_UNLIMITED:
            continue
        usage = (_read(directory / usage_file) or "0").strip()
        used = int(usage) if usage.isdecimal() else 0
        for line in (_read(directory / "memory.stat") or "").splitlines():
            key, _, value = line.partition(" ")
            if key == cache and value.strip().isdecimal():
                used = max(0, used - int(value))
        yield int(limit), used


def _machine_memory(root: Path) -> tuple[int, int]:
    kilobytes: dict[str, int] = {}
    for line in (_read(root / "proc/meminfo") or "").splitlines():
        key, _, value = line.partition(":")
        if value.split() and value.split()[0].isdecimal():
            kilobytes[key] = int(value.split()[0])
    if "MemTotal" in kilobytes:
        total = kilobytes["MemTotal"] * 1024
        return total, kilobytes.get("MemAvailable", kilobytes["MemTotal"]) * 1024
    import psutil

    machine = psutil.virtual_memory()
    return int(machine.total), int(machine.available)


def _macos_cpu() -> Cpu:
    def sysctl(name: str) -> str:
        done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    names = {"asimd": "AdvSIMD", "asimddp": "FEAT_DotProd", "i8mm": "FEAT_I8MM", "bf16": "FEAT_BF16"}
    isa = [ours for ours, theirs in names.items() if sysctl(f"hw.optional.arm.{theirs}") == "1"]
    if sysctl("hw.optional.avx2_0") == "1":
        isa.append("avx2")
    return Cpu(model=sysctl("machdep.cpu.brand_string") or platform.machine(), isa=tuple(isa))
