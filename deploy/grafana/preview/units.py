"""Numbers with units, as Grafana writes them."""

import math
from collections.abc import Sequence

Scale = tuple[float, str]
"""Factor and suffix."""

_THOUSANDS: tuple[Scale, ...] = ((1, ""), (1e3, " K"), (1e6, " Mil"), (1e9, " Bil"))
_SCALES: dict[str, tuple[Scale, ...]] = {
    "s": (
        (1e-6, " µs"), (1e-3, " ms"), (1, " s"), (60, " min"), (3600, " h"), (86400, " days"),
    ),
    "percentunit": ((0.01, "%"),),
    "bytes": ((1, " B"), (2**10, " KiB"), (2**20, " MiB"), (2**30, " GiB")),
    "Bps": ((1, " B/s"), (1e3, " kB/s"), (1e6, " MB/s"), (1e9, " GB/s")),
    "reqps": ((1, " req/s"), (1e3, "K req/s")),
    "cps": ((1, " c/s"), (1e3, "K c/s")),
    "short": _THOUSANDS,
    "currencyUSD": _THOUSANDS,
}  # fmt: skip


def scale(unit: str, value: float) -> Scale:
    """The largest in which the value is at least 1."""
    scales = _SCALES.get(unit, _THOUSANDS)
    if not value:
        return next((one for one in scales if one[0] == 1), scales[0])
    return max((one for one in scales if abs(value) >= one[0]), default=scales[0])


def text(value: float, unit: str, decimals: int | None = None, scaled: Scale | None = None) -> str:
    """The number for people: three digits that count, or so many decimals."""
    if math.isnan(value) or math.isinf(value):
        return "–"
    factor, suffix = scaled or scale(unit, value)
    number = value / factor
    if decimals is None:
        whole = len(str(int(abs(number)))) if abs(number) >= 1 else 0
        decimals = max(0, (3 if number else 0) - whole)
        if 0 < abs(number) < 1:
            decimals = min(6, 1 - math.floor(math.log10(abs(number))))
        written = f"{number:.{decimals}f}"
        written = written.rstrip("0").rstrip(".") if "." in written else written
    else:
        written = f"{number:.{decimals}f}"
    if unit == "currencyUSD":
        return f"${number:.2f}{suffix}"
    return written + suffix


def ticks(low: float, high: float, unit: str, count: int) -> Sequence[tuple[float, str]]:
    """About so many round values between the two, all in one scale."""
    scaled = scale(unit, max(abs(low), abs(high)))
    rough = (high - low) / count / scaled[0]
    power = 10 ** math.floor(math.log10(rough))
    step = next(nice * power for nice in (1, 2, 2.5, 5, 10) if nice * power >= rough * 0.999)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if round(step, decimals) != step:  # 2.5, 0.25 ...
        decimals += 1
    first = math.ceil(low / scaled[0] / step - 1e-9)
    last = math.floor(high / scaled[0] / step + 1e-9)
    values = [number * step * scaled[0] for number in range(first, last + 1)]
    return [(value, text(value, unit, decimals, scaled)) for value in values]
