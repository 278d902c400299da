"""Each command in README and docs is one that its parser, and a shell, take as written."""

import re
import shlex
from pathlib import Path

import pytest

from trainmesh.launcher.cli import COMMANDS, build_parser
from trainmesh.launcher.lab.arguments import parse as parse_lab_run

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`(trainmesh [^`]+)`")
STANDS_FOR = {
    "RANK RANK": "0 1",
    "KIND FILE...": "hostfile f",
    "KIND": "hostfile",
    "FILE.svg": "f.svg",
    "FILE.json": "f.json",
    "[flags of trainmesh launch]": "--nproc-per-node 2",
    "[args]": "a b",
    " ...": " train.py",
}
"""What a reader puts in the place of words in capitals and dots."""
MENTIONED = {
    *("launch", "lab", "lab run", "serve", "why", "replay", "report", "plan"),
    *("endpoints cordon", "quarantine", "quarantine add"),
}
"""Named in a sentence, without what they need."""
SCRIPTS = ("train.py", "script.py")


def commands() -> list[tuple[str, str]]:
    """(page, words) of every command line that begins with trainmesh, or that a pipe leads to."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for block in FENCE.findall(text):
            for line in re.sub(r"\\\n\s*", " ", block).splitlines():
                begin = re.match(r"(?:\$ |[^#|]*\| )?(trainmesh [a-z].*)", line)
                if begin:
                    found.append((page.name, begin[1]))
        for words in INLINE.findall(FENCE.sub("", text)):
            found.append((page.name, " ".join(words.split())))
    return found


def as_typed(line: str) -> list[str]:
    """The words that a shell would hand to the command of ``line``, with all that is optional."""
    for what, instead in STANDS_FOR.items():
        line = line.replace(what, instead)
    line = re.sub(r"\[([^]|]*)(?:\|[^]]*)?\]", r"\1", line)  # optional; the first of several
    lexer = shlex.shlex(line, posix=True, punctuation_chars="<>|;&")
    lexer.whitespace_split = True
    words = list(lexer)  # what follows # is a comment
    unquoted = [word for word in words if word[0] in "<>|;&"]
    assert unquoted == [], f"a shell would not hand this to the command: {line}"
    return words[1:]


ALL = commands()


def test_there_are_commands_and_none_is_left_out() -> None:
    assert len(ALL) > 60
    shown = {line.split()[1] for _, line in ALL}
    assert shown == set(COMMANDS)


@pytest.mark.torch
@pytest.mark.parametrize(("page", "line"), sorted(set(ALL)))
def test_it_is_a_command(
    page: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = as_typed(line)
    if " ".join(words) in MENTIONED:
        return
    for script in SCRIPTS:
        (tmp_path / script).touch()
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    if words[:2] == ["lab", "run"]:
        assert parse_lab_run(words[2:]).topology
    else:
        if words[0] == "launch" and not {*words} & {*SCRIPTS} and "examples" not in line:
            words.append("train.py")
        assert build_parser(words[0]).parse(words).command == words[0]
