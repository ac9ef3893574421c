"""What does a chunk cost to map, before and after a change of core/? CPU of `core.openai.responses.StreamReader.feed`.

    python bench/chunks.py [REV] [--turns N]

What it measures: the CPU time to feed one event, from bytes to message, for the working tree (now) and for the git
revision REV (before). The default REV precedes the last change of core/: HEAD if core/ has uncommitted changes,
otherwise the parent of the last commit that touched it. Each side is a separate process, REV's from `git archive` in a
temporary folder. The two take turns, chunk by chunk, so that drifting noise affects both.

How to read it: the ratio of now to before; below 1 is faster. A figure is the median of its turns, `±` half the
distance between the quartiles. A ratio that differs from 1 by less than the spread proves nothing. It takes about 15
seconds.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CORE = "service/chatrpc_server/core"
EVENTS_PER_TURN = 2000


def event(delta: dict[str, Any] | None, finish_reason: str | None = None, **more: Any) -> bytes:
    """Return a chunk as OpenAI sends it, with one choice, or without a delta with none."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    chunk = {
        "id": "chatcmpl-9xGq3vQ0aTn5Zr1LwYc7",
        "object": "chat.completion.chunk",
        "created": 1760000000,
        "model": "gpt-4.1-mini-2025-04-14",
        "service_tier": "default",
        "system_fingerprint": "fp_6f2eabb9a5",
        "choices": [] if delta is None else [choice],
        **more,
    }
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"


USAGE = {
    "prompt_tokens": 1117,
    "completion_tokens": 46,
    "total_tokens": 1163,
    "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0, "accepted_prediction_tokens": 0},
}
CALL = {"index": 0, "function": {"arguments": '{"city":'}}
PLAIN = event({"content": " token"}, obfuscation="aZ3")
READS: dict[str, tuple[bytes, int]] = {
    # the bytes of one read, and the number of its events
    "content": (PLAIN, 1),
    "content, 16 a read": (PLAIN * 16, 16),
    "content with extras": (event({"content": " token", "reasoning_details": []}, provider="p", native="stop"), 1),
    "tool-call delta": (event({"tool_calls": [CALL]}), 1),
    "usage": (event(None, usage=USAGE), 1),
    "finish_reason": (event({}, "stop"), 1),
    "half an emoji": (PLAIN.replace(b" token", b"\\ud83d"), 1),
}


# --- one side: a separate process ------------------------------------------------------------------------------------


def run_turns() -> None:
    """For each line of stdin, a key of READS, print the microseconds of an event."""
    from chatrpc_server.core.openai import responses

    assert Path(responses.__file__).is_relative_to(os.environ["PYTHONPATH"].split(":")[0]), (
        "another core/ than requested"
    )
    for line in sys.stdin:
        data, events = READS[line.strip()]
        feed = responses.StreamReader(1 << 24).feed
        gc.collect()
        started = time.process_time_ns()
        for _ in range(EVENTS_PER_TURN // events):
            feed(data)
        elapsed = time.process_time_ns() - started
        print(elapsed / 1000 / (EVENTS_PER_TURN // events * events), flush=True)


class Side:
    """A process with the core/ of `root`."""

    def __init__(self, root: Path) -> None:
        command = [sys.executable, __file__, "--side"]
        environment = {"PYTHONPATH": f"{root / 'service'}:{root / 'protos/python/src'}"}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True)

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=10)

    def microseconds(self, read: str) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(read, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())


# --- the revision before ---------------------------------------------------------------------------------------------


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def before_the_last_change() -> str:
    if git("status", "--porcelain", "--", CORE):
        return "HEAD"
    return git("log", "-1", "--format=%h", "--", CORE) + "^"


@contextmanager
def exported(revision: str) -> Iterator[Path]:
    """Export the sources of a revision into a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="chatrpc-chunks-") as folder:
        command = ["git", "archive", revision, "service", "protos"]
        archive = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE)
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        yield Path(folder)


# --- the run and its table -------------------------------------------------------------------------------------------


def cell(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.2f} ±{(high - low) / 2:.2f}"


def row(read: str, before: Side, now: Side, turns: int) -> list[str]:
    old, new = zip(*((before.microseconds(read), now.microseconds(read)) for _ in range(turns)), strict=True)
    data, events = READS[read]
    ratio = statistics.median(new) / statistics.median(old)
    return [read, str(len(data) // events), cell(old), cell(new), f"{ratio:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("revision", nargs="?", metavar="REV", help="the git revision to compare with")
    parser.add_argument("--turns", type=int, default=40, help="how often each side maps each chunk")
    parser.add_argument("--side", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        run_turns()
        return
    revision = options.revision or before_the_last_change()
    lines = [["chunk", "bytes", f"{git('rev-parse', '--short', revision)}, µs", "now, µs", "ratio"]]
    lines.append(["---", *["--:"] * 4])
    with ExitStack() as stack:
        before = stack.enter_context(Side(stack.enter_context(exported(revision))))
        now = stack.enter_context(Side(ROOT))
        for read in READS:
            print(read, file=sys.stderr)
            before.microseconds(read), now.microseconds(read)  # the first turn fills caches
            lines.append(row(read, before, now, options.turns))
    print("\n".join(f"| {' | '.join(line)} |" for line in lines))


if __name__ == "__main__":
    main()
