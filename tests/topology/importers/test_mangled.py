"""Whatever the text, an importer gives data or a GraphError of one line."""

from collections.abc import Callable
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.topology.importers.recorded import DATA
from trainmesh.errors import GraphError
from trainmesh.topology.importers import (
    calibration,
    hostfile,
    nccl_graph,
    nccl_tests,
    nccl_topo,
    nvidia_smi,
    slurm,
    slurm_topology,
    slurm_yaml,
)
from trainmesh.topology.importers.fragment import Fragment
from trainmesh.topology.merge import merge

T = TypeVar("T")


def read_slurm(text: str) -> Fragment:
    if slurm_yaml.is_yaml(text):
        switches, _ = slurm_yaml.parse(text, source="f")
    else:
        switches = slurm_topology.parse(text, source="f")
    hosts = hostfile.in_order(dict.fromkeys(slurm_topology.all_nodes(switches)[:50], 1))
    return slurm_topology.fragment(switches, hosts)


def read_tests(text: str) -> None:
    for run in nccl_tests.parse(text, source="f"):
        fit = calibration.calibrate(run)
        calibration.graph_of(run, fit.cost)


READERS: dict[str, Callable[[str], object]] = {
    "topo_": lambda text: merge(nccl_topo.parse(text, source="f", host="h")),
    "graph_": lambda text: merge(nccl_graph.implied(nccl_graph.parse(text, source="f"), host="h")),
    "smi_": lambda text: merge(nvidia_smi.parse(text, source="f", host="h")),
    "tests_": read_tests,
    "hostfile_": lambda text: hostfile.parse(text, source="f"),
    "slurm_": lambda text: merge(read_slurm(text)),
}
FILES = [
    (path.name, reader)
    for path in sorted(DATA.iterdir())
    for name, reader in READERS.items()
    if path.name.startswith(name)
]
PIECES = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["0", "-1", "99999999999999999999", "nan", "inf", "1e999", '"', "<", "</pci>", "<gpu/>"]
        + ["\n", "\t", "GPU0", "NV999", "X", "[1-3]", "Nodes=", "\\", "\x1b[4m", "\ud800", "\x00"]
    ),
)


@pytest.mark.parametrize("name", [name for name, _ in FILES])
def test_recorded_files_read(name: str) -> None:
    dict(FILES)[name]((DATA / name).read_text())


@given(st.data())
def test_a_mangled_file_is_read_or_refused_in_one_line(data: st.DataObject) -> None:
    name, reader = data.draw(st.sampled_from(FILES))
    text = (DATA / name).read_text()
    for _ in range(data.draw(st.integers(1, 3))):
        first = data.draw(st.integers(0, len(text)))
        last = data.draw(st.integers(first, min(len(text), first + 60)))
        text = text[:first] + data.draw(PIECES) + text[last:]
    refused_in_one_line(reader, text)


@given(st.sampled_from(list(READERS.values())), st.text(max_size=200))
def test_any_text_is_read_or_refused_in_one_line(
    reader: Callable[[str], object], text: str
) -> None:
    refused_in_one_line(reader, text)


SLURM = [
    f"SLURM_{name}{end}"
    for name in (
        *("JOB_NODELIST", "NODELIST", "STEP_NODELIST", "STEP_ID", "HET_SIZE", "PACK_SIZE"),
        *("TASKS_PER_NODE", "STEP_TASKS_PER_NODE", "NTASKS_PER_NODE", "NTASKS"),
        *("DISTRIBUTION", "GPUS_ON_NODE"),
    )
    for end in ("", "_HET_GROUP_0", "_PACK_GROUP_1")
]
VALUES = PIECES | st.sampled_from(["n[1-3],x", "n[4-5]", "2(x3),1", "2(x2)", "4", "2", "cyclic"])


@given(st.dictionaries(st.sampled_from(SLURM), VALUES))
def test_any_environment_is_read_or_refused_in_one_line(environ: dict[str, str]) -> None:
    complaint = refusal(slurm.from_environment, environ)
    assert complaint == "" or complaint.isprintable()


def refusal(reader: Callable[[T], object], source: T) -> str:
    """What is wrong with ``source``; anything but a GraphError fails the test."""
    try:
        reader(source)
    except GraphError as error:
        return str(error)
    return ""


def refused_in_one_line(reader: Callable[[str], object], text: str) -> None:
    complaint = refusal(reader, text)
    assert len(complaint.splitlines()) <= 1
    assert len(complaint) < 500
