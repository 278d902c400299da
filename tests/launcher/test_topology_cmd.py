"""``trainmesh topology show`` and ``validate`` on files."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.launcher.records import graph
from trainmesh.launcher.cli import main
from trainmesh.topology.document import dump, load


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "racks.json"
    path.write_text(json.dumps(graph()))
    return str(path)


def test_a_valid_file_is_summed_up(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topology", "validate", file]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"{file}: valid; 4 ranks, 2 other nodes, 10 directed links"
    # 2 (N - 1) M / (4 links of 1 GB/s) for M = 25 MiB
    assert "can take less than 39.3 ms" in second


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("version: 1\nnodes: [", "not valid YAML"),
        ("version: 2\nnodes: {}\nlinks: []\n", "version"),
    ],
)
def test_a_bad_file_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert main(["topology", "validate", str(path)]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert str(path) in error
    assert error.count("\n") == 1


def test_a_missing_file_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topology", "show", "--file", "/nowhere.yaml"]) == 2
    assert "/nowhere.yaml: No such file" in capsys.readouterr().err


def test_show_prints_a_row_for_each_link(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topology", "show", "--file", file]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["r0", "a", "ethernet", "1.000", "10.0", "declared"] in rows
    assert sum(row[-1:] == ["declared"] for row in rows) == 10


def test_show_json_is_a_document_that_can_be_loaded(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["topology", "show", "--file", file, "--json"]) == 0
    shown = capsys.readouterr().out
    assert dump(load(shown, source="shown")) == dump(load(Path(file).read_text(), source=file))


def test_show_draws(file: str, tmp_path: Path) -> None:
    picture = tmp_path / "picture.svg"
    assert main(["topology", "show", "--file", file, "--draw", str(picture)]) == 0
    assert ElementTree.fromstring(picture.read_text()).tag.endswith("svg")


def test_a_picture_that_cannot_be_written_is_one_line(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["topology", "show", "--file", file, "--draw", "/nowhere/x.svg"]) == 2
    assert "--draw /nowhere/x.svg: No such file" in capsys.readouterr().err


def test_a_job_and_a_file_are_too_much(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topology", "show", "alpha", "--file", file]) == 2
    assert "not both" in capsys.readouterr().err
