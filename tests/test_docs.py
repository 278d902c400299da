"""The pages in docs: each can be found from the README, no link is dead, and the Python in them
runs."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from tests.serving.decide.loads import facts
from tests.serving.decide.test_scorers import CONTEXT, row
from tests.topology.importers.recorded import DATA
from trainmesh.launcher.cli import main
from trainmesh.launcher.lab.capability import capabilities, missing

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```[^\n]*\n.*?^```", re.DOTALL | re.MULTILINE)
PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def linked(page: Path) -> list[Path]:
    """Where the links of a page within the repository lead."""
    links = LINK.findall(FENCE.sub("", page.read_text()))
    return [
        (page.parent / link.split("#")[0]).resolve()
        for link in links
        if "://" not in link and not link.startswith(("#", "mailto:"))
    ]


def test_every_page_is_reached_from_the_readme_and_no_link_is_dead() -> None:
    reached: set[Path] = set()
    waiting = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        targets = linked(page)
        assert [str(target) for target in targets if not target.exists()] == [], page.name
        waiting += [to for to in targets if to.suffix == ".md" and to not in reached]
    assert set((ROOT / "docs").glob("*.md")) - reached == set()


NAMED = re.compile(
    r"`((?:trainmesh|hooks|launcher|serving|topology|tests|benchmarks|scripts|examples|docs)/[\w/.]*)`"
)


def test_files_and_folders_that_pages_name_are_there() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    named = {(page.name, name) for page in pages for name in NAMED.findall(page.read_text())}
    assert len(named) > 60
    assert {(page, name) for page, name in named if not (ROOT / name).exists()} == set()


def blocks(page: str) -> list[str]:
    return PYTHON.findall((ROOT / page).read_text())


def ran(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(code, "docs", "exec"), names)  # our own pages
    return names


PAGES_WITH_PYTHON = {
    "CONTRIBUTING.md",  # tests/test_contributing.py
    "docs/lab.md",
    "docs/nccl.md",
    "docs/serving.md",
    "docs/writing_a_hook.md",
}


def test_all_python_is_looked_at() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    found = {str(page.relative_to(ROOT)) for page in pages if PYTHON.search(page.read_text())}
    assert found == PAGES_WITH_PYTHON


def test_what_nccl_picks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The results in the comments are those of two hosts of eight H100."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        Path(name).write_bytes((DATA / "smi_hgx_h100_colour.txt").read_bytes())
    words = "topology import nvidia-smi a b --host a --host b --sm 90 --output links.yaml"
    assert main(words.split()) == 0
    [code] = blocks("docs/nccl.md")
    names = ran(code)
    said = re.findall(r"^(\w+\(.*\)(?:\.\w+)*)  # (.+)$", code, re.MULTILINE)
    assert len(said) == 2
    for expression, result in said:
        found, shown = eval(expression, names), ast.literal_eval(result.replace(", ...]", "]"))
        assert (found[: len(shown)] if isinstance(found, list) else found) == shown


def test_a_policy_of_your_own() -> None:
    [code] = blocks("docs/serving.md")
    policy = ran(code)["Nearest"]()
    rows = [row(0, rtt_s=0.02), row(1, rtt_s=0.001)]
    assert policy.score(facts(), rows, CONTEXT, 0.5) == [0.02, 0.001]


@pytest.mark.torch
def test_a_hook_of_your_own(tmp_path: Path) -> None:
    from trainmesh.hooks.testing import check_executor

    checks, executor, codec = blocks("docs/writing_a_hook.md")
    assert set(ran(checks)) >= {"check_codec", "check_executor", "test_my_executor"}
    (tmp_path / "mine.py").write_text(f"import torch\n\n{executor}\n\n{codec}")
    report = check_executor(f"{tmp_path / 'mine.py'}:GatherExecutor", world_sizes=(2,))
    assert report.num_results > 0


@pytest.mark.torch
@pytest.mark.root
def test_a_lab_from_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if lacking := missing(capabilities()):
        pytest.skip("; ".join(lacking))
    (tmp_path / "train.py").write_text("print('trained')\n")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    [code] = blocks("docs/lab.md")
    assert ran(code)["result"].returncode == 0
    assert "trained" in capfd.readouterr().out
