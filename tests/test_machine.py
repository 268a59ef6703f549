"""Machine facts, read from fake roots."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxkit import machine

EVERYTHING = 64


@pytest.fixture(autouse=True)
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: EVERYTHING)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(EVERYTHING)), raising=False)


def write(root: Path, **files: str) -> Path:
    """Write files; in a name, `__` is a slash and `_DOT_` a dot."""
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_all_cores_without_limits(tmp_path: Path) -> None:
    assert machine.usable_cores(root=tmp_path) == machine.Cores(count=EVERYTHING, source="all cores")


def test_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5}, raising=False)
    assert machine.usable_cores(root=tmp_path) == machine.Cores(count=2, source="affinity")


@pytest.mark.parametrize(
    ("text", "count"), [("150000 100000", 2), ("50000 100000", 1), ("400000 100000", 4), ("max 100000", 64)]
)
def test_cgroup_v2_quota(tmp_path: Path, text: str, count: int) -> None:
    write(tmp_path, proc__self__cgroup="0::/app\n", sys__fs__cgroup__app__cpu_DOT_max=text + "\n")
    cores = machine.usable_cores(root=tmp_path)
    assert (cores.count, cores.source) == (count, "all cores" if count == EVERYTHING else "cgroup quota")


def test_the_smallest_quota_of_all_parents_wins(tmp_path: Path) -> None:
    write(
        tmp_path,
        proc__self__cgroup="0::/a/b\n",
        sys__fs__cgroup__a__b__cpu_DOT_max="800000 100000",
        sys__fs__cgroup__a__cpu_DOT_max="300000 100000",
    )
    assert machine.usable_cores(root=tmp_path).count == 3


def test_a_container_sees_its_limit_at_the_mount(tmp_path: Path) -> None:
    """The path in /proc/self/cgroup is the host's; only the mount's root exists inside."""
    write(tmp_path, proc__self__cgroup="0::/docker/abc\n", sys__fs__cgroup__cpu_DOT_max="200000 100000")
    assert machine.usable_cores(root=tmp_path).count == 2


def test_cgroup_v1_quota(tmp_path: Path) -> None:
    folder = tmp_path / "sys/fs/cgroup/cpu,cpuacct/box"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text("250000\n")
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    write(tmp_path, proc__self__cgroup="4:cpu,cpuacct:/box\n")
    assert machine.usable_cores(root=tmp_path) == machine.Cores(count=3, source="cgroup quota")


def test_cgroup_v1_without_quota(tmp_path: Path) -> None:
    write(tmp_path, proc__self__cgroup="4:cpu:/box\n", sys__fs__cgroup__cpu__box__cpu_DOT_cfs_quota_us="-1\n")
    assert machine.usable_cores(root=tmp_path).count == EVERYTHING


@given(st.text())
def test_any_cgroup_text_gives_at_least_one_core(text: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write(root, proc__self__cgroup="0::/\n" + text.replace("\0", ""))
        (root / "sys/fs/cgroup").mkdir(parents=True)
        (root / "sys/fs/cgroup/cpu.max").write_text(text, encoding="utf-8", errors="replace")
        assert 1 <= machine.usable_cores(root=root).count <= EVERYTHING


@pytest.mark.parametrize(
    ("flags", "vnni", "saturates"),
    [
        ("sse4_2 avx avx2 fma", False, True),
        ("sse4_2 avx2 avx512f avx512_vnni", True, False),
        ("sse4_2 avx2 avx_vnni", True, False),
    ],
)
def test_x86(tmp_path: Path, flags: str, vnni: bool, saturates: bool) -> None:
    write(tmp_path, proc__cpuinfo=f"processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu {flags}\n")
    cpu = machine.cpu(root=tmp_path)
    assert cpu.model == "Some CPU"
    assert set(cpu.isa) == set(flags.split())
    assert (cpu.vnni, cpu.saturates) == (vnni, saturates)


def test_arm_does_not_saturate(tmp_path: Path) -> None:
    write(tmp_path, proc__cpuinfo="processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\n")
    cpu = machine.cpu(root=tmp_path)
    assert cpu.isa == ("asimd", "asimddp", "i8mm")
    assert not cpu.saturates


def test_memory_of_the_machine(tmp_path: Path) -> None:
    write(tmp_path, proc__meminfo="MemTotal:  1000 kB\nMemFree: 5 kB\nMemAvailable:  600 kB\n")
    assert machine.memory(root=tmp_path) == machine.Memory(total_bytes=1024000, available_bytes=614400)


def test_memory_of_the_cgroup_counts_page_cache_as_free(tmp_path: Path) -> None:
    write(
        tmp_path,
        proc__meminfo="MemTotal:  1000000 kB\nMemAvailable:  900000 kB\n",
        proc__self__cgroup="0::/\n",
        sys__fs__cgroup__memory_DOT_max="1000\n",
        sys__fs__cgroup__memory_DOT_current="700\n",
        sys__fs__cgroup__memory_DOT_stat="anon 300\ninactive_file 400\n",
    )
    assert machine.memory(root=tmp_path) == machine.Memory(total_bytes=1000, available_bytes=700)


def test_memory_cgroup_v1_unlimited(tmp_path: Path) -> None:
    write(
        tmp_path,
        proc__meminfo="MemTotal:  1000 kB\nMemAvailable:  900 kB\n",
        proc__self__cgroup="4:memory:/x\n",
        sys__fs__cgroup__memory__x__memory_DOT_limit_in_bytes="9223372036854771712\n",
    )
    assert machine.memory(root=tmp_path).total_bytes == 1024000


def test_peak_memory(tmp_path: Path) -> None:
    write(tmp_path, proc__self__status="Name:\tx\nVmHWM:\t  2048 kB\n")
    assert machine.peak_memory_bytes(root=tmp_path) == 2048 * 1024


def test_peak_memory_elsewhere_is_of_this_process(tmp_path: Path) -> None:
    assert machine.peak_memory_bytes(root=tmp_path) > 1_000_000


def test_cpu_seconds(tmp_path: Path) -> None:
    hertz = os.sysconf("SC_CLK_TCK")
    write(
        tmp_path, proc__stat=f"cpu  {3 * hertz} 0 {hertz} {6 * hertz} {2 * hertz} 0 0 0 0 0\ncpu0 1 2 3 4\n"
    )
    assert machine.cpu_seconds(root=tmp_path) == (4.0, 12.0)
    assert machine.cpu_seconds(root=tmp_path / "none") is None


def test_this_machine() -> None:
    memory = machine.memory()
    assert 0 < memory.available_bytes <= memory.total_bytes
    assert machine.load().average >= 0
    assert machine.resident_bytes() <= machine.peak_memory_bytes()


MAPS = """\
00400000-00800000 r-xp 00000000 08:01 17 /usr/bin/python
7f0000100000-7f0000a00000 rw-p 00000000 00:00 0
7f0001000000-7f0001100000 rw-p 00000000 00:00 0
7f0002000000-7f0003000000 rw-s 00000000 00:00 0
7f0004000000-7f0005000000 rw-p 00000000 08:01 18 /a/model
7f0006000000-7f0007000000 rw-p 00000000 00:00 0 [heap]
"""


def test_only_large_private_memory_without_a_file_goes_into_huge_pages() -> None:
    found = [(hex(start), hex(end)) for start, end in machine._anonymous(MAPS)]
    assert found == [("0x7f0000200000", "0x7f0000a00000"), ("0x7f0006000000", "0x7f0007000000")]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc only")
def test_large_allocations_lie_in_the_heap() -> None:
    code = """
import ctypes
from onnxkit import machine
machine.allocate_side_by_side()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
place = libc.malloc(ctypes.c_size_t(3 << 20))
[heap] = [line for line in open("/proc/self/maps") if line.rstrip().endswith("[heap]")]
start, end = (int(part, 16) for part in heap.split()[0].split("-"))
print(start <= place < end)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_no_huge_pages_here(tmp_path: Path) -> None:
    assert machine.use_huge_pages(root=tmp_path) == 0
    root = write(tmp_path, sys__kernel__mm__transparent_hugepage__enabled="always madvise [never]\n")
    write(root, proc__self__maps=MAPS)
    assert machine.use_huge_pages(root=root) == 0


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux only")
def test_memory_keeps_its_content_in_huge_pages() -> None:
    memory = bytearray(range(256)) * (1 << 16)
    assert 0 <= machine.use_huge_pages() <= 1 << 40
    assert memory == bytearray(range(256)) * (1 << 16)
