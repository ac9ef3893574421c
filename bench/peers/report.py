"""The results of a run as tables in Markdown, and which targets they reach."""

from __future__ import annotations

import operator
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ours
from measures import LOADS

Results = dict[str, Any]
Values = list[float]

_CHATRPC, _EACH, _TWO = ours.CHATRPC.name, ours.ONE_BY_ONE.name, ours.TWO_WORKERS.name
_FLOOR, _TWO_FLOORS, _NAIVE = ours.FLOOR.name, ours.TWO_FLOORS.name, ours.NAIVE.name
_BEGINS, _ENDS = "<!-- written by make bench -->", "<!-- until here -->"
_RUST = ("smg", "vllm-router")
_HOLDS = {"≥": operator.ge, "≤": operator.le, ">": operator.gt}


def markdown(results: Results) -> str:
    """Return all tables except the targets: medians of the rounds, the least and the most in brackets."""
    machine = results["machine"]
    parts = [
        f"{machine['cpu']}, cores {machine['cores']} for everything, Python {machine['python']};"
        f" {results['rounds']} rounds in turns, medians, in brackets the least and the most.",
        _loads(results),
        _paced(results),
        _held(results),
    ]
    left_out = [f"- {name}: {why}" for name, why in results.get("left_out", {}).items()]
    if left_out:
        parts.append("\n".join(["Left out:", "", *left_out]))
    wrong = faults(results, list(results["servers"]))
    if wrong:
        parts.append("\n".join(["Responses that were wrong or missing:", "", *(f"- {line}" for line in wrong)]))
    return "\n\n".join(part for part in parts if part) + "\n"


def into_docs(results: Results, folder: Path, root: Path) -> None:
    """Replace the tables and plots of docs/performance.md, and the targets in bench/README.md."""
    _replace(root / "docs/performance.md", markdown(results))
    _replace(root / "bench/README.md", targets(results))
    for plot in folder.glob("*.png"):
        shutil.copy(plot, root / f"docs/performance-{plot.name}")


def _replace(page: Path, text: str) -> None:
    before, _, rest = page.read_text().partition(_BEGINS)
    _, _, after = rest.partition(_ENDS)
    page.write_text(f"{before}{_BEGINS}\n{text}{_ENDS}{after}")


def faults(results: Results, names: Sequence[str]) -> list[str]:
    """Return the faults in the responses of these servers, one line each."""
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
    """Return a figure of each round; empty if the server has no such load."""
    turns = results["servers"].get(name, {}).get(load, [])
    found = [turn.get(figure) for turn in turns]
    return [one[part] if part else one for one in found if one is not None]


def middle(results: Results, name: str, load: str, figure: str, part: str | None = None) -> float | None:
    """Return the median of the rounds."""
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
            cells.append("" if name == ours.DIRECT else _cell(values(results, name, load.key, "cpu_us"), "{:,.1f}"))
        rows.append(cells)
    return f"### Unpaced, {unary.in_flight} calls at once\n\n{_table(titles, rows)}"


def _paced(results: Results) -> str:
    loads = [load for load in LOADS if load.pace_ms and values(results, ours.DIRECT, load.key, "per_second")]
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
            cells.append("" if name == ours.DIRECT else _cell(values(results, name, load.key, "cpu_us"), "{:,.0f}"))
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
    """Return the median excess of the server over the upstream alone in the same round."""
    own, direct = (values(results, one, load, figure, part) for one in (name, ours.DIRECT))
    if not own or name == ours.DIRECT:
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


def targets(results: Results) -> str:
    """Return the targets and whether this run reached them. A ratio is one of medians of this run."""
    chatrpc = results["servers"].get(_CHATRPC, {})
    held = chatrpc.get("held", {})

    def ratio(load: str, figure: str, of: str, to: str) -> float | None:
        one, other = middle(results, of, load, figure), middle(results, to, load, figure)
        return one / other if one and other else None

    def rate(load: str, to: str, of: str = _CHATRPC) -> float | None:
        return ratio(load, "per_second", of, to)

    def cpu(load: str, to: str, of: str = _CHATRPC) -> float | None:
        return ratio(load, "cpu_us", of, to)

    def of_two_floors(load: str) -> str:
        """Return the gain of a second process on this machine, by the floor."""
        gain = rate(load, _FLOOR, of=_TWO_FLOORS)
        return f" (2 processes of the floor: {gain:.2f})" if gain else ""

    rows: list[tuple[str, float | None, str, float]] = [
        ("unary calls/s, to naive", rate("unary", _NAIVE), "≥", 6),
        ("chunks/s (66), to naive", rate("66", _NAIVE), "≥", 20),
        ("CPU of a unary call, to the floor", cpu("unary", _FLOOR), "≤", 3.5),
        *[
            (f"CPU of a chunk ({load}), a message each, to the floor", cpu(load, _FLOOR, of=_EACH), "≤", 1.8)
            for load in ("66", "400")
        ],
        *[(f"CPU of a chunk ({load}), to the floor", cpu(load, _FLOOR), "≤", 0.75) for load in ("66", "400")],
        ("chunks/s (66), to the floor", rate("66", _FLOOR), ">", 1),
        *[
            (f"chunks/s ({load}), to {rust} (stretch)", rate(load, rust), ">", 1)
            for rust in _RUST
            for load in ("66", "400")
        ],
        *[
            (f"CPU of a chunk, {load.key}, to the floor", cpu(load.key, _FLOOR), "≤", 1.6)
            for load in LOADS
            if load.pace_ms
        ],
        ("CPU of a chunk, paced 50, to naive", cpu("paced 50", _NAIVE), "≤", 0.25),
        (
            "added to the first chunk, 200 streams, p50, ms",
            _added(results, _CHATRPC, "paced 200", "first_ms", "p50"),
            "≤",
            2,
        ),
        ("added jitter, 200 streams, p99, ms", _added(results, _CHATRPC, "paced 200", "jitter_ms", "p99"), "≤", 10),
        ("CPU of one call more beside 2,000 streams", _beside(held), "≤", 1.2),
        ("MiB with 1,000 streams open", held.get("mib_at_1000"), "≤", 120),
        ("cold start, s", chatrpc.get("start_seconds"), "≤", 1.5),
        *[
            (f"2 workers, {what}, to one{of_two_floors(key)}", rate(key, _CHATRPC, of=_TWO), "≥", 1.8)
            for what, key in (("unary calls/s", "unary"), ("chunks/s (66)", "66"), ("chunks/s (400)", "400"))
        ],
    ]
    lines = [
        [what, f"{seen:,.2f}", f"{sign} {limit:g}", "yes" if _HOLDS[sign](seen, limit) else "**no**"]
        for what, seen, sign, limit in rows
        if seen is not None
    ]
    return f"{_table(['', 'measured', 'target', 'reached'], lines)}\n" if lines else ""
