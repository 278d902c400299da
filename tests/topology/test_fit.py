"""Alpha and beta recovered from times that were made from known ones."""

import pytest

from tests.topology.graphs import racks, star
from tests.topology.requests import PLAIN
from trainmesh.errors import GraphError
from trainmesh.topology.cost import predict
from trainmesh.topology.graph import Link, LinkGraph, Provenance, host_graph
from trainmesh.topology.measure.fit import fit_class, fit_line
from trainmesh.topology.planners import native
from trainmesh.topology.request import PlanRequest
from trainmesh.types import LinkCost

SIZES = (100_000, 1_000_000, 4_000_000)


def times(graph: LinkGraph) -> list[tuple[int, float]]:
    plan = native.plan(graph, PlanRequest(1, executors=PLAIN))
    return [(n, predict(plan, graph, n)) for n in SIZES for _ in range(3)]


def test_a_line_through_noise_and_outliers() -> None:
    samples = [(n, 0.001 + 2e-9 * n) for n in SIZES for _ in range(9)] + [(SIZES[0], 5.0)]
    line = fit_line(samples)
    assert line is not None
    assert line.intercept_s == pytest.approx(0.001)
    assert line.slope_s_per_byte == pytest.approx(2e-9)
    assert line.num_samples == 28


@pytest.mark.parametrize("samples", [[], [(1, 1.0)], [(5, 1.0), (5, 2.0)], [(1, 2.0), (2, 1.0)]])
def test_no_line_where_the_samples_determine_none(samples: list[tuple[int, float]]) -> None:
    assert fit_line(samples) is None


def test_an_assumed_class_takes_what_was_measured() -> None:
    assumed = host_graph({"a": [0, 1], "b": [2, 3]})
    real = LinkCost(alpha_s=30e-6, bandwidth_bytes_per_s=4e8)
    fit = fit_class(
        native.plan(assumed, PlanRequest(1, executors=PLAIN)),
        assumed,
        times(assumed.with_class_cost("ethernet", real)),
    )
    assert fit is not None
    assert fit.link_class == "ethernet"
    assert fit.measured.bandwidth_bytes_per_s == pytest.approx(4e8, rel=1e-6)
    assert fit.measured.alpha_s == pytest.approx(30e-6, rel=1e-6)
    assert fit.planned == fit.measured
    learned = assumed.with_class_cost(fit.link_class, fit.planned)
    assert learned.version == assumed.version + 1
    assert predict(
        native.plan(learned, PlanRequest(1, executors=PLAIN)), learned, 10**6
    ) == pytest.approx(
        predict(
            native.plan(assumed, PlanRequest(1, executors=PLAIN)),
            assumed.with_class_cost("ethernet", real),
            10**6,
        )
    )


@pytest.mark.parametrize("factor", [0.25, 4.0])
def test_a_declared_class_never_becomes_faster_than_declared(factor: float) -> None:
    declared = racks([0, 2, 1, 3], uplink=1, per_rack=2)
    links = [
        Link(
            link.src,
            link.dst,
            LinkCost(alpha_s=0.0, bandwidth_bytes_per_s=link.cost.bandwidth_bytes_per_s * factor),
        )
        for link in declared.links
    ]
    fit = fit_class(
        native.plan(declared, PlanRequest(1, executors=PLAIN)),
        declared,
        times(LinkGraph(declared.nodes, links)),
    )
    assert fit is not None
    assert fit.measured.bandwidth_bytes_per_s == pytest.approx(1e9 * factor)
    assert fit.planned.bandwidth_bytes_per_s == pytest.approx(1e9 * min(1, factor))


def test_the_links_of_a_class_keep_their_ratios() -> None:
    """Hosts at 1 GB/s and one at 0.5, all really at 80 % and 20 us later than declared."""
    nics = (1.0, 1.0, 1.0, 0.5)
    declared = star(nics)
    real = star([0.8 * nic for nic in nics], alpha_us=20)
    fit = fit_class(native.plan(declared, PlanRequest(1, executors=PLAIN)), declared, times(real))
    assert fit is not None
    assert fit.planned.bandwidth_bytes_per_s == pytest.approx(0.4e9)
    learned = declared.with_class_cost(fit.link_class, fit.planned)
    for link in real.links:
        cost = learned.link(link.name).cost
        assert cost.bandwidth_bytes_per_s == pytest.approx(link.cost.bandwidth_bytes_per_s)
        assert cost.alpha_s == pytest.approx(link.cost.alpha_s)


def test_a_cost_for_a_class_that_is_not_there_is_refused() -> None:
    with pytest.raises(GraphError, match="no link has class 'nvlink'"):
        star([1, 1]).with_class_cost("nvlink", LinkCost(alpha_s=0.0, bandwidth_bytes_per_s=1.0))


def test_a_fitted_class_says_that_it_was_measured() -> None:
    graph = racks([0, 1, 2, 3], uplink=1, per_rack=2)
    fitted = graph.with_class_cost("ethernet", graph.links[0].cost)
    assert {link.provenance for link in fitted.links} == {Provenance.MEASURED}
