"""JSON numbers that a double cannot hold: they keep their text, so that `jsontext.dumps` writes them unchanged."""

_EXACT_DIGITS = 17
"""Significant digits that identify every double, so programs write no more of them."""


class WrittenNumber(float):
    """The nearest double (an infinity beyond its range), with the number as it was written."""

    __slots__ = ("text",)

    def __init__(self, _: float, text: str) -> None:
        self.text = text

    def __new__(cls, value: float, text: str) -> "WrittenNumber":
        """Create the number. The text is for `__init__` only."""
        return super().__new__(cls, value)


def read_fraction(text: str) -> float:
    """Return the value of a JSON number with a fraction or an exponent (`parse_float` of `json.JSONDecoder`)."""
    value = float(text)
    if value and len(text) <= _EXACT_DIGITS and value - value == 0:
        return value
    digits = text.lower().partition("e")[0].replace(".", "").lstrip("-0")
    if len(digits) > _EXACT_DIGITS or value - value != 0 or (digits and not value):
        return WrittenNumber(value, text)
    return value
