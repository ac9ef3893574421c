"""Is decoding event streams linear in the bytes for every size of pieces? CPU of `core.openai.sse.Decoder`.

    python bench/sse.py [--turns N]

What it measures: the CPU time to decode streams of 1, 2, 4 and 8 times BASE_BYTES, fed in pieces of one size:

    chunks          events of about 300 bytes, as models send them
    chunks, CRLF    the same with line ends that need a slower path
    one line        a single event as long as the stream; a decoder that scans its buffer again for each piece is
                    quadratic here
    tiny events     `data: x`, nothing but overhead

How to read it: the last columns are the time per byte relative to the smallest stream. Linear time is 1 throughout, on
every machine; quadratic time is 2, 4, 8. MB/s and µs are those of the largest stream. The figure is the lowest of the
turns, because noise only adds; each turn takes all sizes one after the other. It takes about 20 seconds.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

from chatrpc_server.core.openai.sse import Decoder

BASE_BYTES = 128 << 10
FACTORS = (1, 2, 4, 8)
PIECES = {"whole": sys.maxsize, "4 KiB": 4096, "64 B": 64, "1 B": 1}

CHUNK = (
    b'data: {"id":"chatcmpl-9xGq3vQ0aTn5Zr1LwYc7","object":"chat.completion.chunk","created":1760000000,"model":'
    b'"gpt-4.1-mini-2025-04-14","service_tier":"default","system_fingerprint":"fp_6f2eabb9a5","choices":[{"index":0,'
    b'"delta":{"content":" token"},"logprobs":null,"finish_reason":null}],"obfuscation":"aZ3"}\n\n'
)
TINY = b"data: x\n\n"


def repeated(event: bytes) -> Callable[[int], tuple[bytes, int]]:
    """Return a builder of a stream of about the given size; it returns the bytes and the number of events."""
    return lambda size: (event * (size // len(event)), size // len(event))


STREAMS: dict[str, Callable[[int], tuple[bytes, int]]] = {
    "chunks": repeated(CHUNK),
    "chunks, CRLF": repeated(CHUNK.replace(b"\n", b"\r\n")),
    "one line": lambda size: (b"data: " + b"x" * (size - 8) + b"\n\n", 1),
    "tiny events": repeated(TINY),
}


def cpu_seconds(pieces: list[bytes], events: int) -> float:
    decoder = Decoder(1 << 30)
    count = 0
    started = time.process_time()
    for piece in pieces:
        for _ in decoder.feed(piece):
            count += 1
    seconds = time.process_time() - started
    assert count == events, f"{count} of {events} events"
    return seconds


def cut_up(data: bytes, step: int) -> list[bytes]:
    step = min(step, len(data))
    return [data[at : at + step] for at in range(0, len(data), step)]


def lowest(build: Callable[[int], tuple[bytes, int]], step: int, turns: int) -> list[tuple[float, int, int]]:
    """Return CPU seconds, bytes and events for each size."""
    streams = [build(BASE_BYTES * factor) for factor in FACTORS]
    cases = [(cut_up(data, step), events) for data, events in streams]
    seconds = zip(*([cpu_seconds(*case) for case in cases] for _ in range(turns)), strict=True)
    return [(min(each), len(data), events) for each, (data, events) in zip(seconds, streams, strict=True)]


def row(stream: str, cut: str, turns: int) -> list[str]:
    figures = lowest(STREAMS[stream], PIECES[cut], turns)
    seconds, size, events = figures[-1]
    per_byte = [each_seconds / each_size for each_seconds, each_size, _ in figures]
    ratios = [f"{each / per_byte[0]:.2f}" for each in per_byte[1:]]
    return [stream, cut, f"{size / seconds / 1e6:.1f}", f"{seconds / events * 1e6:.2f}", *ratios]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=5, help="how often each stream is decoded")
    turns = parser.parse_args().turns
    header = ["stream", "pieces of", "MB/s", "µs an event", *(f"{factor}x" for factor in FACTORS[1:])]
    lines = [header, ["---", "---", *["--:"] * (len(header) - 2)]]
    for stream in STREAMS:
        for cut in PIECES:
            print(f"{stream}, {cut}", file=sys.stderr)
            lines.append(row(stream, cut, turns if PIECES[cut] > 1 else min(turns, 3)))
    print("\n".join(f"| {' | '.join(line)} |" for line in lines))


if __name__ == "__main__":
    main()
