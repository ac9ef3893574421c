"""Charts as SVG: lines, stacked bars, sparklines."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from html import escape

from support.dashboard_preview import units
from support.dashboard_preview.series import COLOURS, Series, Window

_GRID = "rgba(204,204,220,0.09)"
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 10, 8, 22
_TIME_STEP = 30
"""Seconds between the labels of the time axis."""
Size = tuple[float, float]
"""Width and height, in pixels."""


class Axes:
    """The axes of a chart from 0 to a little above `high`."""

    def __init__(self, size: Size, window: Window, high: float, unit: str) -> None:
        self.width, self.height = size
        self.window, self.high, self.unit = window, (high or 1) * 1.06, unit

    def x(self, time: float) -> float:
        """Return the time's place, in pixels."""
        share = (time - self.window.start) / (self.window.end - self.window.start)
        return min(self.width - _RIGHT, max(_LEFT, _LEFT + share * (self.width - _LEFT - _RIGHT)))

    def y(self, value: float) -> float:
        """Return the value's place, in pixels."""
        return self.height - _BOTTOM - value / self.high * (self.height - _TOP - _BOTTOM)

    def draw(self, content: Iterable[str]) -> str:
        """Return the SVG: grid, labels and content."""
        return svg((self.width, self.height), [*self._grid(), *content])

    def _grid(self) -> Iterator[str]:
        for value, label in units.ticks(self.high, self.unit, max(2, int(self.height / 42))):
            y = self.y(value)
            yield f'<line x1="{_LEFT}" x2="{self.width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{_GRID}"/>'
            yield f'<text x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{escape(label)}</text>'
        step = _TIME_STEP if self.width > 500 else 2 * _TIME_STEP
        for number in range(int(self.window.start / step) + 1, int(self.window.end / step) + 1):
            x = self.x(number * step)
            if _LEFT + 8 < x < self.width - 28:
                label = datetime.fromtimestamp(number * step, UTC).strftime("%H:%M:%S")
                yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{self.height - _BOTTOM}" stroke="{_GRID}"/>'
                yield f'<text x="{x:.1f}" y="{self.height - 6:.1f}" text-anchor="middle">{label}</text>'


def svg(size: Size, parts: Iterable[str]) -> str:
    """Return the parts as one picture."""
    return f'<svg width="{size[0]:.0f}" height="{size[1]:.0f}" fill="#9fa1aa">{"".join(parts)}</svg>'


def lines(series: Sequence[Series], size: Size, window: Window, unit: str, limits: Sequence[tuple[float, str]]) -> str:
    """Draw a line for each series, and a dashed line for each limit in sight (value and colour)."""
    axes = Axes(size, window, max((one.highest for one in series), default=0), unit)
    parts = []
    for value, colour in limits:
        if value < axes.high:
            y = axes.y(value)
            ends = f'x1="{_LEFT}" x2="{axes.width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"'
            parts.append(f'<line {ends} stroke="{COLOURS[colour]}" stroke-dasharray="7 5" opacity="0.75"/>')
    for one in series:
        points = " ".join(f"{axes.x(time):.1f},{axes.y(value):.1f}" for time, value in one.points)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{one.colour}" stroke-width="1.4"/>')
    return axes.draw(parts)


def bars(series: Sequence[Series], size: Size, window: Window, unit: str) -> str:
    """Draw the series stacked, with a bar for each point in time."""
    sums: dict[float, float] = {}
    stacked = []
    for one in series:
        for time, value in one.points:
            stacked.append((time, sums.get(time, 0.0), value, one.colour))
            sums[time] = sums.get(time, 0.0) + value
    axes = Axes(size, window, max(sums.values(), default=0), unit)
    parts = []
    for time, below, value, colour in stacked:
        left, right = axes.x(time - window.step / 2), axes.x(time + window.step / 2)
        top, bottom = axes.y(below + value), axes.y(below)
        box = f'x="{left:.1f}" y="{top:.1f}" width="{right - left + 0.3:.1f}" height="{bottom - top:.1f}"'
        parts.append(f'<rect {box} fill="{colour}" opacity="0.85"/>')
    return axes.draw(parts)


def sparkline(one: Series, size: Size) -> str:
    """Draw the course of a value, without axes."""
    if len(one.points) < 2:
        return ""
    (start, _), (end, _) = one.points[0], one.points[-1]
    low = min(value for _, value in one.points)
    spread = one.highest - low or 1
    line = " ".join(
        f"{(time - start) / (end - start) * size[0]:.1f},{size[1] - 4 - (value - low) / spread * (size[1] - 8):.1f}"
        for time, value in one.points
    )
    area = f'<polygon points="0,{size[1]:.0f} {line} {size[0]:.0f},{size[1]:.0f}" fill="#fff" opacity="0.16"/>'
    return svg(size, [area, f'<polyline points="{line}" fill="none" stroke="#fff" opacity="0.7"/>'])
