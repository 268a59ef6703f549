"""`onnxkit doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from onnxkit.cli import figures, options
from onnxkit.cli.console import Column, Console

if TYPE_CHECKING:
    from onnxkit.measure.doctor import CudaReport, DoctorReport

EXAMPLES = """
onnxkit doctor
onnxkit doctor --json
"""


def doctor(
    ctx: typer.Context,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Show what this machine offers: versions, providers, CUDA libraries, cores, instruction sets."""
    from onnxkit.measure.doctor import examine

    report = examine()
    ctx.obj.result("doctor", report, show, data=True)


def show(console: Console, report: DoctorReport) -> None:
    """Print versions, providers, CUDA, the machine, and what to mend."""
    console.facts(
        [
            ("onnxkit", report.onnxkit),
            ("python", report.python),
            ("platform", report.platform),
            ("onnxruntime", _onnxruntime(report)),
            ("telemetry", report.telemetry),
            ("cpu", report.cpu),
            ("instructions", " ".join(report.isa)),
            ("int8", _int8(report)),
            ("cores", f"{report.cores} ({report.cores_source}), load average {report.load_average:.2f}"),
            (
                "memory",
                f"{figures.size(report.memory_available_bytes)} available of "
                f"{figures.size(report.memory_total_bytes)}",
            ),
        ]
    )
    console.heading("Packages")
    console.table(
        (Column("package"), Column("version"), Column("for")),
        [(one.name, one.version or "missing", one.extra or "base") for one in report.packages],
    )
    console.heading("Execution providers")
    console.table(
        (Column("provider"), Column("usable"), Column("why not", wide=True)),
        [(one.name, "yes" if one.usable else "no", one.reason) for one in report.providers],
    )
    if report.cuda is not None:
        _show_cuda(console, report.cuda)
    console.heading("To mend" if report.advice else "Nothing to mend")
    for advice in report.advice:
        console.line(f"- {advice}")


def _onnxruntime(report: DoctorReport) -> str:
    wheels = ", ".join(f"{name} {version}" for name, version in report.onnxruntime_wheels.items())
    takes = f"; takes opset {report.opset}, IR {report.ir}" if report.opset else ""
    return f"{wheels or 'not installed'}{takes}"


def _int8(report: DoctorReport) -> str:
    if report.vnni:
        return "VNNI: 8-bit weights at full speed"
    if report.saturates:
        return "no VNNI: products of 8-bit weights can saturate; quantize chooses scales so that none does"
    return "products of 8-bit weights do not saturate"


def _show_cuda(console: Console, cuda: CudaReport) -> None:
    console.heading("CUDA")
    console.facts(
        [
            ("built for", cuda.built_for),
            ("driver", cuda.driver),
            ("devices", str(cuda.devices)),
            ("found", ", ".join(cuda.libraries_found) or "none"),
            ("missing", ", ".join(cuda.libraries_missing)),
            ("mend with", cuda.install),
        ]
    )
