"""gRPC ignores unknown options in silence, so each option's name in this project must occur in gRPC's core."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from grpc._cython import cygrpc

ROOT = Path(__file__).parents[2]
FOLDERS = ("service", "clients", "bench", "tests", "deploy", "docs", "README.md")
SUFFIXES = {".py", ".go", ".java", ".kt", ".ts", ".js", ".rs", ".md", ".json", ".yaml", ".yml", ".toml"}
BUILT = {"node_modules", "target", "build", "dist", "gen", "__pycache__"}
OPTION = re.compile(r"""["'`](grpc\.(?!aio\b|health\.|reflection\.)[a-z][a-z0-9_.]+)["'`]""")
OTHERS = {"grpc.retry_buffer_size"}
"""Options of grpc-js only."""


def _files() -> Iterator[Path]:
    for name in FOLDERS:
        files = (ROOT / name).rglob("*") if (ROOT / name).is_dir() else [ROOT / name]
        for file in files:
            if file.suffix in SUFFIXES and file.is_file() and not BUILT.intersection(file.parts):
                yield file


def _options() -> dict[str, set[str]]:
    """Return the names of options, and the files that use each."""
    found: dict[str, set[str]] = {}
    for file in _files():
        for name in OPTION.findall(file.read_text(errors="replace")):
            found.setdefault(name, set()).add(str(file.relative_to(ROOT)))
    return {name: files for name, files in found.items() if name not in OTHERS}


CORE = Path(cygrpc.__file__).read_bytes()


@pytest.mark.parametrize(("name", "files"), sorted(_options().items()))
def test_grpc_knows_the_option(name: str, files: set[str]) -> None:
    assert name.encode() + b"\0" in CORE, f"{name}: gRPC ignores this option; used in {', '.join(sorted(files))}"


def test_the_search_finds_options() -> None:
    found = _options()
    assert "service/chatrpc_server/rpc/listeners.py" in found["grpc.http2.min_ping_interval_without_data_ms"]
    assert any(file.endswith(".ts") for file in found["grpc.keepalive_time_ms"])
