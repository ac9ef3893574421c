"""Writes build/dashboard/index.html and docs/dashboard.png from the service under the tests' load."""

import shutil
import subprocess
import sys
import time

from deploy.prometheus.live import MISSING, ROOT, live, tool
from support.dashboard_preview.page import HEIGHT, WIDTH, draw

_SECONDS = 180
_PAGE = ROOT / "build/dashboard/index.html"
_PICTURE = ROOT / "docs/dashboard.png"
_SCALE = 0.75
"""Pixels of the picture for each pixel of the page."""


def main() -> None:
    """Draw the dashboard after three minutes of load."""
    if not tool("prometheus"):
        sys.exit(MISSING)
    with live() as running:
        start = time.monotonic()
        while time.monotonic() - start < _SECONDS:
            running.play()
        _PAGE.parent.mkdir(parents=True, exist_ok=True)
        _PAGE.write_text(draw(running.prometheus, _SECONDS))
    print(_PAGE)
    chromium, pngquant = shutil.which("chromium"), shutil.which("pngquant")
    if not chromium or not pngquant:
        sys.exit(f"{_PICTURE}: not written; install Debian's packages chromium and pngquant")
    options = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--force-device-scale-factor={_SCALE}"]
    shot = [f"--screenshot={_PICTURE}", f"--window-size={WIDTH},{HEIGHT}", _PAGE.as_uri()]
    subprocess.run([chromium, *options, *shot], check=True, timeout=60, stderr=subprocess.DEVNULL)
    subprocess.run([pngquant, "--force", f"--output={_PICTURE}", _PICTURE], check=True, timeout=60)
    print(_PICTURE)


if __name__ == "__main__":
    main()
