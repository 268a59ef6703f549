"""The facts that a figure must be read with: where a session ran, and on what machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxkit import machine
from onnxkit.runtime import opset_ceiling

if TYPE_CHECKING:
    from onnxkit.runtime import Session


@dataclass(frozen=True, kw_only=True)
class MachineFacts:
    """The machine behind the figures."""

    cpu: str
    isa: tuple[str, ...]
    cores: int
    cores_source: str
    memory_bytes: int
    onnxruntime: str


@dataclass(frozen=True, kw_only=True)
class SessionFacts:
    """Effective settings of a session.

    Attributes:
        provider: full name of the provider that really ran the model.
        threads, threads_source: threads of one operator, and where the number came from.
        nodes: nodes by provider, as ONNX Runtime assigned them.
        fallback_nodes: "name (Op)" of each node that is on another provider than asked for.
        load_ms: milliseconds that opening took.
    """

    provider: str
    threads: int
    threads_source: str
    nodes: Mapping[str, int]
    fallback_nodes: tuple[str, ...]
    load_ms: float


def machine_facts() -> MachineFacts:
    """Look at the machine now."""
    cpu, cores = machine.cpu(), machine.usable_cores()
    return MachineFacts(
        cpu=cpu.model,
        isa=cpu.isa,
        cores=cores.count,
        cores_source=cores.source,
        memory_bytes=machine.memory().total_bytes,
        onnxruntime=opset_ceiling().onnxruntime,
    )


def session_facts(session: Session) -> SessionFacts:
    """Read the effective settings of an open session."""
    return SessionFacts(
        provider=session.provider,
        threads=session.threads.count,
        threads_source=session.threads.source,
        nodes=dict(session.placement.nodes),
        fallback_nodes=session.placement.fallback_nodes,
        load_ms=session.load_ms,
    )


def describe(facts: SessionFacts) -> str:
    """Say the settings in one line, for `progress.note`."""
    nodes = ", ".join(f"{count} nodes on {name}" for name, count in facts.nodes.items())
    plural = "" if facts.threads == 1 else "s"
    return f"{facts.provider}, {facts.threads} thread{plural} ({facts.threads_source}), {nodes or 'no nodes'}"
