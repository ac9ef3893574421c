"""What Prometheus answers to the queries of the dashboard, with Grafana's variables filled in."""

import json
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import urlopen

Points = list[tuple[float, float]]
"""Time and value."""

_ANSWER_SECONDS = 30.0


@dataclass
class Series:
    """One line of a panel."""

    name: str
    labels: Mapping[str, str]
    points: Points
    colour: str = ""
    """In hexadecimal; see colours.py."""

    @property
    def last(self) -> float:
        """The last value there is, else NaN."""
        return next((value for _, value in reversed(self.points) if not math.isnan(value)), math.nan)

    @property
    def highest(self) -> float:
        """The highest value, else NaN."""
        return max((value for _, value in self.points if not math.isnan(value)), default=math.nan)


@dataclass
class Source:
    """A Prometheus, and the time that is looked at: `end` and how long before it, in seconds."""

    url: str
    variables: Mapping[str, str]
    end: float
    seconds: float
    scrape_seconds: float

    @property
    def start(self) -> float:
        """Where the time begins."""
        return self.end - self.seconds

    @property
    def step(self) -> float:
        """From point to point: a hundred of them, and none twice in a scrape."""
        return max(self.scrape_seconds, self.seconds / 100)

    def ask(self, target: Mapping[str, Any]) -> list[Series]:
        """The series of one query of a panel. Raises `ValueError` if it is refused."""
        query = self._filled(target["expr"])
        if target["instant"]:
            answer = self._get("query", query=query, time=self.end)
        else:
            answer = self._get("query_range", query=query, start=self.start, end=self.end, step=self.step)
        found = []
        for one in answer["result"]:
            values = one.get("values") or [one["value"]]
            points = [(float(time), float(value)) for time, value in values]
            found.append(Series(_name(target["legendFormat"], one["metric"]), one["metric"], points))
        return found

    def _filled(self, query: str) -> str:
        for name, value in self.variables.items():
            query = query.replace(f"${name}", value)
        rate_seconds = math.ceil(max(4 * self.scrape_seconds, self.step + self.scrape_seconds, self.seconds / 10))
        return query.replace("$__rate_interval", f"{rate_seconds}s").replace("$__range", f"{math.ceil(self.seconds)}s")

    def _get(self, path: str, **parameters: object) -> Any:
        try:
            with urlopen(f"{self.url}/api/v1/{path}?{urlencode(parameters)}", timeout=_ANSWER_SECONDS) as response:  # noqa: S310
                return json.load(response)["data"]
        except HTTPError as error:
            raise ValueError(json.load(error).get("error", str(error))) from None
        except URLError as error:
            sys.exit(f"{self.url}: {error.reason}")


def _name(legend: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda label: labels.get(label[1], ""), legend).strip()
