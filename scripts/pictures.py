"""Make the README's pictures from a real run of the demo: docs/terminal.svg, docs/report.png.

    .venv/bin/python scripts/pictures.py

The report's picture needs a Chromium (apt-get install chromium); without one it is left alone.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
COMMAND = [
    *("trainmesh", "launch", "--nproc-per-node", "4", "--topology", "examples/two_racks.yaml"),
    *("--report", "runs/demo", "--progress", "on", "examples/chars.py", "--steps", "300"),
]


def main() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).parent / COMMAND[0]), *COMMAND[1:]],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    console = Console(record=True, width=132, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(Text(f"$ {' '.join(COMMAND)}", style="bold"))
    for line in done.stdout.splitlines():
        console.print(Text(line, style="cyan" if line.startswith("trainmesh:") else ""))
    console.save_svg(str(DOCS / "terminal.svg"), title="trainmesh launch")
    screenshot(ROOT / "runs" / "demo" / "report.html", DOCS / "report.png")


def screenshot(page: Path, picture: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        print("no chromium: docs/report.png is left as it is")
        return
    with tempfile.TemporaryDirectory() as profile:
        flags = ["--headless", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
        flags += ["--disable-background-networking", "--disable-component-update"]
        flags += ["--disable-sync", "--no-sandbox", f"--user-data-dir={profile}"]
        size = ["--window-size=1000,2100", f"--screenshot={picture}"]
        subprocess.run(
            [chromium, *flags, *size, page.as_uri()], check=True, stderr=subprocess.DEVNULL
        )


if __name__ == "__main__":
    main()
