"""Parts of the rules, found with regular expressions; enough for the PromQL of these rules."""

import re
from collections.abc import Iterator
from typing import Any

import yaml

from deploy.prometheus.live import RULES

_COMPARISON = re.compile(r" (?:[<>]=?|[=!]=) [\d.]+")
_SET_OPERATOR = re.compile(r"\s+(?:and on \([^)]*\)|or)\s+")
_SELECTOR = re.compile(r"([\w:]+)\{([^}]*)\}")
_MATCHER = re.compile(r'(\w+)(?:=~|!~|!=|=)"([^"]*)"')


def rules() -> list[dict[str, Any]]:
    """Return all rules of all files."""
    files = sorted(RULES.glob("*.yaml"))
    return [rule for file in files for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]]


def operands(expression: str) -> list[str]:
    """Return the operands of comparisons and set operators; each has data even while no alert fires."""
    return [part.strip() for part in _SET_OPERATOR.split(_COMPARISON.sub("", expression))]


def label_values(expression: str) -> Iterator[str]:
    """Yield a selector for each label value in the expression, including the excluded values."""
    for metric, matchers in _SELECTOR.findall(expression):
        for label, values in _MATCHER.findall(matchers):
            yield from (f'{metric}{{{label}=~"{value}"}}' for value in values.split("|"))
