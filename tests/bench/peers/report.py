"""The results of a run as tables in Markdown, and what they say of the targets."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Results = dict[str, Any]


def markdown(results: Results) -> str:
    """All tables."""
    return ""


def faults(results: Results, names: Sequence[str]) -> list[str]:
    """What was wrong with the answers of these servers."""
    return []
