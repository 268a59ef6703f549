"""Every part of a plan, level after level, until one graph holds; what was tried and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onnxkit.errors import OnnxkitError, ResourceError
from onnxkit.export.phases import Phases
from onnxkit.export.report import LevelName, LevelTrial

if TYPE_CHECKING:
    from onnxkit.export.checking import Checker
    from onnxkit.export.levels import Candidate, Workshop
    from onnxkit.export.parts import Part
    from onnxkit.export.reference import Check
    from onnxkit.graph.shared_data import SharedData

SHARED_DATA = "model.onnx.data"
"""Weights of a model of several graphs."""


class Attempts:
    """Makes the graphs of one plan in a staging directory.

    Attributes:
        trials: every level that was tried, in order.
        checks: the last comparison with PyTorch of each part, by its name.
    """

    def __init__(
        self, shop: Workshop, staging: Path, checker: Checker, *, verify: bool, phases: Phases
    ) -> None:
        self.trials: list[LevelTrial] = []
        self.checks: dict[str, Check] = {}
        self._shop, self._staging, self._checker = shop, staging, checker
        self._verify, self._phases = verify, phases
        self._shared = _shared_data(shop, staging)

    def make(self, part: Part, levels: Sequence[LevelName]) -> Candidate | None:
        """The first level's graph that holds, written; None when none does."""
        refused = False
        for level in levels:
            if refused and level == "L2":
                continue  # decompositions say nothing that the hooks cannot
            mark = self._shared.mark() if self._shared is not None else 0
            candidate, refusal = self._attempt(part, level)
            if candidate is not None:
                return candidate
            refused |= refusal
            if self._shared is not None:
                self._shared.rewind(mark)
        return None

    def _attempt(self, part: Part, level: LevelName) -> tuple[Candidate | None, bool]:
        """The level's graph, written and checked, or None; and whether hooks are of no use here."""
        from onnxkit.export.levels import LevelRefused, write_graph
        from onnxkit.export.reference import RandomModel

        candidate = None
        try:
            candidate = self._shop.make(part, level)
            with self._phases("write"):
                write_graph(candidate, self._staging, self._shared)
            reason = self._judge(candidate)
        except OnnxkitError as error:
            # Before there is a graph the checkpoint is at fault, afterwards (ONNX Runtime refuses) the level.
            if candidate is None or isinstance(error, (ResourceError, RandomModel)):
                raise
            self._give_up(part, level, error)
            return None, False
        except Exception as error:  # torch and its kin raise all kinds: the next level decides
            self._give_up(part, level, error)
            return None, isinstance(error, LevelRefused)
        check = self.checks.get(part.name)
        accepted = check is None or check.verification.passed
        self.trials.append(
            LevelTrial(
                part=part.name, level=level, accepted=accepted, reason=reason,
                attentions=candidate.attentions, attention_calls=candidate.attention_calls,
            )
        )  # fmt: skip
        return (candidate if accepted else None), False

    def _give_up(self, part: Part, level: LevelName, error: Exception) -> None:
        from onnxkit.export.refusals import reason

        said = reason(error)
        self.trials.append(LevelTrial(part=part.name, level=level, accepted=False, reason=said))

    def _judge(self, candidate: Candidate) -> str:
        """Check the written graph, and say how it went; `checks` holds the figures."""
        count = candidate.attentions
        calls = candidate.attention_calls
        enough = ", as many as calls" if count == calls else f" for {calls} calls"
        hooks = (
            f"{count} attention operator{'' if count == 1 else 's'}{enough}"
            if count is not None
            else "transformers' exporter"
        )
        with self._phases("verify"):
            if not self._verify:
                self._checker.loads(candidate)
                return f"{hooks}; not verified"
            check = self.checks[candidate.part.name] = self._checker.compare(candidate)
        result = check.verification
        word = "within" if result.passed else "not within"
        return (
            f"{hooks}; worst difference {result.worst:.1e} ({result.output}), {word} {result.tolerance:.0e}"
        )


def each_once(trials: Sequence[LevelTrial]) -> str:
    """Every reason with the levels that gave it: "L1, L2: no; L3: not either"."""
    levels: dict[str, list[str]] = {}
    for trial in trials:
        levels.setdefault(trial.reason, []).append(trial.level)
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in levels.items())


def _shared_data(shop: Workshop, staging: Path) -> SharedData | None:
    from onnxkit.graph.shared_data import SharedData

    return SharedData(staging / SHARED_DATA) if len(shop.plan.parts) > 1 else None
