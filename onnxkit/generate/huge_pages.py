"""When it pays to move a model's weights into huge pages."""

from __future__ import annotations

import threading

from onnxkit.machine import resident_bytes, use_huge_pages

# Bytes a second that a move takes up, measured on one core.
_PACE = 6e8


class HugePages:
    """Moves this process's memory into huge pages once decoding has taken as long as the move will.

    Every token reads all weights; in huge pages that is 10 to 25 % faster (docs/benchmarks.md). By waiting
    until as much was spent as the move costs, a short run never pays more than twice for it, and a long one
    has it early (the ski-rental rule). The move itself runs on a thread of its own.
    """

    def __init__(self) -> None:
        """Take the memory that the process has now as what there is to move."""
        self._left_s = resident_bytes() / _PACE
        self._begun = False

    def spent(self, seconds: float) -> None:
        """Count time that the decoder ran."""
        self._left_s -= seconds
        if self._left_s < 0 and not self._begun:
            self._begun = True
            threading.Thread(target=use_huge_pages, name="onnxkit-huge-pages", daemon=True).start()

    def now(self) -> None:
        """Move at once, and wait for it: before something is timed."""
        self._begun = True
        use_huge_pages()
