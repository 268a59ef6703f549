"""A plain SVG of what each layer costs: one bar a layer, no library, readable on light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_ROW, _BAR, _TOP, _RIGHT = 16, 10, 56, 24
_PLOT_WIDTH = 560
_LETTER = 6.2  # width of a letter at 11 px, about
_LONGEST = 64
_STYLE = (
    "text{font:11px sans-serif;fill:#444}.t{font-size:14px;font-weight:bold}.n{text-anchor:end}"
    ".m{text-anchor:middle}.g{stroke:#888;stroke-opacity:.35}.b{fill:#5b8db8}.w{fill:#d1793b}.e{fill-opacity:.5}"
    "@media(prefers-color-scheme:dark){text{fill:#bbb}}"
)


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A layer.

    Attributes:
        name: shown on the left, cut in its middle where it is long.
        value: what is drawn, above 0; on a logarithmic axis.
        marked: drawn in the other colour.
        faint: drawn lightly: estimated, not measured.
        note: shown when pointed at.
    """

    name: str
    value: float
    marked: bool = False
    faint: bool = False
    note: str = ""


def bar_chart(bars: Sequence[Bar], *, title: str, axis: str, legend: Sequence[tuple[str, str]] = ()) -> str:
    """Draw horizontal bars on a logarithmic axis, in the order given.

    Args:
        bars: one each row; values of 0 or less, or not finite, get no bar or a full one.
        title: above it.
        axis: what the values are, with their unit.
        legend: class of colour ("b", "w", "e b") and what it means.
    """
    low, high = _decades([bar.value for bar in bars])
    left = 12 + _LETTER * max((min(len(bar.name), _LONGEST) for bar in bars), default=0)
    width, height = left + _PLOT_WIDTH + _RIGHT, _TOP + _ROW * len(bars) + 44

    def across(value: float) -> float:
        if not value > 0.0:
            return 0.0
        share = (math.log10(value) - low) / (high - low) if math.isfinite(value) else 1.0
        return _PLOT_WIDTH * min(max(share, 0.0), 1.0)

    bottom = _TOP + _ROW * len(bars)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" '
        f'viewBox="0 0 {width:.0f} {height}" role="img">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style>",
        f'<text class="t" x="12" y="20">{escape(title)}</text>',
        *_legend(legend),
    ]
    for power in range(low, high + 1):
        x = left + _PLOT_WIDTH * (power - low) / (high - low)
        parts.append(f'<line class="g" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom}"/>')
        parts.append(f'<text class="m" x="{x:.1f}" y="{bottom + 15}">{10.0**power:g}</text>')
    parts.append(f'<text class="m" x="{left + _PLOT_WIDTH / 2:.0f}" y="{bottom + 34}">{escape(axis)}</text>')
    parts += [_row(bar, number, left, across(bar.value)) for number, bar in enumerate(bars)]
    return "\n".join([*parts, "</svg>", ""])


def _row(bar: Bar, number: int, left: float, length: float) -> str:
    y = _TOP + _ROW * number
    look = ("w" if bar.marked else "b") + (" e" if bar.faint else "")
    note = f"<title>{escape(f'{bar.name}: {bar.note}')}</title>" if bar.note else ""
    return (
        f'<g>{note}<text class="n" x="{left - 6:.1f}" y="{y + 12}">{escape(_cut(bar.name))}</text>'
        f'<rect class="{look}" x="{left:.1f}" y="{y + 3}" width="{length:.1f}" height="{_BAR}"/></g>'
    )


def _legend(entries: Sequence[tuple[str, str]]) -> list[str]:
    parts, x = [], 12.0
    for look, text in entries:
        parts.append(f'<rect class="{escape(look)}" x="{x:.0f}" y="31" width="10" height="10"/>')
        parts.append(f'<text x="{x + 15:.0f}" y="40">{escape(text)}</text>')
        x += 34 + _LETTER * len(text)
    return parts


def _cut(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST // 2 - 1]}…{name[-_LONGEST // 2 :]}"


def _decades(values: Sequence[float]) -> tuple[int, int]:
    """The powers of ten around the values; six of them at most below the largest."""
    logs = [math.log10(value) for value in values if 0.0 < value < math.inf]
    if not logs:
        return -1, 0
    high = math.ceil(max(logs))
    return max(min(math.floor(min(logs)), high - 1), high - 6), high


__all__ = ["Bar", "bar_chart"]
