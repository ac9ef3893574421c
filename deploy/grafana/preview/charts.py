"""Charts as SVG: lines, stacked bars, sparklines, heatmaps. They know points and pixels, and nothing of panels."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape

import units
from colours import NAMED
from data import Points, Series

_GRID = "rgba(204,204,220,0.09)"
_TEXT = "#9fa1aa"
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 10, 8, 22
_COLDEST, _HOTTEST = (45, 30, 18), (255, 140, 40)


class Frame:
    """The axes of a chart, and where on it a point is."""

    def __init__(self, width: float, height: float, times: tuple[float, float], values: tuple[float, float]) -> None:
        self.width, self.height = width, height
        self.start, self.end = times
        self.low, self.high = values

    def x(self, time: float) -> float:
        """In pixels."""
        return _LEFT + (time - self.start) / (self.end - self.start) * (self.width - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        """In pixels."""
        share = (value - self.low) / (self.high - self.low)
        return self.height - _BOTTOM - share * (self.height - _TOP - _BOTTOM)

    def draw(self, labels: Sequence[tuple[float, str]], content: Sequence[str]) -> str:
        """The SVG: grid and labels, then the content."""
        right, bottom = self.width - _RIGHT, self.height - _BOTTOM
        parts = []
        for value, label in labels:
            y = self.y(value)
            parts.append(f'<line x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="{_GRID}"/>')
            parts.append(f'<text x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{escape(label)}</text>')
        for time, label in self._times():
            x = self.x(time)
            parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}" stroke="{_GRID}"/>')
            parts.append(f'<text x="{x:.1f}" y="{self.height - 6:.1f}" text-anchor="middle">{label}</text>')
        return _svg(self.width, self.height, [*parts, *content])

    def _times(self) -> list[tuple[float, str]]:
        seconds, room = self.end - self.start, max(2, int((self.width - _LEFT) / 90))
        steps = (5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200)
        step = next((step for step in steps if seconds / step <= room), 86400)
        form = "%H:%M:%S" if step < 60 else "%H:%M" if step < 86400 else "%m-%d"
        first = math.ceil(self.start / step)
        found = []
        for number in range(first, math.floor(self.end / step) + 1):
            time = float(number * step)
            if _LEFT + 8 < self.x(time) < self.width - 28:
                found.append((time, datetime.fromtimestamp(time, UTC).strftime(form)))
        return found


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}" fill="{_TEXT}">'
        + "".join(parts)
        + "</svg>"
    )


def lines(
    series: Sequence[Series],
    size: tuple[float, float],
    times: tuple[float, float],
    unit: str,
    steps: Sequence[tuple[float, str]],
    fill: float,
) -> str:
    """A line for each series, with so much colour below it, of 1.

    `steps` are values and colours of dashed lines, drawn where they are in sight.
    """
    values = [value for one in series for _, value in one.points if math.isfinite(value)]
    frame, labels = _frame(size, times, min([0, *values]), max([0, *values]), unit)
    parts = []
    for value, colour in steps:
        if frame.low < value < frame.high:
            y = frame.y(value)
            parts.append(
                f'<line x1="{_LEFT}" x2="{frame.width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" '
                f'stroke="{NAMED[colour]}" stroke-dasharray="7 5" opacity="0.75"/>'
            )
    for one in series:
        points = " ".join(f"{frame.x(t):.1f},{frame.y(v):.1f}" for t, v in one.points if math.isfinite(v))
        if fill and len(one.points) > 1:
            first, last = frame.x(one.points[0][0]), frame.x(one.points[-1][0])
            floor = frame.y(max(0, frame.low))
            area = f"{first:.1f},{floor:.1f} {points} {last:.1f},{floor:.1f}"
            parts.append(f'<polygon points="{area}" fill="{one.colour}" opacity="{fill}"/>')
        parts.append(f'<polyline points="{points}" fill="none" stroke="{one.colour}" stroke-width="1.4"/>')
    return frame.draw(labels, parts)


def bars(
    series: Sequence[Series], size: tuple[float, float], times: tuple[float, float], unit: str, step: float
) -> str:
    """The series stacked; a bar for each point in time, `step` seconds wide."""
    sums: dict[float, float] = {}
    stacked = []
    for one in series:
        for time, value in one.points:
            if value > 0 and math.isfinite(value):
                stacked.append((time, sums.get(time, 0.0), value, one.colour))
                sums[time] = sums.get(time, 0.0) + value
    frame, labels = _frame(size, times, 0, max(sums.values(), default=0), unit)
    gap = 1 if frame.x(step) - frame.x(0) > 8 else -0.3  # narrow bars with gaps would only flicker
    parts = []
    for time, below, value, colour in stacked:
        left, right = max(_LEFT, frame.x(time - step / 2)), min(frame.width - _RIGHT, frame.x(time + step / 2))
        top, bottom = frame.y(below + value), frame.y(below)
        parts.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{max(0.5, right - left - gap):.2f}" '
            f'height="{bottom - top:.1f}" fill="{colour}" opacity="0.85"/>'
        )
    return frame.draw(labels, parts)


def _frame(
    size: tuple[float, float], times: tuple[float, float], low: float, high: float, unit: str
) -> tuple[Frame, Sequence[tuple[float, str]]]:
    """Axes with a little air above, and the labels of the values."""
    if high <= low:
        high = low + 1
    high += (high - low) * 0.06
    return Frame(*size, times, (low, high)), units.ticks(low, high, unit, max(2, int(size[1] / 42)))


def sparkline(points: Points, size: tuple[float, float]) -> str:
    """How a value has gone, without any axis."""
    width, height = size
    known = [(time, value) for time, value in points if math.isfinite(value)]
    if len(known) < 2:
        return ""
    start, end = known[0][0], known[-1][0]
    low, high = min(value for _, value in known), max(value for _, value in known)
    if high == low:
        low, high = low - 1, high + 1
    line = " ".join(
        f"{(time - start) / (end - start) * width:.1f},{height - 2 - (value - low) / (high - low) * (height - 6):.1f}"
        for time, value in known
    )
    area = f'<polygon points="0,{height} {line} {width:.0f},{height}" fill="#fff" opacity="0.16"/>'
    return _svg(
        width, height, [area, f'<polyline points="{line}" fill="none" stroke="#fff" stroke-width="1.3" opacity="0.7"/>']
    )


def heatmap(
    series: Sequence[Series], size: tuple[float, float], times: tuple[float, float], unit: str, step: float
) -> str:
    """Cumulative buckets with the label `le`, as the counts between their edges."""
    buckets = sorted(series, key=lambda one: float(one.labels["le"]))
    counts: dict[tuple[int, float], float] = {}
    for number, bucket in enumerate(buckets):
        below = dict(buckets[number - 1].points) if number else {}
        for time, value in bucket.points:
            count = value - below.get(time, 0.0)
            if count > 1e-9:
                counts[number, time] = count
    most = max(counts.values(), default=1.0)
    shown = min(len(buckets), max((number for number, _ in counts), default=0) + 3)
    frame = Frame(*size, times, (0, shown))
    parts = []
    for (number, time), count in counts.items():
        left, right = max(_LEFT, frame.x(time - step / 2)), min(frame.width - _RIGHT, frame.x(time + step / 2))
        top, bottom = frame.y(number + 1), frame.y(number)
        parts.append(
            f'<rect x="{left:.1f}" y="{top + 0.5:.1f}" width="{max(0.5, right - left - 1):.1f}" '
            f'height="{bottom - top - 1:.1f}" fill="{heat(count / most)}"/>'
        )
    labels = [(number + 1.0, _edge(buckets[number], unit)) for number in range(shown)]
    return frame.draw(labels, parts)


def _edge(bucket: Series, unit: str) -> str:
    return "+Inf" if bucket.labels["le"] == "+Inf" else units.text(float(bucket.labels["le"]), unit)


def heat(share: float) -> str:
    """From dark to bright; the root makes small counts visible."""
    weight = math.sqrt(share)
    red, green, blue = (round(c + (h - c) * weight) for c, h in zip(_COLDEST, _HOTTEST, strict=True))
    return f"rgb({red},{green},{blue})"
