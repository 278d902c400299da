"""NCCL graph dumps: the channels, and the links they imply."""

import pytest

from tests.topology.importers.recorded import GBps, text
from trainmesh.errors import GraphError
from trainmesh.topology.importers.nccl_graph import ChannelGpu, NcclChannel, Pattern, implied, parse
from trainmesh.topology.merge import merge


def test_rings_over_nvlink() -> None:
    [ring] = parse(text("graph_four_v100_nvlink.xml"), source="x")
    assert ring.pattern is Pattern.RING
    assert (ring.intra_GBps, ring.type_intra, len(ring.channels)) == (22.0, "NVL", 6)
    assert [gpu.dev for gpu in ring.channels[1].gpus] == [0, 1, 3, 2]
    graph = merge(implied([ring], host="h"))
    # Every directed pair is in two of the six rings: two links of 22 GB/s.
    assert len(graph.links) == 12
    assert {link.cost.bandwidth_bytes_per_s for link in graph.links} == {44e9}
    assert {link.link_class for link in graph.links} == {"nvlink"}


def test_rings_through_the_network() -> None:
    graphs = parse(text("graph_four_gpus_sys.xml"), source="x")
    assert [graph.pattern for graph in graphs] == [Pattern.RING, Pattern.TREE, Pattern.TREE]
    assert graphs[0].channels[0] == NcclChannel(tuple(ChannelGpu(dev) for dev in range(4)), (3, 0))
    graph = merge(implied(graphs, host="h"))
    # In at net3, through the GPUs, out at net0: nothing from the last GPU to the first.
    assert GBps(graph, "h/rank1->h/rank2") == 24.0
    assert GBps(graph, "h/net3->h/rank0") == GBps(graph, "h/rank3->h/net0") == 24.0
    assert GBps(graph, "core switch->h/net3") == 24.0
    assert "h/rank3->h/rank0" not in {link.name for link in graph.links}
    # The tree's GPU 3 sends by net3 as well.
    assert GBps(graph, "h/rank3->h/net3") == 12.0


def test_ranks_and_hosts_as_newer_versions_write_them() -> None:
    dump = (
        '<graphs version="1"><graph id="0" pattern="4" nchannels="1" speedintra="60.5" '
        'speedinter="60.5" typeintra="NVL" typeinter="NVL" samechannels="1"><channel>'
        '<gpu dev="0" rank="4"/><gpu dev="0xa" rank="5"/><gpu dev="0x100000000000003" rank="6"/>'
        "</channel></graph></graphs>"
    )
    [graph] = parse(dump, source="x")
    assert graph.channels[0].gpus == (
        ChannelGpu(0, 0, 4),
        ChannelGpu(10, 0, 5),
        ChannelGpu(3, 1, 6),
    )
    found = implied([graph], host="h")
    assert {node.name for node in found.nodes} == {"h/rank4", "h/rank5", "h-2/rank6"}
    with pytest.raises(GraphError, match=r"\Ax:1: the dump is of several hosts and says no ranks"):
        implied(parse(dump.replace(' rank="6"', ""), source="x"), host="h")
    for twice in ('"5"', '"4"'):
        with pytest.raises(GraphError, match=r"\Ax:1: two GPUs of a channel have one rank"):
            implied(
                parse(dump.replace('x100000000000003" rank="6"', f'xb" rank={twice}'), source="x"),
                host="h",
            )


def test_what_a_dump_says_beside_rings_and_trees_is_said() -> None:
    dump = (
        '<graphs version="1">\n<graph id="0" pattern="4" nchannels="1" speedintra="48" '
        'speedinter="48" typeintra="XGMI" typeinter="PIX">\n<channel><gpu dev="0"/><gpu dev="1"/>'
        '<switch dev="9"/></channel>\n</graph>\n<graph id="3" pattern="5" nchannels="0"/>\n'
        "<tuning/>\n</graphs>"
    )
    found = implied(parse(dump, source="x"), host="h")
    assert {link.link_class for link in found.links} == {"xgmi"}
    assert found.notes == (
        "x:3: <switch> in <channel> is not known and left out",
        "x:6: <tuning> in <graphs> is not known and left out",
        "x:5: graph of NVLS or CollNet is left out: it says nothing of links",
    )


RING = (
    '<graphs>\n<graph id="0" pattern="{}" nchannels="{}" speedintra="{}" speedinter="1">\n{}'
    "</graph></graphs>"
)
CHANNEL = '<channel><gpu dev="0"/></channel>'


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("<graphs/>", "g.xml: no <graph> in it; dump it from a rank of the job"),
        (RING.format(9, 1, 1, CHANNEL), "g.xml:2: pattern='9' of <graph> must be 1 to 6"),
        (RING.format(4, 2, 1, CHANNEL), "g.xml:2: nchannels is 2, but 1 follow; is the dump"),
        (RING.format(4, 1, 0, CHANNEL), "g.xml:2: channels without a speed"),
        (RING.format(4, 1, "1e9", CHANNEL), "g.xml:2: speedintra='1e9' of <graph> must be a num"),
        (RING.format(4, 1, 1, "<channel/>"), "g.xml:3: a channel without a GPU"),
        (
            RING.format(4, 1, 1, '<channel><gpu dev="0"/><gpu dev="0"/></channel>'),
            "g.xml:3: a GPU is there twice in one channel",
        ),
        (RING.format(4, 1, 1, CHANNEL.replace('"0"', '"-1"')), "g.xml:3: dev='-1' of <gpu>"),
    ],
)
def test_complaints_name_the_line(bad: str, says: str) -> None:
    with pytest.raises(GraphError) as caught:
        parse(bad, source="g.xml")
    assert str(caught.value).startswith(says)
