"""Draws chatrpc.json from a live Prometheus, without Grafana: one HTML page to look at before it is imported.

Without --prometheus it starts the service under the tests' load of calls and faults, with a Prometheus of its own.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import page
from data import Source

FOLDER = Path(__file__).resolve().parent.parent
ROOT = FOLDER.parent.parent
LIVE = ROOT / "tests" / "prometheus" / "live.py"
_STOP_SECONDS = 30


@contextmanager
def own_prometheus(seconds: float) -> Iterator[str]:
    """The address of one that has seen so many seconds of load."""
    process = subprocess.Popen([sys.executable, str(LIVE)], stdout=subprocess.PIPE, text=True)  # noqa: S603
    try:
        assert process.stdout
        url = process.stdout.readline().strip()
        if not url:
            sys.exit(process.wait() or 1)  # it has said why
        print(f"{url} watches the service under load; drawing in {seconds:g} s ...", flush=True)
        time.sleep(seconds)
        yield url
    finally:
        process.terminate()
        process.wait(_STOP_SECONDS)


def draw(url: str, seconds: float, scrape_seconds: float, out: Path) -> None:
    """Writes the page of the last so many seconds."""
    dashboard = json.loads((FOLDER / "chatrpc.json").read_text())
    variables = {
        variable["name"]: variable["query"] if variable["type"] == "textbox" else ".*"
        for variable in dashboard["templating"]["list"]
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page.page(dashboard, Source(url.rstrip("/"), variables, time.time(), seconds, scrape_seconds)))
    print(out)


def main() -> None:
    """Draws."""
    parser = argparse.ArgumentParser(prog="preview", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--prometheus", metavar="URL", help="one that scrapes chatrpc; default: one of its own")
    parser.add_argument("--seconds", type=float, help="how far to look back (3600; of its own: 120)")
    parser.add_argument("--scrape-seconds", type=float, default=15, help="its scrape interval (15)")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "dashboard" / "index.html")
    given = parser.parse_args()
    if given.prometheus:
        draw(given.prometheus, given.seconds or 3600, given.scrape_seconds, given.out)
        return
    seconds = given.seconds or 120
    with own_prometheus(seconds) as url:
        draw(url, seconds, 1, given.out)


if __name__ == "__main__":
    main()
