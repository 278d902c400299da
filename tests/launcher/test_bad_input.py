"""Wrong input: one line that says what and where, the right exit code, and nothing started."""

import os
from pathlib import Path

import pytest

from tests.launchjob import JOBS, ROOT
from trainmesh.launcher.cli import main
from trainmesh.rundir import RunDir, RunInfo

pytestmark = pytest.mark.torch

RACKS = str(ROOT / "examples" / "two_racks.yaml")
SCRIPT = str(JOBS / "probe.py")
TWO, FOUR, MANY = (["--nproc-per-node", number] for number in ("2", "4", "65"))


@pytest.fixture(autouse=True)
def private_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("TRAINMESH")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "bad.yaml").write_text("nodes: [")
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["no/such.py"], 1, "no such file: no/such.py"),
        (["-m", "no_such_module"], 1, "no module named 'no_such_module'"),
        (["--no-python", "no-such-program"], 1, "no program no-such-program"),
        (["--no-python", "-m", "this"], 1, "Don't use both"),
        ([], 2, "training_script"),
        (["--nonsense", SCRIPT], 2, "--nonsense"),
        (["--nproc-per-node", "many", SCRIPT], 1, "nproc_per_node value: many"),
        (["--nproc-per-node", "gpu", SCRIPT], 1, "Cuda is not available"),
        (["--nnodes", "0", SCRIPT], 1, "min_nodes must be > 0"),
        (["--nnodes", "2:1", SCRIPT], 1, "min_nodes=2, max_nodes=1"),
        (["--nnodes", "1:2:3", SCRIPT], 1, "1:2:3"),
        (["--max-restarts=-1", SCRIPT], 1, "max_restarts"),
        (["--max-restarts", "x", SCRIPT], 2, "--max-restarts"),
        (["--start-method", "x", SCRIPT], 2, "--start-method"),
        (["-r", "9", SCRIPT], 1, "9 does not match"),
        (["--rdzv-conf", "x", SCRIPT], 1, "'x' must have a value"),
        (["--local-ranks-filter", "x", SCRIPT], 1, "local_ranks_filter"),
        (["--logs-specs", "x", SCRIPT], 1, "logs_specs"),
        (["--log-dir", "file", SCRIPT], 1, "--log-dir file: not a directory"),
        (["--report", "file", SCRIPT], 2, "--report file: not a directory"),
        (["--report", "/proc/none", SCRIPT], 2, "--report /proc/none"),
        (["--nnodes", "2", SCRIPT], 2, "pass the same --etcd"),
        (["--cadence", "0", SCRIPT], 2, "argument --cadence: '0'"),
        (["--cadence", "1025", SCRIPT], 2, "argument --cadence: '1025'"),
        (["--cadence", "1.5", SCRIPT], 2, "argument --cadence: '1.5'"),
        (["--margin", "-0.1", SCRIPT], 2, "argument --margin"),
        (["--margin", "nan", SCRIPT], 2, "argument --margin: 'nan'"),
        (["--margin", "x", SCRIPT], 2, "argument --margin: 'x'"),
        (
            ["--fusion", "-1", SCRIPT],
            2,
            "64MB or 25MiB, nor auto or off",
        ),
        (["--fusion", "0", SCRIPT], 2, "argument --fusion"),
        (["--compression", "best", SCRIPT], 2, "powersgd, topk (auto chooses one, none is off)"),
        (["--compression", "topk:x", SCRIPT], 2, "--compression topk:x"),
        (["--plan", "best", SCRIPT], 2, "argument --plan: invalid choice: 'best'"),
        (["--plan", "ring", SCRIPT], 2, "--plan ring can't run here: it takes 3 ranks or more"),
        (["--plan", "ring", *TWO, SCRIPT], 2, "3 ranks or more, not 2"),
        (["--plan", "sharded", *TWO, SCRIPT], 2, "3 to 64 ranks, not for 2; leave --plan out"),
        (["--plan", "tree", SCRIPT], 2, "one rank has nobody to send to"),
        (["--plan", "hierarchical", *FOUR, SCRIPT], 2, "divide the 4 ranks into no islands"),
        (["--compression", "int8", *MANY, SCRIPT], 2, "65 ranks, it can serve 64"),
        (["--progress", "x", SCRIPT], 2, "argument --progress"),
        (["--job", "a/b", SCRIPT], 2, "argument --job: 'a/b'"),
        (["--job", "", SCRIPT], 2, "argument --job: ''"),
        (["--job", "x" * 65, SCRIPT], 2, "argument --job"),
        (["--topology", "none.yaml", SCRIPT], 2, "none.yaml"),
        (["--topology", "bad.yaml", SCRIPT], 2, "bad.yaml"),
        (["--topology", ".", SCRIPT], 2, ".: "),
        (["--topology", "", SCRIPT], 2, "argument --topology: the name of a file is empty"),
        (["--topology", RACKS, *TWO, SCRIPT], 2, "the file has 4 ranks, the job has 2 ranks"),
        (["--topology", RACKS, *TWO, "--dry-run", SCRIPT], 2, "the file has 4 ranks"),
        (["--report", "", SCRIPT], 2, "argument --report: the name of a file is empty"),
        (["--etcd", "nonsense", SCRIPT], 2, "'nonsense' must be http://host:port"),
        (["--etcd", "nonsense", "--dry-run", SCRIPT], 2, "'nonsense' must be http://host:port"),
        (["--etcd", "", SCRIPT], 2, "'' must be http://host:port"),
        (["--nproc-per-node", "0", SCRIPT], 1, "--nproc-per-node 0: must be 1 or more"),
        (["--nproc-per-node=-1", "--dry-run", SCRIPT], 1, "--nproc-per-node -1: must be 1 or more"),
        (["--monitor-interval", "0", SCRIPT], 1, "--monitor-interval 0: must be a number"),
        (["--monitor-interval", "nan", SCRIPT], 1, "--monitor-interval nan: must be a number"),
    ],
)
def test_bad_input(
    argv: list[str], code: int, words: str, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    result: object
    try:
        result = main(["launch", "--progress", "off", *argv])
    except SystemExit as stop:  # argparse ends this way
        result = stop.code
    out, err = capfd.readouterr()
    assert (result, out) == (code, "")
    assert len(err.splitlines()) == 1
    assert err.startswith(("trainmesh: error: ", "trainmesh launch: error: "))
    assert words in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.yaml", "file"]


@pytest.mark.parametrize(
    "flags",
    [
        ["--plan", "native"],
        ["--plan", "ring", *FOUR],
        ["--plan", "forest", *TWO],
        ["--plan", "sharded", *MANY],  # replicas of FSDP2 may be fewer
        ["--plan", "ring", "--nnodes", "1:4", *TWO],
        ["--plan", "hierarchical", "--nnodes", "3", *FOUR],
        ["--plan", "hierarchical", "--nnodes", "4"],  # nobody knows the links between them yet
        ["--plan", "hierarchical", *FOUR, "--topology", RACKS],
        ["--compression", "int8", *FOUR],
        ["--compression", "auto"],
    ],
)
def test_what_may_be_had_is_not_refused(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["launch", "--dry-run", "--etcd", "http://127.0.0.1:2379", *flags, SCRIPT]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--nnodes", "2", "--nproc-per-node", "2"], ""),
        (["--nnodes", "1:4"], ""),
        (["--nnodes", "2"], "this one has 2 ranks with 1 on each node"),
        (["--nnodes", "1:2", "--nproc-per-node", "3"], "this one has 3 ranks to 6 ranks with 3"),
    ],
)
def test_a_topology_of_another_size_is_said(
    flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not refused: other nodes may start other numbers of ranks."""
    etcd = ["--etcd", "http://127.0.0.1:2379"]
    assert main(["launch", "--dry-run", *etcd, "--topology", RACKS, *flags, SCRIPT]) == 0
    err = capsys.readouterr().err
    assert words in err
    assert len(err.splitlines()) == (1 if words else 0)


def test_a_dry_run_says_what_would_be_started_and_starts_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = dict(os.environ)
    flags = ["--nproc-per-node", "3", "--job", "j1", "--plan", "ring", "--log-dir", "new"]
    assert main(["launch", "--dry-run", *flags, "--report", "r", SCRIPT, "a b", "-x"]) == 0
    lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert lines["job"] == "j1"
    assert lines["workers"] == "3 on each of 1:1 nodes"
    assert lines["worker"].endswith(f"-u {SCRIPT} 'a b' -x")
    assert lines["plan"] == "ring, margin 0.05, cadence 16"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.yaml", "file"]
    assert dict(os.environ) == before


@pytest.mark.etcd
def test_a_rendezvous_that_cannot_be_is_one_line(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    flags = ["--rdzv-backend", "nonsense", "--rdzv-endpoint", "localhost:1"]
    assert main(["launch", "--progress", "off", *flags, SCRIPT]) == 1
    err = capfd.readouterr().err
    assert len(err.splitlines()) == 1
    assert err.startswith("trainmesh: error: torchrun: The rendezvous backend 'nonsense'")
    assert list((tmp_path / "trainmesh").glob("*")) == []


def test_a_second_job_of_a_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Also where each has an etcd of its own; a name that torchrun's flags make is no choice."""
    info = RunInfo(job="alpha", pid=4242, etcd="http://127.0.0.1:1", created_unix_s=1.0)
    run = RunDir.create(info)
    try:
        assert main(["launch", "--dry-run", "--job", "alpha", SCRIPT]) == 1
        assert capsys.readouterr().err == (
            "trainmesh: error: a job named 'alpha' is running already: its launcher is process "
            "4242; choose another name with --job NAME, or wait until it has ended\n"
        )
        assert main(["launch", "--dry-run", "--job", "beta", SCRIPT]) == 0
        assert main(["launch", "--dry-run", "--rdzv-id", "alpha", SCRIPT]) == 0
    finally:
        run.remove()
    assert main(["launch", "--dry-run", "--job", "alpha", SCRIPT]) == 0
