"""NCCL topology dumps: recorded machines, and what is refused."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.topology.importers.recorded import GBps, neighbours, text
from trainmesh.errors import GraphError
from trainmesh.topology.graph import Kind, LinkGraph, Provenance
from trainmesh.topology.importers.nccl_topo import parse
from trainmesh.topology.importers.xml_tree import MAX_CHARS, MAX_DEPTH
from trainmesh.topology.merge import merge


def graph_of(name: str) -> LinkGraph:
    return merge(parse(text(name), source=name, host="h"))


def test_dgx_a100() -> None:
    graph = graph_of("topo_dgx_a100.xml")
    assert graph.world_size == 8
    for rank in range(8):
        # Two links to each of six NVSwitches, which are one node.
        assert GBps(graph, f"h/rank{rank}->h/nvswitch") == pytest.approx(12 * 20.0)
    assert neighbours(graph, "h/rank0") == {"h/nvswitch", "h/pci 0000:05:10.0"}
    assert GBps(graph, "h/rank0->h/pci 0000:05:10.0") == 24.0
    assert "h/mlx5_0" in neighbours(graph, "h/pci 0000:05:10.0")
    assert GBps(graph, "h/mlx5_0->core switch") == 25.0
    # A card with two ports, 200 and 100 Gbit/s, straight on a CPU without GPUs.
    assert GBps(graph, "h/mlx5_4->core switch") == 37.5
    assert neighbours(graph, "h/numa0") == {"h", "h/mlx5_4"}
    # familyid 143 is what NCCL wrote for AMD Rome.
    assert GBps(graph, "h/numa3->h") == 16.0
    kinds = {node.name: node.kind for node in graph.nodes}
    assert kinds["h/pci 0000:05:10.0"] is Kind.SWITCH
    assert kinds["h/numa3"] is kinds["h"] is Kind.HOST
    assert kinds["h/mlx5_0"] is Kind.NIC
    assert {link.provenance for link in graph.links} == {Provenance.DISCOVERED}


def test_dgx1v_links_gpus_directly_and_some_lead_outside() -> None:
    found = parse(text("topo_dgx1v_four_gpus.xml"), source="dump.xml", host="h")
    graph = merge(found)
    assert GBps(graph, "h/rank0->h/rank1") == 20.0
    assert GBps(graph, "h/rank0->h/rank3") == GBps(graph, "h/rank3->h/rank0") == 40.0
    assert graph.link("h/rank0->h/rank3").link_class == "nvlink"
    outside = [note for note in found.notes if "outside the job" in note]
    assert outside == ["dump.xml:9: NVLink to a GPU outside the job is left out (4 times)"]
    # An interface of the kernel has no PCI device in the dump: it hangs on the CPU.
    assert neighbours(graph, "h/enp1s0f0") == {"h/numa0", "core switch"}
    assert GBps(graph, "h/enp1s0f0->core switch") == 1.25


def test_a_hop_between_gpus_costs_what_nccl_says_whatever_is_between() -> None:
    direct = graph_of("topo_dgx1v_four_gpus.xml")
    switched = graph_of("topo_dgx_a100.xml")
    assert direct.link("h/rank0->h/rank1").cost.alpha_s == pytest.approx(3.4e-6)
    over = [switched.link("h/rank0->h/nvswitch"), switched.link("h/nvswitch->h/rank5")]
    assert sum(link.cost.alpha_s for link in over) == pytest.approx(3.4e-6)


def test_virtual_machine_with_h200() -> None:
    graph = graph_of("topo_vm_h200.xml")
    assert GBps(graph, "h/rank0->h/nvswitch") == pytest.approx(18 * 20.6)
    assert GBps(graph, "h/rank0->h/pci 0000:16:00.0") == 48.0
    assert GBps(graph, "h/mlx5_1->core switch") == 50.0
    assert GBps(graph, "h/numa0->h") == 40.0


def test_speeds_that_a_virtual_machine_hides_are_assumed() -> None:
    graph = graph_of("topo_vm_no_speeds.xml")
    link = graph.link("h/rank0->h/pci 0000:18:00.0")
    assert link.cost.bandwidth_bytes_per_s == 12e9
    assert link.provenance is Provenance.ASSUMED
    assert graph.link("h/mlx5_0->core switch").provenance is Provenance.DISCOVERED


def test_a_cloud_images_file_has_no_ranks() -> None:
    found = parse(text("topo_cloud_image_ndv4.xml"), source="ndv4.xml", host="h")
    graph = merge(found)
    assert graph.world_size == 4
    # By bus id, 0001: first, although the file begins with 0003:.
    assert neighbours(graph, "h/rank0") == {"h/pci ffff:ff:02.0"}
    assert neighbours(graph, "h/rank2") == {"h/pci ffff:ff:01.0"}
    assert graph.link("h/nic 0101:00:00.0->core switch").provenance is Provenance.ASSUMED
    assert "ndv4.xml:1: no ranks; GPUs are numbered by bus id" in found.notes


def test_c2c_and_pcie() -> None:
    graph = graph_of("topo_gb10.xml")
    # 8 links of 43.125 GB/s beside PCIe 1 x16.
    assert GBps(graph, "h/rank0->h/numa-1") == pytest.approx(345 + 3)


def test_ranks_can_be_numbered_anew() -> None:
    found = parse(text("topo_vm_h200.xml"), source="x", host="b", first_rank=8)
    assert found.ranks == (8, 9)
    assert {node.name for node in found.nodes if node.rank is not None} == {"b/rank8", "b/rank9"}


def test_hosts_of_one_dump_are_told_apart() -> None:
    one = text("topo_vm_h200.xml")
    other = one[one.index("  <cpu") :].replace('"0x2"', '"0x9"')
    other = other.replace('rank="0"', 'rank="2"').replace('rank="1"', 'rank="3"')
    graph = merge(parse(one.replace("</system>", "") + other, source="x", host="h"))
    assert [graph.rank_node(rank) for rank in range(4)] == [
        *("h/rank0", "h/rank1", "h-2/rank2", "h-2/rank3")
    ]


def test_xgmi_of_rccl() -> None:
    found = parse(text("topo_rccl_four_mi300x.xml"), source="x", host="h")
    assert found.notes == ()
    graph = merge(found)
    links = [link for link in graph.links if link.link_class == "xgmi"]
    assert len(links) == 12
    assert {link.cost.bandwidth_bytes_per_s for link in links} == {48e9}
    assert graph.link("h/rank0->h/rank3").cost.alpha_s == pytest.approx(2.1e-6)
    assert graph.link("h/rank0->h/rank3").provenance is Provenance.DISCOVERED
    assert GBps(graph, "h/rank0->h/pci 0000:20:00.0") == 48.0
    assert GBps(graph, "h/mlx5_3->core switch") == 50.0


@pytest.mark.parametrize(
    ("gcn", "each"),
    [
        *(("906", 24.0), ("gfx908", 24.0), ("910", 36.0), ("gfx90a", 36.0), ("940", 48.0)),
        *(("gfx942:sramecc+", 48.0), ("gfx950", 48.0), ("gfx1250", 64.0)),
    ],
)
def test_bandwidth_of_xgmi_follows_the_architecture(gcn: str, each: float) -> None:
    dump = text("topo_rccl_four_mi300x.xml").replace('"gfx942"', f'"{gcn}"')
    found = parse(dump.replace('count="1"', 'count="2"'), source="x", host="h")
    xgmi = {link.cost.bandwidth_bytes_per_s for link in found.links if link.link_class == "xgmi"}
    assert xgmi == {2 * each * 1e9}
    assert found.notes == ()


def test_xgmi_of_an_unknown_architecture_is_said() -> None:
    dump = text("topo_rccl_four_mi300x.xml").replace('"gfx942"', '"21943"')
    [note] = parse(dump, source="x", host="h").notes
    assert note == (
        "x:6: xGMI of a GPU with gcn='21943' is taken as 24 GB/s, as RCCL does (12 times)"
    )


def test_xgmi_to_a_switch_is_one_where_there_are_switches() -> None:
    dump = text("topo_rccl_four_mi300x.xml").replace(
        '00000000:c1:00.0" count="1" tclass="0x120000"', '1" count="2" tclass="0x068000"'
    )
    hidden = parse(dump, source="x", host="h")
    assert hidden.notes == ("x:8: xGMI to a device of class '0x068000' is left out (3 times)",)
    seen = merge(parse(dump.replace("gfx942", "gfx1250"), source="x", host="h"))
    assert GBps(seen, "h/rank2->h/nvswitch") == 128.0


def test_a_link_of_a_gpu_to_itself_is_left_out_with_a_word() -> None:
    found = parse(text("topo_vm_self_nvlink.xml"), source="nc.xml", host="h")
    assert found.notes == (
        "nc.xml:5: NVLink of a GPU to itself is left out, as it leads nowhere (2 times)",
    )
    graph = merge(found)
    assert {link.link_class for link in graph.links} == {"pcie", "sys", "network"}
    assert graph.world_size == 2


def test_far_ends_are_looked_for_on_the_same_host() -> None:
    """Bus ids repeat from host to host: in a dump of several, the last one won."""
    one = text("topo_dgx1v_four_gpus.xml")
    cpus = one[one.index("  <cpu") : one.index("</system>")]
    other = cpus.replace("<cpu ", '<cpu host_hash="0x9" ')
    for rank in range(4):
        other = other.replace(f'rank="{rank}"', f'rank="{rank + 4}"')
    both = one.replace("</system>", other + "</system>")
    graph = merge(parse(both, source="x", host="h"))
    assert GBps(graph, "h/rank0->h/rank3") == GBps(graph, "h-2/rank4->h-2/rank7") == 40.0
    assert "h/rank0->h-2/rank7" not in {link.name for link in graph.links}


def test_what_is_not_known_is_said_once_for_each_kind() -> None:
    dump = text("topo_vm_h200.xml")
    dump = dump.replace("</gpu>", '<ualink target="a" count="9"/></gpu>').replace(
        "</system>", "<rack/></system>"
    )
    notes = parse(dump, source="x", host="h").notes
    assert [note.split(": ", 1)[1] for note in notes] == [
        "<ualink> in <gpu> is not known and left out (2 times)",
        "<rack> in <system> is not known and left out",
    ]
    assert all(note.startswith("x:") and note[2].isdigit() for note in notes)


def test_what_nccl_does_not_use_is_said() -> None:
    dump = text("topo_rccl_four_mi300x.xml")
    first = '<net name="mlx5_0" dev="0" '
    dump = dump.replace(
        first, '<net name="part" speed="400000"/><net name="gin" dev="9" net="0"/>' + first
    )
    dump = dump.replace('<net name="mlx5_1" dev="1" ', '<net name="mlx5_1" ')
    dump = dump.replace(' rank="3"', "")
    notes = parse(dump, source="x", host="h").notes
    assert notes[0] == "x:48: GPU without a rank is left out: not of the job"
    assert notes[1] == "x:13: net that NCCL does not use (no dev, or net=0) is left out (3 times)"
    assert notes[2] == "x:25: NIC without a network is left out"
    assert notes[3] == "x:8: xGMI to a GPU outside the job is left out (3 times)"


def test_links_between_pcie_switches_of_one_chip() -> None:
    dump = text("topo_rccl_four_mi300x.xml").replace(
        '<pci busid="0000:21:00.0"',
        '<pcilink target="0000:40:00.0"/><pcilink target="0000:99:00.0"/><pci busid="0000:21:00.0"',
    )
    found = parse(dump, source="x", host="h")
    assert GBps(merge(found), "h/pci 0000:20:00.0->h/pci 0000:40:00.0") == 5000.0
    assert found.notes == ("x:4: pcilink to a switch that is not in the dump is left out",)


GPU = '<pci busid="0000:01:00.0" class="0x030200" link_speed="8 GT/s" link_width="16">{}</pci>'
BAD = {
    "": "dump.xml: empty; dump it again with NCCL",
    "GPU0 GPU1": "dump.xml:1: not XML: syntax error; is it cut off?",
    '<system>\n<cpu numaid="0">': "dump.xml:2: not XML: no element found; is it cut off?",
    "<graphs/>": "dump.xml:1: the root is <graphs>, not <system>",
    "\n\n<system/>": "dump.xml:3: no GPU in it; dump it from a rank of the job",
    "<system><cpu>" + GPU.format('<gpu rank="no"/>') + "</cpu></system>": (
        "dump.xml:1: rank='no' of <gpu> must be a whole number; dump it again with NCCL"
    ),
    "<system><cpu>" + GPU.format('<gpu rank="99999999"/>') + "</cpu></system>": (
        "dump.xml:1: rank='99999999' of <gpu> must be 0 to 65535; dump it again with NCCL"
    ),
    "<system>\n<cpu>" + GPU.format('<gpu rank="0"/>\n') * 2 + "</cpu></system>": (
        "dump.xml:3: bus id '0000:01:00.0' is there twice"
    ),
    "<system>\n<cpu>"
    + GPU.format('<gpu rank="0"/>\n')
    + GPU.format('<gpu rank="0"/>\n').replace(":01:", ":02:")
    + "</cpu></system>": "dump.xml:3: rank 0 is there twice",
    "<system><cpu>"
    + GPU.format('<gpu rank="0"><nvlink target="a" count="-1"/></gpu>')
    + "</cpu></system>": (
        "dump.xml:1: count='-1' of <nvlink> must be 1 to 1000; dump it again with NCCL"
    ),
    "<system><cpu><pci class='0x03'/></cpu></system>": (
        "dump.xml:1: <pci> has no busid; dump it again with NCCL"
    ),
    '<!DOCTYPE a [<!ENTITY b "c">]>\n<system>&b;</system>': (
        "dump.xml:1: a document type declaration is not allowed; remove the <!DOCTYPE>"
    ),
    '<!DOCTYPE a SYSTEM "file:///etc/passwd"><system/>': (
        "dump.xml:1: a document type declaration is not allowed; remove the <!DOCTYPE>"
    ),
    "<system>" + "<a>" * MAX_DEPTH: f"dump.xml:1: nested more than {MAX_DEPTH} deep",
    " " * (MAX_CHARS + 1): "dump.xml: larger than 16 MiB; no dump of NCCL is",
    "<system>\ud800</system>": "dump.xml: not valid UTF-8; dump it again with NCCL",
}


BUSES = [f"0000:{place:02x}:00.0" for place in range(1, 5)]
TARGETS = st.sampled_from([*BUSES, "0000:99:00.0", "", "FFFFFFF:FF:FF"])
CLASSES = st.sampled_from(["0x030200", "0x120000", "0x068000", "0x068001", ""])
LINKS = st.lists(
    st.tuples(st.sampled_from(["nvlink", "xgmi"]), TARGETS, CLASSES, st.integers(1, 18)),
    max_size=6,
)


@given(st.lists(LINKS, min_size=1, max_size=4), st.booleans())
def test_every_link_comes_out_or_is_said(
    gpus: list[list[tuple[str, str, str, int]]], with_c2c: bool
) -> None:
    """Counted in GB/s: what goes in is drawn, or a note counts its element."""
    devices, elements, taken = [], 0, 0.0
    for rank, links in enumerate(gpus):
        inside = "".join(
            f'<{tag} target="{target}" tclass="{kind}" count="{count}"/>\n'
            for tag, target, kind, count in links
        )
        inside += '<c2c bw="40000" count="2"/>' if with_c2c else ""
        devices.append(
            f'<pci busid="{BUSES[rank]}" class="0x030200" link_speed="8 GT/s" link_width="16">'
            f'<gpu rank="{rank}" sm="80" gcn="gfx942">{inside}</gpu></pci>'
        )
        own = BUSES[: len(gpus)]
        for tag, target, kind, count in links:
            speed = count * (20.0 if tag == "nvlink" else 48.0)
            far = target in own and target != BUSES[rank]
            is_gpu = target in own or kind[:4] in ("0x03", "0x12")
            switch = not is_gpu and kind != "0x068001" and tag == "nvlink"
            if far:
                taken += speed
            elif not is_gpu and (kind == "0x068001" or switch):
                taken += 2 * speed
            elements += not far and (is_gpu or not (kind == "0x068001" or switch))
            elements += switch and not kind
    bridge = '<pci busid="0000:f0:00.0" class="0x060400">{}</pci>'
    dump = f"<system><cpu numaid='0'>{bridge.format(''.join(devices))}</cpu></system>"
    found = parse(dump, source="x", host="h")
    drawn = sum(
        link.cost.bandwidth_bytes_per_s
        for link in found.links
        if link.link_class in ("nvlink", "xgmi", "c2c")
    )
    taken += 2 * 80.0 * len(gpus) * with_c2c
    assert drawn / 1e9 == pytest.approx(taken)
    said = [re.search(r"\((\d+) times\)", note) for note in found.notes]
    assert sum(int(match[1]) if match else 1 for match in said) == elements
    assert all(link.src != link.dst for link in found.links)


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
def test_complaints_name_the_line(bad: str) -> None:
    with pytest.raises(GraphError) as caught:
        parse(bad, source="dump.xml", host="h")
    assert str(caught.value).startswith(BAD[bad])
    assert "\n" not in str(caught.value)


def test_the_text_cannot_choose_another_encoding() -> None:
    claimed = text("topo_vm_h200.xml").replace('encoding="UTF-8"', 'encoding="UTF-16"')
    assert parse(claimed, source="x", host="h") == parse(
        text("topo_vm_h200.xml"), source="x", host="h"
    )
