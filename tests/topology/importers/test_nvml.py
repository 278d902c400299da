"""NVML: the real pynvml on a library compiled here that answers from a file."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.needs import need
from trainmesh.topology.document import load
from trainmesh.topology.graph import LinkGraph, Provenance
from trainmesh.topology.importers.nearness import Nearness
from trainmesh.topology.importers.nvml import Gpu, GpuMachine, fragment
from trainmesh.topology.merge import merge

ROOT = Path(__file__).parent.parent.parent.parent
IMPORT = """
import argparse, sys
from trainmesh.errors import TrainmeshError
from trainmesh.launcher.commands import topology_import
parser = argparse.ArgumentParser()
topology_import.add_arguments(parser)
try:
    sys.exit(topology_import.run(parser.parse_args(sys.argv[1:])))
except TrainmeshError as error:
    sys.exit(str(error))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("a C compiler")
    folder = tmp_path_factory.mktemp("nvml")
    source = Path(__file__).parent / "fake_nvml.c"
    output = folder / "libnvidia-ml.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", output, source], check=True)
    return folder


def imported(library: Path | None, state: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    (tmp_path / "state").write_text(state)
    environ = {**os.environ, "FAKE_NVML": str(tmp_path / "state")}
    environ["LD_LIBRARY_PATH"] = str(library or tmp_path)
    return subprocess.run(
        [sys.executable, "-c", IMPORT, "nvml", "--host", "h", "--output", tmp_path / "out.json"],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )


def graph_of(library: Path, state: str, tmp_path: Path) -> LinkGraph:
    done = imported(library, state, tmp_path)
    assert done.returncode == 0, done.stderr
    return load((tmp_path / "out.json").read_text(), source="out.json")


def test_gpus_around_switches(library: Path, tmp_path: Path) -> None:
    state = "count 4\n" + "".join(f"gpu{gpu}.links 12\n" for gpu in range(4))
    graph = graph_of(library, state + "near.0.1 20\nnear.2.3 20\n", tmp_path)
    assert graph.world_size == 4
    link = graph.link("h/rank3->h/nvswitch")
    assert link.cost.bandwidth_bytes_per_s == pytest.approx(240e9)
    assert link.provenance is Provenance.DISCOVERED
    pcie = graph.link("h/rank0->h/switches0")
    assert (pcie.cost.bandwidth_bytes_per_s, pcie.provenance) == (24e9, Provenance.DISCOVERED)
    assert "h/rank2->h/switches1" in {link.name for link in graph.links}


def test_gpus_linked_to_each_other_and_one_link_down(library: Path, tmp_path: Path) -> None:
    state = (
        "gpu0.sm 70 gpu0.links 3 gpu0.link0 1 gpu0.link1 1 gpu0.link2 -2 "
        "gpu1.sm 70 gpu1.links 3 gpu1.link0 0 gpu1.link1 0 gpu1.link2 -2 "
        "gpu0.generation 3 gpu0.width 8"
    )
    graph = graph_of(library, state, tmp_path)
    assert graph.link("h/rank0->h/rank1").cost.bandwidth_bytes_per_s == pytest.approx(40e9)
    assert graph.link("h/rank0->h").cost.bandwidth_bytes_per_s == pytest.approx(6e9)


def test_what_a_virtual_machine_hides_is_no_error(library: Path, tmp_path: Path) -> None:
    state = (
        "gpu0.links 18 gpu1.links 18 gpu0.sm 90 gpu1.sm 90 "
        "fail.nvmlDeviceGetNvLinkRemoteDeviceType 3 fail.nvmlDeviceGetTopologyCommonAncestor 3"
    )
    graph = graph_of(library, state, tmp_path)
    expected = 18 * 20.6e9
    assert graph.link("h/rank0->h/nvswitch").cost.bandwidth_bytes_per_s == pytest.approx(expected)
    assert "h/rank0->h" in {link.name for link in graph.links}


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ("count 0", "NVML: the driver knows no GPU; run this on a host that has one\n"),
        ("fail.nvmlDeviceGetName 15", "NVML: GPU is lost; run nvidia-smi and see why\n"),
    ],
)
def test_a_driver_in_trouble_is_one_line(
    library: Path, tmp_path: Path, state: str, says: str
) -> None:
    done = imported(library, state, tmp_path)
    assert (done.returncode, done.stderr) == (1, says)
    assert not (tmp_path / "out.json").exists()


def test_no_driver_is_one_line(tmp_path: Path) -> None:
    done = imported(None, "", tmp_path)
    if done.returncode == 0:
        pytest.skip("this machine has an NVIDIA driver")
    assert done.stderr.startswith("NVML: ")
    assert done.stderr.endswith(
        "; run this on a host with an NVIDIA driver (nvidia-smi must work)\n"
    )
    assert done.stderr.count("\n") == 1


def test_a_gpu_that_is_not_visible_is_noted() -> None:
    gpu = Gpu("A", "00000000:10:00.0", 80, 4, 16, (("00000000:99:00.0", 4),))
    found = fragment(GpuMachine((gpu,), ()), host="h")
    assert "4 NVLinks of h/rank0 lead to a GPU that is not visible here" in found.notes
    assert merge(found).world_size == 1


def test_a_gpu_that_is_the_far_end_of_its_own_links_is_noted() -> None:
    """As in some virtual machines, whose dumps show the same."""
    busids = ("00000001:00:00.0", "00000002:00:00.0")
    gpus = tuple(Gpu("A", busid, 80, 4, 16, ((busid, 12),)) for busid in busids)
    found = fragment(GpuMachine(gpus, ()), host="h")
    assert "12 NVLinks of h/rank1 lead to itself and are left out" in found.notes
    assert {link.link_class for link in merge(found).links} == {"pcie"}


def test_ranks_begin_where_they_are_told() -> None:
    gpus = tuple(Gpu("A", f"{index}", 80, 4, 16, (("", 12),)) for index in range(2))
    found = fragment(GpuMachine(gpus, ((0, 1, Nearness.PIX),)), host="b", first_rank=2)
    assert found.ranks == (2, 3)
    assert json.dumps([link.name for link in found.links]).count("b/switch0") == 6
