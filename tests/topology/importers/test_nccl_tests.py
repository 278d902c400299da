"""Output of nccl-tests: recorded runs, the cost they give, and what is refused."""

import pytest

from tests.topology.importers.recorded import GBps, text
from trainmesh.errors import GraphError
from trainmesh.topology.graph import LinkGraph, Provenance, host_graph
from trainmesh.topology.importers.calibration import calibrate, calibrated, graph_of
from trainmesh.topology.importers.nccl_tests import Rank, Run, Sample, parse
from trainmesh.types import LinkCost


def run_of(name: str) -> Run:
    [run] = parse(text(name), source=name)
    return run


def test_eight_gpus_of_one_host() -> None:
    run = run_of("tests_all_reduce_8_gpus.txt")
    # The file doesn't say what ran: busbw is 7/4 of algbw, and it reduces without a root.
    assert run.collective == "allreduce"
    assert run.hosts == {"node1": tuple(range(8))}
    assert run.ranks[3] == Rank(3, "node1", 3, "NVIDIA H20")
    assert len(run.samples) == 22
    last = run.samples[-2:]
    assert [sample.time_s for sample in last] == pytest.approx([195.4e-6, 195.4e-6])
    assert last == (
        Sample(33_554_432, last[0].time_s, 171.72, 300.51, False, 0),
        Sample(33_554_432, last[1].time_s, 171.73, 300.52, True, 0),
    )
    fit = calibrate(run)
    # The slope between large sizes is steeper than the busbw of the largest one, 300 GB/s.
    assert fit.cost.bandwidth_bytes_per_s == pytest.approx(331e9, rel=0.01)
    assert 0 < fit.cost.alpha_s < 2e-6
    assert fit.residual < 0.05


def test_two_hosts_and_the_name_of_the_test() -> None:
    run = run_of("tests_all_reduce_two_hosts.txt")
    assert (run.collective, run.hosts) == ("allreduce", {"spark-1": (0,), "spark-2": (1,)})
    assert run.ranks[0].gpu == "NVIDIA GB10"


def test_the_command_line_says_what_ran() -> None:
    run = run_of("tests_all_gather_2_gpus.txt")
    assert run.collective == "allgather"
    fit = calibrate(run)
    # Half of the bytes cross the link: 67 MB in 256.5 us are 131 GB/s of it, with alpha in.
    assert fit.cost.bandwidth_bytes_per_s == pytest.approx(155e9, rel=0.01)


def test_old_columns_and_mpiruns_tags() -> None:
    run = run_of("tests_all_reduce_old_mpirun.txt")
    assert len(run.ranks) == 2
    assert [sample.num_wrong for sample in run.samples] == [None] * 6
    assert calibrate(run).cost.bandwidth_bytes_per_s == pytest.approx(116.6e9, rel=0.001)


def made(collective: str, num_ranks: int, alpha_s: float, bandwidth: float) -> Run:
    """A ring that costs exactly that a hop."""
    hops = (num_ranks - 1) * (2 if collective == "allreduce" else 1)
    factor = hops / num_ranks
    samples = tuple(
        Sample(nbytes, hops * alpha_s + factor * nbytes / bandwidth, 1.0, factor, False, 0)
        for nbytes in (8, 1024, 2**20, 2**24, 2**28)
    )
    return Run(collective, tuple(Rank(r, "h", r, "") for r in range(num_ranks)), samples)


@pytest.mark.parametrize("collective", ["allreduce", "allgather", "reduce_scatter"])
@pytest.mark.parametrize("num_ranks", [2, 3, 8])
def test_the_cost_of_a_hop_is_found(collective: str, num_ranks: int) -> None:
    fit = calibrate(made(collective, num_ranks, 5e-6, 20e9))
    assert fit.cost.alpha_s == pytest.approx(5e-6)
    assert fit.cost.bandwidth_bytes_per_s == pytest.approx(20e9)
    assert fit.residual == pytest.approx(0, abs=1e-9)


def hop(graph: LinkGraph, src: int, dst: int) -> tuple[float, float]:
    path = graph.path(src, dst)
    alpha_s = sum(link.cost.alpha_s for link in path)
    return alpha_s, min(link.cost.bandwidth_bytes_per_s for link in path)


def test_a_run_calibrates_the_links_of_a_graph() -> None:
    graph = host_graph({"a": [0, 1], "b": [2, 3]})
    found = calibrated(
        graph, made("allreduce", 4, 5e-6, 20e9), LinkCost(alpha_s=5e-6, bandwidth_bytes_per_s=20e9)
    )
    # The slowest link between neighbouring ranks is one of ethernet; two of them are on a hop.
    link = found.link("a->core switch")
    assert link.cost.alpha_s == pytest.approx(2.5e-6)
    assert link.provenance is Provenance.MEASURED
    assert GBps(found, "a->core switch") == 20.0
    assert found.link("a/rank0->a") == graph.link("a/rank0->a")
    assert found.version == graph.version + 1
    chosen = calibrated(graph, made("allreduce", 4, 5e-6, 20e9), link.cost, "loopback")
    assert GBps(chosen, "a/rank0->a") == 20.0


@pytest.mark.parametrize("hosts", [["a", "a"], ["a", "b"]])
def test_without_a_graph_every_hop_is_as_measured(hosts: list[str]) -> None:
    run = Run("allreduce", tuple(Rank(r, host, r, "") for r, host in enumerate(hosts)), ())
    cost = LinkCost(alpha_s=8e-6, bandwidth_bytes_per_s=3e9)
    alpha_s, bandwidth_bytes_per_s = hop(graph_of(run, cost), 0, 1)
    assert alpha_s == pytest.approx(8e-6)
    assert bandwidth_bytes_per_s == 3e9


def test_a_graph_of_another_job_is_refused() -> None:
    run = made("allreduce", 4, 5e-6, 20e9)
    cost = calibrate(run).cost
    with pytest.raises(GraphError, match="the run has 4 ranks, the graph 2"):
        calibrated(host_graph({"a": [0, 1]}), run, cost)
    with pytest.raises(GraphError, match="no way between neighbouring ranks"):
        calibrated(host_graph({"a": range(4)}), run, cost, "nvlink")


HEAD = (
    "#  Rank  0 Group  0 Pid 1 on h device  0 [0x01] A\n#  Rank  1 Pid 1 on h device 1 [0x02] A\n"
)
ROW = "1024 256 float sum -1 30.0 1.00 1.00 0 30.0 1.00 1.00 0\n"


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("", "t.txt: no row of a table in it; give what all_reduce_perf printed"),
        (HEAD, "t.txt: no row of a table in it"),
        (ROW, "t.txt:1: the lines '# Rank  0 ...' of all ranks must be above it"),
        (HEAD + ROW[:40] + "\n", "t.txt:3: a row of 10 columns; is the line cut off?"),
        (HEAD + ROW.replace("30.0", "fast", 1), "t.txt:3: 'fast' is no number; give the table"),
        (HEAD + ROW.replace("30.0", "0.0", 1), "t.txt:3: 1024 bytes in no time; give the table"),
        (HEAD.replace("Rank  1", "Rank  0") + ROW, "t.txt:2: rank 0 is there twice; were the"),
        ("$ ./alltoall_perf -b 8\n" + HEAD + ROW, "t.txt:1: alltoall says nothing about a ring"),
        (HEAD + ROW.replace("-1", "0"), "t.txt:3: can't tell which collective this is"),
    ],
)
def test_complaints_name_the_line(bad: str, says: str) -> None:
    with pytest.raises(GraphError) as caught:
        parse(bad, source="t.txt")
    assert str(caught.value).startswith(says)


def test_one_size_gives_no_cost() -> None:
    [run] = parse(HEAD + ROW, source="t.txt")
    assert run.collective == "allreduce"
    with pytest.raises(GraphError, match="measure at least two sizes on two ranks"):
        calibrate(run)


def test_several_runs_in_one_file() -> None:
    one = "# nThread 1 nGpus 2 minBytes 8\n" + HEAD + ROW
    runs = parse(one + one.replace("sum", "none"), source="t.txt", collective="reduce_scatter")
    assert [run.collective for run in runs] == ["reduce_scatter"] * 2
