"""The recipes of CONTRIBUTING.md, followed to the letter by what they say to write."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

PAGE = Path(__file__).parent.parent / "CONTRIBUTING.md"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def recipe(title: str) -> list[tuple[str, str]]:
    """(language, text) of each block in the section of that title."""
    [section] = [s for s in PAGE.read_text().split("\n## ") if s.startswith(f"{title}\n")]
    return FENCE.findall(section)


def install(folder: Path, project: str) -> None:
    """What pip would leave beside the package's modules, from its pyproject.toml."""
    about = tomllib.loads(project)["project"]
    name = about["name"].replace("-", "_")
    info = folder / f"{name}-{about['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {about['name']}\nVersion: {about['version']}\n"
    )
    lines = []
    for group, points in about["entry-points"].items():
        lines += [f"[{group}]", *(f"{point} = {value}" for point, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


def test_a_scorer_in_three_steps(tmp_path: Path) -> None:
    (_, scorer), (toml, project), (_, test) = recipe("Add a scorer in three steps")
    assert toml == "toml"
    (tmp_path / "nearest_idle.py").write_text(scorer)
    (tmp_path / "test_nearest_idle.py").write_text(test)
    install(tmp_path, project)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_nearest_idle.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
