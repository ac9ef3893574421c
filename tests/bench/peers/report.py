"""The results of a run as tables in Markdown, and what they say of the targets."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from measures import LOADS

Results = dict[str, Any]
Values = list[float]

_CHATRPC, _EACH, _TWO, _FLOOR, _NAIVE = (
    "chatrpc",
    "chatrpc, a message per chunk",
    "chatrpc, 2 workers",
    "floor",
    "naive",
)
_DIRECT = "direct"
_TWO_FLOORS = "floor, 2 processes"
_BEGINS, _ENDS = "<!-- written by make bench -->", "<!-- until here -->"
_RUST = ("smg", "vllm-router")


def markdown(results: Results) -> str:
    """All tables. Medians of the rounds; in brackets the least and the most."""
    machine = results["machine"]
    parts = [
        f"{machine['cpu']}, cores {machine['cores']} for everything, Python {machine['python']};"
        f" {results['rounds']} rounds in turns, medians, in brackets the least and the most.",
        _loads(results),
        _paced(results),
        _held(results),
        _targets(results),
    ]
    left_out = [f"- {name}: {why}" for name, why in results.get("left_out", {}).items()]
    if left_out:
        parts.append("\n".join(["Left out:", "", *left_out]))
    wrong = faults(results, list(results["servers"]))
    if wrong:
        parts.append("\n".join(["Answers that were wrong or did not come:", "", *(f"- {line}" for line in wrong)]))
    return "\n\n".join(part for part in parts if part) + "\n"


def into_docs(text: str, results: Path, docs: Path) -> None:
    """Replaces the tables of performance.md, and its plots."""
    page = docs / "performance.md"
    before, _, rest = page.read_text().partition(_BEGINS)
    _, _, after = rest.partition(_ENDS)
    page.write_text(f"{before}{_BEGINS}\n{text}{_ENDS}{after}")
    for plot in results.glob("*.png"):
        shutil.copy(plot, docs / f"performance-{plot.name}")


def faults(results: Results, names: Sequence[str]) -> list[str]:
    """What was wrong with the answers of these servers."""
    lines = []
    for name in names:
        for load in LOADS:
            found: dict[str, int] = {}
            for turn in results["servers"].get(name, {}).get(load.key, []):
                for fault, count in turn["faults"].items():
                    found[fault] = found.get(fault, 0) + count
            lines += [f"{name}: {load.title}: {fault} ({count} calls)" for fault, count in found.items()]
    return lines


def values(results: Results, name: str, load: str, figure: str, part: str | None = None) -> Values:
    """A figure of each round; none where the server has no such load."""
    turns = results["servers"].get(name, {}).get(load, [])
    found = [turn.get(figure) for turn in turns]
    return [one[part] if part else one for one in found if one is not None]


def middle(results: Results, name: str, load: str, figure: str, part: str | None = None) -> float | None:
    """The median of the rounds."""
    found = values(results, name, load, figure, part)
    return statistics.median(found) if found else None


# --- tables ----------------------------------------------------------------------------------------------------------


def _loads(results: Results) -> str:
    unary, short, long = LOADS[:3]
    titles = [
        "server",
        "",
        "unary calls/s",
        "CPU µs a call",
        "chunks/s, 66",
        "CPU µs a chunk",
        "chunks/s, 400",
        "CPU µs a chunk",
    ]
    rows = []
    for name, server in results["servers"].items():
        cells = [name, server["kind"]]
        for load in (unary, short, long):
            cells.append(_cell(values(results, name, load.key, "per_second"), "{:,.0f}"))
            cells.append("" if name == _DIRECT else _cell(values(results, name, load.key, "cpu_us"), "{:,.1f}"))
        rows.append(cells)
    return f"### Unpaced, {unary.in_flight} calls at once\n\n{_table(titles, rows)}"


def _paced(results: Results) -> str:
    loads = [load for load in LOADS if load.pace_ms and values(results, _DIRECT, load.key, "per_second")]
    titles = ["server"]
    for load in loads:
        titles += [
            f"{load.in_flight:,} streams: CPU µs a chunk",
            "added to the first chunk, ms: p50 / p99",
            "added jitter, ms: p99",
        ]
    rows = []
    for name in results["servers"]:
        cells = [name]
        for load in loads:
            cells.append("" if name == _DIRECT else _cell(values(results, name, load.key, "cpu_us"), "{:,.0f}"))
            first = [_added(results, name, load.key, "first_ms", part) for part in ("p50", "p99")]
            cells.append(" / ".join(f"{one:,.1f}" for one in first if one is not None))
            jitter = _added(results, name, load.key, "jitter_ms", "p99")
            cells.append("" if jitter is None else f"{jitter:,.1f}")
        rows.append(cells)
    note = "Added: beyond what the callers see of the upstream itself under the same load, which is the row `direct`."
    return f"### Paced, 50 chunks a second in each stream\n\n{note}\n\n{_table(titles, rows)}" if loads else ""


def _held(results: Results) -> str:
    titles = [
        "server",
        "MiB idle",
        "MiB, 1,000 streams open",
        "MiB, 2,000 streams open",
        "one more call beside them, CPU",
        "cold start, s",
        "cancel seen, ms: stream",
        "cancel seen, ms: unary",
    ]
    rows = []
    for name, server in results["servers"].items():
        held, cancel = server.get("held", {}), server.get("cancel", {})
        if not held and not cancel:
            continue
        cells = [name]
        cells += [f"{held[key]:,.0f}" if key in held else "" for key in ("idle_mib", "mib_at_1000", "mib_at_2000")]
        ratio = _beside(held)
        cells.append("" if ratio is None else f"× {ratio:.2f}")
        cells.append(f"{server['start_seconds']:.1f}" if "start_seconds" in server else "")
        cells += [_cancel(cancel.get(kind)) for kind in ("stream", "unary")]
        rows.append(cells)
    return f"### Open streams, start, cancel\n\n{_table(titles, rows)}" if rows else ""


def _cancel(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    if "error" in found:
        return str(found["error"])
    delay = found["delay_ms"]
    if not delay:
        return "never within 2 s"
    if delay["p50"] < 0:
        return "it had closed before"
    lost = (
        f", {found['trials'] - found['closed']} of {found['trials']} not" if found["closed"] < found["trials"] else ""
    )
    return f"{delay['p50']:.1f} / {delay['p99']:.1f}{lost}"


def _beside(held: dict[str, Any]) -> float | None:
    return held["call_beside_us"] / held["call_us"] if "call_beside_us" in held else None


def _added(results: Results, name: str, load: str, figure: str, part: str) -> float | None:
    """Beyond what the upstream has by itself, which is taken of the same round."""
    own, direct = (values(results, one, load, figure, part) for one in (name, _DIRECT))
    if not own or name == _DIRECT:
        return statistics.median(own) if own else None
    return statistics.median(value - by_itself for value, by_itself in zip(own, direct, strict=False))


def _cell(found: Values, form: str) -> str:
    if not found:
        return ""
    text = form.format(statistics.median(found))
    return text if len(found) == 1 else f"{text} ({form.format(min(found))}–{form.format(max(found))})"


def _table(titles: list[str], rows: list[list[str]]) -> str:
    lines = [titles, ["---", *["--:"] * (len(titles) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# --- targets ---------------------------------------------------------------------------------------------------------


def _targets(results: Results) -> str:
    """What the service is to reach, and did. A ratio is one of the medians of this run."""

    def ratio(load: str, figure: str, of: str, to: str) -> float | None:
        one, other = middle(results, of, load, figure), middle(results, to, load, figure)
        return one / other if one and other else None

    def held(key: str) -> float | None:
        return results["servers"].get(_CHATRPC, {}).get("held", {}).get(key)  # type: ignore[no-any-return]

    def of_two_floors(load: str) -> str:
        """What the machine itself gives to a second process."""
        gain = ratio(load, "per_second", _TWO_FLOORS, _FLOOR)
        return f" (2 processes of the floor: {gain:.2f})" if gain else ""

    def at_least(limit: float) -> Callable[[float], bool]:
        return lambda seen: seen >= limit

    def at_most(limit: float) -> Callable[[float], bool]:
        return lambda seen: seen <= limit

    rows: list[tuple[str, float | None, Callable[[float], bool], str]] = [
        ("unary calls/s, to naive", ratio("unary", "per_second", _CHATRPC, _NAIVE), at_least(6), "≥ 6"),
        ("chunks/s (66), to naive", ratio("66", "per_second", _CHATRPC, _NAIVE), at_least(20), "≥ 20"),
        ("CPU of a unary call, to the floor", ratio("unary", "cpu_us", _CHATRPC, _FLOOR), at_most(3.5), "≤ 3.5"),
        (
            "CPU of a chunk (66), a message each, to the floor",
            ratio("66", "cpu_us", _EACH, _FLOOR),
            at_most(1.8),
            "≤ 1.8",
        ),
        (
            "CPU of a chunk (400), a message each, to the floor",
            ratio("400", "cpu_us", _EACH, _FLOOR),
            at_most(1.8),
            "≤ 1.8",
        ),
        ("CPU of a chunk (66), to the floor", ratio("66", "cpu_us", _CHATRPC, _FLOOR), at_most(0.75), "≤ 0.75"),
        ("CPU of a chunk (400), to the floor", ratio("400", "cpu_us", _CHATRPC, _FLOOR), at_most(0.75), "≤ 0.75"),
        ("chunks/s (66), to the floor", ratio("66", "per_second", _CHATRPC, _FLOOR), lambda seen: seen > 1, "> 1"),
        *[
            (
                f"chunks/s ({load}), to {rust} (stretch)",
                ratio(load, "per_second", _CHATRPC, rust),
                lambda seen: seen > 1,
                "> 1",
            )
            for rust in _RUST
            for load in ("66", "400")
        ],
        *[
            (
                f"CPU of a chunk, {load}, to the floor",
                ratio(load, "cpu_us", _CHATRPC, _FLOOR),
                at_most(1.6),
                "≤ 1.6",
            )
            for load in ("paced 50", "paced 200", "paced 1000")
        ],
        (
            "CPU of a chunk, paced 50, to naive",
            ratio("paced 50", "cpu_us", _CHATRPC, _NAIVE),
            at_most(0.25),
            "≤ 0.25",
        ),
        (
            "added to the first chunk, 200 streams, p50, ms",
            _added(results, _CHATRPC, "paced 200", "first_ms", "p50"),
            at_most(2),
            "≤ 2",
        ),
        (
            "added jitter, 200 streams, p99, ms",
            _added(results, _CHATRPC, "paced 200", "jitter_ms", "p99"),
            at_most(10),
            "≤ 10",
        ),
        (
            "CPU of one call more beside 2,000 streams",
            _beside(results["servers"].get(_CHATRPC, {}).get("held", {})),
            at_most(1.2),
            "≤ 1.2",
        ),
        ("MiB with 1,000 streams open", held("mib_at_1000"), at_most(120), "≤ 120"),
        ("cold start, s", results["servers"].get(_CHATRPC, {}).get("start_seconds"), at_most(1.5), "≤ 1.5"),
        *[
            (
                f"2 workers, {what}, to one{of_two_floors(key)}",
                ratio(key, "per_second", _TWO, _CHATRPC),
                at_least(1.8),
                "≥ 1.8",
            )
            for what, key in (("unary calls/s", "unary"), ("chunks/s (66)", "66"), ("chunks/s (400)", "400"))
        ],
    ]
    lines = [
        [what, f"{seen:,.2f}", wanted, "yes" if holds(seen) else "**no**"]
        for what, seen, holds, wanted in rows
        if seen is not None
    ]
    return f"### Targets\n\n{_table(['', 'seen', 'wanted', 'reached'], lines)}" if lines else ""
