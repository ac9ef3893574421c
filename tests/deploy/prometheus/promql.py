"""The rules, taken apart with regular expressions: enough for PromQL as these rules are written."""

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
    """All rules of all files."""
    files = sorted(RULES.glob("*.yaml"))
    return [rule for file in files for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]]


def operands(expression: str) -> list[str]:
    """What an expression compares or joins: each has data although nothing is amiss."""
    return [part.strip() for part in _SET_OPERATOR.split(_COMPARISON.sub("", expression))]


def label_values(expression: str) -> Iterator[str]:
    """A selector for each value of a label that the expression names, also of those that it excludes."""
    for metric, matchers in _SELECTOR.findall(expression):
        for label, values in _MATCHER.findall(matchers):
            yield from (f'{metric}{{{label}=~"{value}"}}' for value in values.split("|"))
