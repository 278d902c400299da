"""report.json, report.html and ``trainmesh report``."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from tests.launcher.records import CHOICE, HINT, RING, analysed, event, hello, lines, report, steps
from trainmesh.errors import ConfigError
from trainmesh.launcher.cli import main
from trainmesh.launcher.report.report import SCHEMA, load_report, write_report
from trainmesh.types import Event, Outcome, RecordLine
from trainmesh.wire import encode

EVIL = "<script>alert('x')</script>&\"'"


def write(path: Path, record: list[RecordLine], tail: bytes = b"") -> Path:
    path.write_bytes(b"".join(encode(line) + b"\n" for line in record) + tail)
    return path


@pytest.fixture
def reported(tmp_path: Path) -> Path:
    out = tmp_path / "made" / "report"
    write_report(write(tmp_path / "record.jsonl", lines()), out)
    return out


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects text, tags and attributes."""

    VOID = ("meta", "br")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_report_json_round_trips(reported: Path) -> None:
    loaded = load_report(reported)
    assert loaded.schema == SCHEMA
    assert loaded.run == analysed()
    assert msgspec.json.decode((reported / "report.json").read_bytes(), type=type(loaded)) == loaded
    assert sorted(path.name for path in reported.iterdir()) == ["report.html", "report.json"]


def test_report_html_is_one_well_formed_file_without_anything_from_outside(reported: Path) -> None:
    html = (reported / "report.html").read_text()
    page = Page(html)
    assert "script" not in page.tags
    assert not {"src", "href", "srcset"} & {name for name, _ in page.attributes}
    assert "url(" not in html
    assert "@import" not in html
    assert {"http://www.w3.org/2000/svg"} == set(re.findall(r"https?://[^\"'\s<]+", html))
    assert "prefers-color-scheme: dark" in html
    assert "$" not in html


def test_report_html_shows_every_part(reported: Path) -> None:
    text = Page((reported / "report.html").read_text()).text
    for words in (
        "communication became 2.75x as fast",
        "What to do next.",
        "Where the step time went",
        "Step time over the run",
        "Loss (mean over ranks)",
        "Plans against the bound",
        "The links and their bottleneck",
        "375 MB/s",
        "Who arrives late",
        "hosts' clocks were aligned",
        "step 10: all 4 ranks switched to ring (epoch 1)",
        "no link was measured",
    ):
        assert words in text


def test_everything_from_the_record_is_escaped(tmp_path: Path) -> None:
    plan = replace(HINT.plan, algorithm=EVIL, reason=EVIL)
    record = [
        *(RecordLine(hello=replace(hello(rank), node=EVIL, backend=EVIL)) for rank in range(4)),
        *lines()[4:],
        RecordLine(hint=replace(HINT, job=EVIL, plan=plan, reason=EVIL)),
        event(EVIL, 3, EVIL),
    ]
    write_report(write(tmp_path / "r", record), tmp_path)
    html = (tmp_path / "report.html").read_text()
    page = Page(html)
    assert EVIL in page.text
    assert "script" not in page.tags
    assert "<script" not in html


@pytest.mark.parametrize(
    "tail", [b'{"step":[0,0,21,', b"\xff\xfe\n", b"[]\n", b'{"step":{}}\n', b"\x00" * 100]
)
def test_a_damaged_line_is_left_out_and_counted(tmp_path: Path, tail: bytes) -> None:
    write_report(write(tmp_path / "r", lines(), tail), tmp_path)
    run = load_report(tmp_path).run
    assert run.corrupt_lines == 1
    assert run.num_steps == 20
    assert "could not be read" in (tmp_path / "report.html").read_text()


def test_an_endless_line_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainmesh.launcher.report.report.MAX_LINE_BYTES", 4_096)
    record = write(tmp_path / "r", lines())
    record.write_bytes(b"x" * 10_000 + b"\n" + record.read_bytes())
    write_report(record, tmp_path)
    assert load_report(tmp_path).run.corrupt_lines == 1
    assert load_report(tmp_path).run.num_steps == 20


@pytest.mark.parametrize(
    "record",
    [
        [],
        lines()[:6],
        list(steps([3, 4], [0])),
        [*lines()[:4], RecordLine(step=report(0, 5))],
        [*lines(), RecordLine(graph={"version": 1, "nodes": "no"})],
    ],
)
def test_any_record_gives_a_report(tmp_path: Path, record: list[RecordLine]) -> None:
    write_report(write(tmp_path / "r", record), tmp_path)
    Page((tmp_path / "report.html").read_text())
    assert main(["report", str(tmp_path)]) == 0


def test_no_record_at_all_gives_a_report_that_says_so(tmp_path: Path) -> None:
    write_report(tmp_path / "nothing", tmp_path)
    assert "Nothing was measured" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(("version", "is_refuted"), [(1, True), (2, False)])
def test_no_efficiency_is_given_against_a_bound_that_another_plan_has_beaten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], version: int, is_refuted: bool
) -> None:
    """Of the same link graph; native, which was slower, is none the better for it."""
    beaten = replace(RING, bound_s=0.0075, graph_version=version)
    candidates = tuple(replace(plan, graph_version=1) for plan in CHOICE.candidates)
    record = []
    for line in lines():
        if line.hint is not None:
            line = RecordLine(hint=replace(HINT, plan=beaten))
        elif line.choice is not None:
            line = RecordLine(choice=replace(CHOICE, candidates=candidates))
        record.append(line)
    native, ring = analysed(record).plans
    assert (native.is_bound_refuted, ring.is_bound_refuted) == (is_refuted, True)
    assert (native.measured_efficiency is None) is is_refuted
    write_report(write(tmp_path / "r", record), tmp_path)
    assert main(["report", str(tmp_path)]) == 0
    table = capsys.readouterr().out.partition("Plans against the bound")[2].split("\n\n")[0]
    assert table.count("%") == (0 if is_refuted else 2)
    page = (tmp_path / "report.html").read_text()
    rows = re.findall("<tr>.*?</tr>", page.partition("Plans against the bound")[2], re.DOTALL)
    assert any("%" in row for row in rows[:3]) is not is_refuted


@pytest.mark.parametrize(
    ("record", "num_steps", "title", "said"),
    [
        (
            [],
            600,
            "The job was stopped by SIGTERM after 600 steps or more (exit code 1)",
            "The job did 600 steps at least, which the record doesn't hold: it holds none (the "
            "events say what went wrong).",
        ),
        (
            lines(),
            600,
            "The job was stopped by SIGTERM after 20 recorded steps (exit code 1)",
            "The job did 600 steps at least, which the record doesn't hold: the last one in it is "
            "step 19 (the events say what went wrong).",
        ),
        (
            [],
            0,
            "The job was stopped by SIGTERM before its first step (exit code 1)",
            "No step was recorded: the script ended before its first step was over, or it never "
            "wraps a model in DistributedDataParallel or fully_shard, or what was measured is lost "
            "(the events say what went wrong).",
        ),
    ],
)
def test_what_the_record_could_not_hold_is_said(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    record: list[RecordLine],
    num_steps: int,
    title: str,
    said: str,
) -> None:
    """On a full disk: the job's end and the launcher's own words are in no record."""
    ended = Event(unix_s=1.0, step=0, kind="process", text="the etcd ended: no space is left")
    told = [
        RecordLine(event=ended),
        RecordLine(outcome=Outcome(exit_code=1, signal="SIGTERM")),
    ]
    write_report(write(tmp_path / "r", record), tmp_path, told, num_steps)
    assert main(["report", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"{title}.\n")
    assert f"- {said}\n" in shown
    assert "process: the etcd ended: no space is left" in shown
    assert ("No step was recorded" in shown) is (num_steps == 0)


def test_the_terminal_version_is_plain_and_whole_without_a_terminal(
    reported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(reported)]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\u2026" not in shown
    assert "communication became 2.75x as fast" in shown
    rows = [line.split() for line in shown.splitlines()]
    assert ["0", "0", "4.00", "MB", "16.0", "ms", "250", "MB/s", "375", "MB/s", "8"] in rows
    assert ["1", "host-a", "4.00", "ms", "4.00", "ms"] in rows


def test_a_prediction_is_shown_with_the_bytes_that_it_is_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A plan that was asked for is made before any bucket is known."""
    early = replace(HINT, plan=replace(HINT.plan, nbytes=26_200_000))
    record = [RecordLine(hint=early) if line.hint is not None else line for line in lines()]
    write_report(write(tmp_path / "r", record), tmp_path)
    assert main(["report", str(tmp_path)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    [row] = [row for row in rows if row[:2] == ["1", "ring"]]
    assert row[row.index("MB") - 1] == "26.2"
    assert row[-3:] == ["80.0", "%", "-"]
    text = Page((tmp_path / "report.html").read_text()).text
    assert "26.2 MB" in text


def test_json_of_the_terminal_version_is_the_file(
    reported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(reported), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((reported / "report.json").read_text())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        (b"", "not a report"),
        (b"{}", "not a report"),
        (b'{"schema":"trainmesh.report/9"}', "this trainmesh reads"),
        (b'{"schema":"trainmesh.report/1","run":3}', "not a report"),
    ],
)
def test_a_bad_report_directory_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, words: str
) -> None:
    if content is not None:
        (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        load_report(tmp_path)
    assert main(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("trainmesh: error: ")
    assert error.count("\n") == 1


def test_names_cannot_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = "\x1b[31m[bold]x"
    record = [
        *(RecordLine(hello=replace(hello(rank), node=node)) for rank in range(4)),
        *lines()[4:],
    ]
    write_report(write(tmp_path / "r", record), tmp_path)
    assert main(["report", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "?[31m[bold]x" in shown
