"""Numbers with units, as Grafana writes them."""

import math

Scale = tuple[float, str]
"""Factor and suffix."""

_SCALES: dict[str, tuple[Scale, ...]] = {
    "s": ((1e-6, " µs"), (1e-3, " ms"), (1, " s"), (60, " min")),
    "percentunit": ((0.01, "%"),),
    "reqps": ((1, " req/s"), (1e3, "K req/s")),
    "short": ((1, ""), (1e3, " K"), (1e6, " Mil")),
    "currencyUSD": ((1, ""), (1e3, " K")),
}


def text(value: float, unit: str, decimals: int | None = None, scale: Scale | None = None) -> str:
    """Return the number with its unit: three significant digits, or so many decimals."""
    if math.isnan(value):
        return "–"
    factor, suffix = scale or _scale(unit, value)
    number = value / factor
    if unit == "currencyUSD":
        return f"${number:.2f}{suffix}"
    if decimals is not None:
        return f"{number:.{decimals}f}{suffix}"
    digits = max(0, 2 - math.floor(math.log10(abs(number)))) if number else 0
    written = f"{number:.{digits}f}"
    return (written.rstrip("0").rstrip(".") if "." in written else written) + suffix


def ticks(high: float, unit: str, count: int) -> list[tuple[float, str]]:
    """Return about so many round values between 0 and `high`, all in one scale, with their texts."""
    scale = _scale(unit, high)
    rough = high / count / scale[0]
    power = 10 ** math.floor(math.log10(rough))
    step = next(nice * power for nice in (1, 2, 2.5, 5, 10) if nice * power >= rough * 0.999)
    decimals = next(decimals for decimals in range(9) if math.isclose(round(step, decimals), step))
    values = [number * step * scale[0] for number in range(math.floor(high / scale[0] / step + 1e-9) + 1)]
    return [(value, text(value, unit, decimals, scale)) for value in values]


def _scale(unit: str, value: float) -> Scale:
    """Return the largest scale in which the value is at least 1; for 0 the unit itself."""
    scales = _SCALES[unit]
    return max((scale for scale in scales if abs(value or 1) >= scale[0]), default=scales[0])
