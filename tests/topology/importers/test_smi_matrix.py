"""Matrices of nvidia-smi topo -m as people paste them: every device and cell comes, or it is said
what is missing."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.topology.importers.recorded import DATA, text
from trainmesh.errors import GraphError
from trainmesh.topology.importers.smi_matrix import Matrix, read_matrix

RECORDED = sorted(path.name for path in DATA.glob("smi_*.txt"))
NVSWITCH = "NV18"


def written(
    num_gpus: int, num_nics: int, tails: list[tuple[str, str, str]], *, aligned: bool = True
) -> str:
    """As nvidia-smi writes it; ``tails`` are CPU Affinity, NUMA Affinity and GPU NUMA ID."""
    names = [f"GPU{i}" for i in range(num_gpus)] + [f"NIC{i}" for i in range(num_nics)]
    lines = ["\t" + "\t".join([*names, "CPU Affinity", "NUMA Affinity", "GPU NUMA ID"])]
    for place, name in enumerate(names):
        cells = [
            " X " if other == place else NVSWITCH if max(place, other) < num_gpus else "SYS"
            for other in range(len(names))
        ]
        tail = ""
        if place < num_gpus:
            cpus, numa, own = tails[place]
            # Old drivers fill up to the next column, new ones write a tab for each.
            wide = "\t" * max(2 - len(cpus) // 8, 1) if aligned else "\t"
            tail = f"\t{cpus}{wide}{numa}\t\t{own}".rstrip("\t")
        lines.append("\t".join([name, *cells]) + tail)
    legend = "".join(f"  NIC{i}: mlx5_{i}\n" for i in range(num_nics))
    return "\n".join(lines) + "\n\nLegend:\n\n  X    = Self\n\nNIC Legend:\n\n" + legend


def wrapped(line: str, width: int, *, trimmed: bool = False) -> str:
    """A line as a terminal of ``width`` columns shows it; tabs keep their meaning."""
    parts, at = [""], 0
    for char in line:
        step = 8 - at % 8 if char == "\t" else 1
        if at + step > width:
            parts.append("")
            at, step = 0, 8 if char == "\t" else 1
        parts[-1] += char
        at += step
    return "\n".join(part.rstrip() if trimmed else part for part in parts)


def same(a: Matrix, b: Matrix) -> bool:
    return (a.devices, a.cells, a.names) == (b.devices, b.cells, b.names)


@pytest.mark.parametrize("width", [72, 80, 100, 120, 132])
@pytest.mark.parametrize("trimmed", [False, True])
@pytest.mark.parametrize("name", RECORDED)
def test_wrapped_lines_are_joined(name: str, width: int, trimmed: bool) -> None:
    whole = read_matrix(text(name), source="m")
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text(name)).split("\n")
    for each in (lines, [line.expandtabs(8) for line in lines]):
        folded = "\n".join(wrapped(line, width, trimmed=trimmed) for line in each)
        found = read_matrix(folded, source="m")
        assert same(found, whole)
        for row, numa in found.numa.items():
            assert numa in ("", whole.numa[row])


def test_a_matrix_of_28_devices_at_80_columns() -> None:
    tails = [("0-31", str(gpu // 4), "N/A") for gpu in range(8)]
    page = written(8, 20, tails)
    folded = "\n".join(wrapped(line, 80) for line in page.split("\n"))
    assert max(map(len, folded.expandtabs(8).split("\n"))) <= 80
    assert len(read_matrix(folded, source="m").devices) == 28
    assert same(read_matrix(folded, source="m"), read_matrix(page, source="m"))


@pytest.mark.parametrize("aligned", [False, True])
def test_a_blank_affinity_shifts_nothing(aligned: bool) -> None:
    tails = [("0-31", "0", "N/A"), ("", "0", "N/A"), ("32-63", "1", "N/A"), ("", "1", "N/A")]
    found = read_matrix(written(4, 2, tails, aligned=aligned), source="m")
    assert [found.numa[f"GPU{gpu}"] for gpu in range(4)] == ["0", "0", "1", "1"]
    assert found.notes == ()
    # On Grace the last column is a number as well.
    grace = [("", "0", "2"), ("", "0", "10"), ("", "1", "18"), ("", "1", "26")]
    found = read_matrix(written(4, 0, grace, aligned=aligned), source="m")
    assert [found.numa[f"GPU{gpu}"] for gpu in range(4)] == ["0", "0", "1", "1"]
    spaces = read_matrix(written(4, 0, grace).expandtabs(8), source="m")
    assert [spaces.numa[f"GPU{gpu}"] for gpu in range(4)] == ["0", "0", "1", "1"]


def test_what_can_not_be_told_is_said() -> None:
    tails = [("0-31", "0", "2"), ("", "1", "10")]
    page = re.sub(r"[\t ]+", " ", written(2, 0, tails))
    found = read_matrix(page, source="m")
    assert found.numa == {"GPU0": "0", "GPU1": ""}
    assert found.notes == (
        "m:3: which of CPU Affinity, NUMA Affinity, GPU NUMA ID is blank can't be told; the NUMA "
        "nodes of such rows are not used",
    )
    # Two rows alike in their places: without the columns below each other that means nothing.
    alike = re.sub(r"[\t ]+", " ", written(2, 0, [("0-31", "0", "2"), ("0-31", "", "10")]))
    assert read_matrix(alike, source="m").numa == {"GPU0": "0", "GPU1": ""}
    of_two_nodes = read_matrix(written(1, 0, [("0-7", "0-1", "N/A")]), source="m")
    assert of_two_nodes.numa == {"GPU0": ""}


@given(st.data())
def test_numa_nodes_are_right_or_not_used(data: st.DataObject) -> None:
    num_gpus = data.draw(st.integers(1, 8))
    cpus = st.sampled_from(["", "0-7", "0-63", "0-55,112-167", "0-15,64-79,128-143,192-207"])
    tail = st.tuples(cpus, st.sampled_from(["", "0", "1", "10"]), st.sampled_from(["N/A", "", "2"]))
    tails = data.draw(st.lists(tail, min_size=num_gpus, max_size=num_gpus))
    aligned = data.draw(st.booleans())
    page = written(num_gpus, data.draw(st.integers(0, 12)), tails, aligned=aligned)
    if data.draw(st.booleans()):
        page = page.replace("\n", "\r\n")
    if data.draw(st.booleans()):
        page = "\x1b]0;title\x07\x1b[4m" + page.replace("\n", "\x1b(B\x1b[m\n", 1)
    if data.draw(st.booleans()):
        page = f"root@host:~# nvidia-smi topo -m\n{page}\nroot@host:~# \n"
    found = read_matrix(page, source="m")
    assert sum(name.startswith("GPU") for name in found.devices) == num_gpus
    for gpu, (_, numa, _) in enumerate(tails):
        blanks = tails[gpu].count("")
        assert found.numa[f"GPU{gpu}"] in ({numa} if not blanks else {numa, ""})


SMALL = written(2, 2, [("0-7", "0", "N/A")] * 2)
LINES = SMALL.split("\n")
ROCM = (
    "============================ ROCm System Management Interface ============================\n"
    "================================ Weight between two GPUs =================================\n"
    "       GPU0         GPU1         \nGPU0   0            15           \n"
)
FEWER = written(2, 1, [("0-7", "0", "N/A")] * 2)
CUTS = {
    "m:2: this is of rocm-smi or amd-smi; give nccl-topo what RCCL writes": "\n" + ROCM,
    "m:15: a second matrix begins here; give a FILE for each host": SMALL + SMALL,
    "m:5: row NIC1 has no column; is the line of columns cut?": SMALL.replace(
        "\tNIC1\t", "\t", 1
    ).replace("  NIC1: mlx5_1\n", ""),
    "m:1: NIC1 of the legend has no column; is the line cut?": FEWER + "  NIC1: mlx5_1\n",
    "m:2: row GPU0: more cells than columns; is the line of columns cut?": FEWER.replace(
        "NV18\tSYS", "NV18\tSYS\tSYS", 1
    ),
    "m:1: no row 'NIC1'; give it as nvidia-smi wrote it": SMALL.replace(LINES[4] + "\n", ""),
    "m:4: row GPU1 is there twice": SMALL.replace(LINES[2], LINES[2] + "\n" + LINES[2]),
    "m:3: row GPU1: its X is not in its own column": SMALL.replace(
        "NV18\t X \tSYS", " X \tNV18\tSYS"
    ),
    "m:3: row GPU1: 2 cells in 4 columns": SMALL.replace(
        LINES[2], "\t".join(LINES[2].split("\t")[:3])
    ),
    "m:3: 'and so on' is no part of the matrix": SMALL.replace(LINES[2], "and so on"),
    "m:1: no row 'GPU0'": LINES[0] + "\n\n",
    "m:3: GPU0 to GPU1 is NV18, but GPU1 to GPU0 is SYS; give it as nvidia-smi": SMALL.replace(
        "GPU1\tNV18", "GPU1\tSYS"
    ),
    "m:5: NIC0 to NIC1 is SYS, but NIC1 to NIC0 is PIX; give it as": SMALL.replace(
        "NIC1\tSYS\tSYS\tSYS", "NIC1\tSYS\tSYS\tPIX"
    ),
    "m:1: 'rdma' is no GPU or NIC": SMALL.replace("\tNIC1\t", "\trdma\t", 1),
    "m: no line of columns GPU0 GPU1": "GPU0\tX\tOK\nGPU1\tOK\tX\n",
}


@pytest.mark.parametrize("says", CUTS)
def test_what_is_cut_or_foreign_is_refused(says: str) -> None:
    with pytest.raises(GraphError) as caught:
        read_matrix(CUTS[says], source="m")
    assert str(caught.value).startswith(says)


def test_a_pair_with_two_numbers_of_nvlinks_is_said() -> None:
    """A GPU whose links are down in part may well be shown so; SOC is SYS by another name."""
    tails = [("0-7", "0", "N/A")] * 3
    page = written(3, 1, tails).replace("GPU2\tNV18\tNV18", "GPU2\tNV16\tNV16")
    assert read_matrix(page.replace("NIC0\tSYS", "NIC0\tSOC"), source="m").notes == (
        "m:4: GPU0 to GPU2 is NV18, but GPU2 to GPU0 is NV16 (so for 2 pairs); each way has its "
        "own number of NVLinks in the graph",
    )
    assert read_matrix(page.replace("NV16", "N/A"), source="m").notes == ()


@pytest.mark.parametrize("cut", ["", "\t0-7"])
def test_a_numa_node_that_is_cut_off_is_said(cut: str) -> None:
    page = written(2, 0, [("0-7", "0", "N/A")] * 2)
    end = page.index(" X ", page.index("GPU1\t", 10)) + 3
    found = read_matrix(page[:end] + cut, source="m")
    assert found.numa == {"GPU0": "0", "GPU1": ""}
    assert found.notes == (
        "m:3: row GPU1 has no NUMA Affinity, rows of other GPUs have one; its NUMA node is not "
        "used; is the line cut?",
    )
    # Where no GPU has one, as in many virtual machines, there is nothing to say.
    assert read_matrix(written(2, 1, [("", "", "")] * 2), source="m").notes == ()


@given(st.data())
def test_no_device_is_lost_without_a_word(data: st.DataObject) -> None:
    """Any part of the page is missing: all devices of what is left come, or it is refused."""
    tails = [("0-7", "0", "N/A")] * 3
    page = written(3, 3, tails)
    first = data.draw(st.integers(0, len(page)))
    last = data.draw(st.integers(first, min(len(page), first + 40)))
    left = page[:first] + page[last:]
    if data.draw(st.booleans()):
        left = "\n".join(wrapped(line, 40) for line in left.split("\n"))
    try:
        found = read_matrix(left, source="m")
    except GraphError:
        return
    named = set(re.findall(r"(?:GPU|NIC)[0-9](?=\s+(?:X|NV|SYS))", left.replace("\n", " ")))
    assert named <= set(found.devices)
    assert set(found.cells) == {(a, b) for a in found.devices for b in found.devices}
