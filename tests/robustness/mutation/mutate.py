"""Do the tests notice a wrong entry in a table of core/? Runs them against every mutant of the tables.

    tests/robustness/mutation/run [--only TEXT] [--jobs N] [--list]

For each mutant (see `mutants.py`) the tests of its file run in a copy of the tree. The first failure kills the mutant.
How to read it: a surviving mutant is a fact that no test checks, so add the row that kills it. If it changes nothing
observable, add it to EQUIVALENT with the reason. The exit code is 1 if any survives.
"""

import argparse
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from queue import SimpleQueue

import pytest
from mutants import Mutant, mutants

ROOT = Path(__file__).parents[3]
PACKAGE = "service/chatrpc_server"
LONGEST_SECONDS = 180

TESTS = {
    "core/openai/requests.py": "tests/unit/test_requests.py tests/unit/test_requests_messages.py"
    " tests/unit/test_requests_invalid.py",
    "core/openai/mapping.py": "tests/unit/test_mapping.py tests/unit/test_responses.py"
    " tests/unit/test_responses_stream.py tests/unit/test_responses_tool_calls.py tests/unit/test_mapping_lossless.py",
    "core/openai/error_responses.py": "tests/unit/test_error_responses.py tests/unit/test_error_bodies.py",
    "core/openai/error_bodies.py": "tests/unit/test_error_bodies.py tests/unit/test_error_codes.py",
    "core/openai/error_codes.py": "tests/unit/test_error_codes.py tests/unit/test_error_responses.py",
    "core/openai/error_words.py": "tests/unit/test_error_codes.py",
    "core/decompression.py": "tests/unit/test_decompression.py",
    "core/openai/retry_delays.py": "tests/unit/test_error_responses.py tests/unit/test_error_codes.py",
    "core/openai/normalise.py": "tests/unit/test_responses_tool_calls.py tests/unit/test_responses_stream.py",
    "core/openai/coalesce.py": "tests/unit/test_coalesce.py",
    "core/openai/chunk_template.py": "tests/unit/test_chunk_template.py",
    "core/openai/surrogates.py": "tests/unit/test_surrogates.py tests/unit/test_responses_stream.py",
    "rpc/layers/errors.py": "tests/rpc/test_bad_requests.py tests/rpc/test_upstream_errors.py"
    " tests/rpc/test_admission_and_drain.py tests/rpc/test_retries.py tests/rpc/test_cancel_and_deadlines.py",
}
"""File to the tests of its tables, the quickest first."""

EQUIVALENT = {
    "core/openai/requests.py fields: without ToolChoice.*": "`_tool_choice` writes them",
    "core/openai/requests.py fields: without FunctionCallChoice.*": "`_function_call_choice` writes them",
    "core/openai/requests.py fields: without MessageAudio.*": "`_message_audio` writes the id, the rest is never sent",
    "core/openai/requests.py fields: without Annotation.*": "annotations are never sent",
    "core/openai/requests.py fields: without UrlCitation.*": "annotations are never sent",
    "core/openai/requests.py fields: without FunctionCall.arguments": "`_finish_function_call` writes it there too",
    "core/openai/requests.py fields: without CustomToolCall.input": "`_finish_custom_call` writes it at the same place",
}
"""Pattern of mutants that behave as the original, to the reason; they are left out."""

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["aiohttp.web", "chatrpc.v1.chat_response_pb2", "grpc.aio", "httpx", "hypothesis.strategies", "pydantic", "pytest"]
)
"""Each run is a fork of a process with the slow imports, which are never mutated. It takes a third of the time."""


class Trees:
    """Copies of the working tree, each used by one run at a time."""

    def __init__(self, folder: Path, count: int) -> None:
        self._free: SimpleQueue[Path] = SimpleQueue()
        for number in range(count):
            tree = folder / str(number)
            shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".*", "__pycache__", "node_modules"))
            self._free.put(tree)

    @contextmanager
    def one(self) -> Iterator[Path]:
        tree = self._free.get()
        try:
            yield tree
        finally:
            self._free.put(tree)


def complaint(tree: Path, file: str) -> str:
    """Return the output of pytest if a test of the file fails or takes too long; empty if all pass."""
    output = tree / "output"
    process = FORKS.Process(target=run_tests, args=(tree, TESTS[file].split(), output))
    process.start()
    process.join(LONGEST_SECONDS)
    if process.exitcode is None:
        process.kill()
        process.join()
    elif process.exitcode < 0:
        raise RuntimeError(f"pytest was killed by signal {-process.exitcode}")
    return output.read_text() + f"exit code {process.exitcode}" if process.exitcode else ""


def run_tests(tree: Path, tests: list[str], output: Path) -> None:
    """Run the tests; called in a separate process."""
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(tree)
    quietly = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # modules that are already loaded are not rewritten
    sys.exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *quietly, *tests]))


def is_equivalent(mutant: Mutant) -> bool:
    return any(fnmatchcase(mutant.name, pattern) for pattern in EQUIVALENT)


def survives(mutant: Mutant, trees: Trees) -> bool:
    with trees.one() as tree:
        file = tree / PACKAGE / mutant.file
        original = file.read_text()
        try:
            write(file, mutant.source)
            return not complaint(tree, mutant.file)
        finally:
            write(file, original)


def write(file: Path, source: str) -> None:
    """Write the file and delete its bytecode, which Python compares by size and second only."""
    file.write_text(source)
    for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*.pyc"):
        compiled.unlink()


def run(chosen: list[Mutant], trees: Trees, jobs: int) -> list[Mutant]:
    """Return the surviving mutants."""
    for file in dict.fromkeys(mutant.file for mutant in chosen):
        with trees.one() as tree:
            said = complaint(tree, file)
            if said:
                sys.exit(f"{said[-2000:]}\nthe tests of {file} fail without a mutant too: {TESTS[file]}")
    survived = []
    with ThreadPoolExecutor(jobs) as pool:
        fates = pool.map(lambda mutant: survives(mutant, trees), chosen)
        for number, (mutant, alive) in enumerate(zip(chosen, fates, strict=True), 1):
            print(f"{number}/{len(chosen)} {'SURVIVED' if alive else 'killed'} {mutant.name}", file=sys.stderr)
            survived += [mutant] * alive
    return survived


def report(chosen: list[Mutant], survived: list[Mutant]) -> None:
    counts = Counter(mutant.file for mutant in chosen)
    alive = Counter(mutant.file for mutant in survived)
    print("\n| file | mutants | killed | score |\n| --- | --: | --: | --: |")
    rows = [(file, count, count - alive[file]) for file, count in counts.items()]
    for file, count, killed in [*rows, ("all", len(chosen), len(chosen) - len(survived))]:
        print(f"| {file} | {count} | {killed} | {killed / count:.1%} |")
    print(f"\n{len(survived)} survived")
    for mutant in survived:
        print(f"  {mutant.name}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="only mutants whose name contains this")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time")
    parser.add_argument("--list", action="store_true", help="name the mutants, run nothing")
    options = parser.parse_args()
    every = [mutant for file in TESTS for mutant in mutants(file, (ROOT / PACKAGE / file).read_text())]
    chosen = [mutant for mutant in every if options.only in mutant.name and not is_equivalent(mutant)]
    if options.list or not chosen:
        print("\n".join(mutant.name for mutant in chosen) or "no such mutant")
        return 0 if chosen else 2
    with tempfile.TemporaryDirectory(prefix="chatrpc-mutation-") as folder:
        survived = run(chosen, Trees(Path(folder), options.jobs), options.jobs)
    report(chosen, survived)
    return int(bool(survived))


if __name__ == "__main__":
    sys.exit(main())
