"""``trainmesh topology import``: files in, a topology file out, or one line and nothing."""

import argparse
import io
import json
import shutil
from pathlib import Path

import pytest
import yaml

from trainmesh.errors import ConfigError
from trainmesh.launcher.commands import topology_import as import_topology
from trainmesh.topology.document import load, load_file
from trainmesh.topology.graph import LinkGraph, Provenance

DATA = Path(__file__).parent.parent / "topology" / "importers" / "data"


def imported(*words: str) -> int:
    parser = argparse.ArgumentParser()
    import_topology.add_arguments(parser)
    return import_topology.run(parser.parse_args(words))


def graph_of(folder: Path, kind: str, *words: str) -> LinkGraph:
    output = folder / "out.yaml"
    assert imported(kind, *words, "--output", str(output)) == 0
    return load_file(output)


@pytest.mark.parametrize(
    ("kind", "file", "num_ranks"),
    [
        ("nccl-topo", "topo_dgx_a100.xml", 8),
        ("nccl-graph", "graph_four_v100_nvlink.xml", 4),
        ("nvidia-smi", "smi_hgx_h100_colour.txt", 8),
        ("nccl-tests", "tests_all_reduce_8_gpus.txt", 8),
        ("hostfile", "hostfile_openmpi.txt", 20),
        ("slurm-topology", "slurm_tree.conf", 11),
        ("slurm-topology", "slurm_tree.yaml", 4),
    ],
)
def test_every_kind_gives_a_file_that_can_be_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    file: str,
    num_ranks: int,
) -> None:
    monkeypatch.delenv("SLURM_JOB_NODELIST", raising=False)
    monkeypatch.delenv("SLURM_NODELIST", raising=False)
    assert graph_of(tmp_path, kind, str(DATA / file)).world_size == num_ranks
    said = capsys.readouterr().out
    assert said.startswith(f"{kind}: {num_ranks} ranks, ")
    assert said.count("\n") == 1


def test_standard_output_is_the_document_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert imported("hostfile", str(DATA / "hostfile_mpich.txt")) == 0
    captured = capsys.readouterr()
    assert load(captured.out, source="stdout").world_size == 5
    assert captured.err.startswith("hostfile: 5 ranks, ")


def test_json_and_yaml_say_the_same(tmp_path: Path) -> None:
    paths = [tmp_path / "out.json", tmp_path / "out.yaml"]
    for path in paths:
        imported("nvidia-smi", str(DATA / "smi_vm_two_gpus.txt"), "--output", str(path))
    assert json.loads(paths[0].read_text()) == yaml.safe_load(paths[1].read_text())


def test_dumps_of_several_hosts_become_one_cluster(tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copy(DATA / "topo_vm_h200.xml", tmp_path / f"{name}.xml")
    files = [str(tmp_path / f"{name}.xml") for name in ("a", "b")]
    graph = graph_of(tmp_path, "nccl-topo", *files)
    # Both dumps have ranks 0 and 1: they are numbered one after the other.
    assert [graph.rank_node(rank) for rank in range(4)] == [
        *("a/rank0", "a/rank1", "b/rank2", "b/rank3")
    ]
    way = [link.dst for link in graph.path(1, 2)]
    assert "core switch" in way
    named = graph_of(tmp_path, "nccl-topo", *files, "--host", "x", "--host", "y")
    assert named.rank_node(3) == "y/rank3"


def test_ranks_that_the_dumps_give_are_kept(tmp_path: Path) -> None:
    first = (DATA / "topo_vm_h200.xml").read_text()
    second = first.replace('rank="0"', 'rank="3"').replace('rank="1"', 'rank="2"')
    first_path, second_path = tmp_path / "a.xml", tmp_path / "b.xml"
    first_path.write_text(first)
    second_path.write_text(second)
    graph = graph_of(tmp_path, "nccl-topo", str(second_path), str(first_path))
    assert [graph.rank_node(rank) for rank in range(4)] == [
        *("a/rank0", "a/rank1", "b/rank2", "b/rank3")
    ]


def test_a_matrix_is_merged_into_a_hostfiles_graph(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("n1 slots=2\nn2 slots=2\n")
    base = tmp_path / "base.yaml"
    imported("hostfile", str(tmp_path / "hosts"), "--output", str(base))
    matrix = str(DATA / "smi_vm_two_gpus.txt")
    graph = graph_of(tmp_path, "nvidia-smi", matrix, "--host", "n2", "--merge", str(base))
    assert graph.world_size == 4
    # n2's ranks are those that the hostfile gave it.
    assert "n2/rank3->n2/bridge0" in {link.name for link in graph.links}
    assert graph.version == load_file(base).version + 1


def test_nccl_tests_calibrate_a_graph(tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    imported("nvidia-smi", str(DATA / "smi_hgx_h100_colour.txt"), "--output", str(base))
    run = str(DATA / "tests_all_reduce_8_gpus.txt")
    words = (run, "--merge", str(base), "--class", "nvlink")
    graph = graph_of(tmp_path, "nccl-tests", *words)
    link = graph.link("host/rank0->host/nvswitch")
    assert link.provenance is Provenance.MEASURED
    assert link.cost.bandwidth_bytes_per_s == pytest.approx(331e9, rel=0.01)


def test_slurm_reads_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2],gpu-b1")
    monkeypatch.setenv("SLURM_TASKS_PER_NODE", "1(x3)")
    monkeypatch.delenv("SLURM_DISTRIBUTION", raising=False)
    assert graph_of(tmp_path, "slurm").world_size == 3
    conf = str(DATA / "slurm_tree.conf")
    graph = graph_of(tmp_path, "slurm-topology", conf, "--ranks-per-node", "4")
    assert graph.rank_node(11) == "gpu-b1/rank11"


def test_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Piped:
        buffer = io.BytesIO((DATA / "smi_vm_two_gpus.txt").read_bytes())

    monkeypatch.setattr("sys.stdin", Piped())
    assert graph_of(tmp_path, "nvidia-smi", "-").world_size == 2


def test_json_has_all_notes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = "".join(f"spare{place} slots=0\n" for place in range(12))
    (tmp_path / "hosts").write_text("n1 slots=2\nn2 slots=2\n" + lines)
    output = str(tmp_path / "out.yaml")
    assert imported("hostfile", str(tmp_path / "hosts"), "--output", output, "--json") == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    notes = found.pop("notes")
    assert found == {
        "kind": "hostfile",
        "output": output,
        "ranks": 4,
        "nodes": 7,
        "links": 12,
        "classes": ["ethernet", "loopback"],
    }
    assert sum("has no slot" in note for note in notes) == 12
    assert captured.err == ""
    imported("hostfile", str(tmp_path / "hosts"), "--output", output)
    assert capsys.readouterr().err.endswith("note: and 5 more\n")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_files_that_windows_wrote(tmp_path: Path, encoding: str) -> None:
    for kind, name in (("nvidia-smi", "smi_vm_two_gpus.txt"), ("nccl-topo", "topo_vm_h200.xml")):
        text = (DATA / name).read_text().replace("\n", "\r\n")
        (tmp_path / name).write_bytes(text.encode(encoding))
        assert graph_of(tmp_path, kind, str(tmp_path / name)).world_size == 2
    (tmp_path / "hosts").write_bytes("n1 slots=2\r\n".encode(encoding))
    assert graph_of(tmp_path, "hostfile", str(tmp_path / "hosts")).world_size == 2


def test_what_files_say_together_is_said_of_all_of_them(tmp_path: Path) -> None:
    """Two hosts without NICs are not joined: no line of either is to blame."""
    for name in ("a", "b"):
        shutil.copy(DATA / "smi_a100_pcie_bridges.txt", tmp_path / f"{name}.txt")
    files = [str(tmp_path / f"{name}.txt") for name in ("a", "b")]
    with pytest.raises(ConfigError) as caught:
        graph_of(tmp_path, "nvidia-smi", *files)
    assert str(caught.value).startswith(f"{files[0]}, {files[1]}: no path from a/rank0 to b/rank8")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nccl-topo"], "topology import nccl-topo needs a FILE"),
        (["slurm", "file"], "topology import slurm reads no FILE; leave it out"),
        (["hostfile", "bad", "--sm", "80"], "--sm is for nvidia-smi, not hostfile"),
        (["nccl-topo", "one", "--class", "x"], "--class is for nccl-tests, not nccl-topo"),
        (["nccl-tests", "one", "--class", "x"], "--class needs --merge: which graph has that"),
        (["hostfile", "hosts", "--json"], "--json needs --output: standard output has the"),
        (["hostfile", "hosts"], "hosts:2: 'lots=8' is not known in a hostfile; write"),
        (["nccl-topo", "none"], "none:2: no GPU in it; dump it from a rank of the job"),
        (["hostfile", "missing"], "missing: No such file or directory; check the path"),
        (["hostfile", "."], ".: Is a directory; check the path"),
        (["hostfile", "bad", "bad"], "a job has one hostfile; give one FILE"),
        (["hostfile", "bad"], "bad:1: '<system>' is no host name"),
        (["nccl-topo", "bad"], "bad:2: not XML: no element found; is it cut off?"),
        (["nccl-topo", "bad", "bad"], "two files have one host's name; tell them apart"),
        (["nccl-topo", "bad", "--host", "a", "--host", "b"], "give --host once for each FILE"),
        (["nccl-topo", "binary"], "binary: not a text file in UTF-8; write it again as text"),
        (["nccl-topo", "one", "--merge", "missing"], "missing: No such file or directory"),
        (["nccl-topo", "one", "--output", "no/such/folder"], "--output no/such/folder: No such"),
    ],
)
def test_a_mistake_is_one_line_and_the_output_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad").write_text("<system>\n")
    Path("binary").write_bytes(b"\xff\x00")
    shutil.copy(DATA / "topo_vm_h200.xml", "one")
    Path("kept.yaml").write_text("mine")
    Path("hosts").write_text("n1 slots=8\nn2 lots=8\n")
    Path("none").write_text("\n<system><cpu/></system>\n")
    if "--output" not in words and "--json" not in words:
        words = [*words, "--output", "kept.yaml"]
    with pytest.raises(ConfigError) as caught:
        imported(*words)
    assert str(caught.value).startswith(says)
    assert len(str(caught.value).splitlines()) == 1
    assert Path("kept.yaml").read_text() == "mine"


def test_sources_of_different_jobs_are_refused(tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    imported("hostfile", str(DATA / "hostfile_mpich.txt"), "--output", str(base))
    with pytest.raises(ConfigError, match="rank 0 is node '10.0.0.1/rank0' in one source"):
        graph_of(tmp_path, "nvidia-smi", str(DATA / "smi_vm_two_gpus.txt"), "--merge", str(base))
