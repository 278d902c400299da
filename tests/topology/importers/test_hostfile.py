"""Hostfiles of every launcher: each line counts as its own launcher counts it, or is refused."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.topology.importers.recorded import text
from trainmesh.errors import GraphError
from trainmesh.topology.importers.hostfile import parse


def slots(hostfile: str) -> dict[str, int]:
    return {host: len(ranks) for host, ranks in parse(hostfile, source="h").hosts.items()}


def test_recorded_hostfiles() -> None:
    openmpi = parse(text("hostfile_openmpi.txt"), source="x")
    assert openmpi.hosts == {
        "node1": tuple(range(8)),
        "node2": tuple(range(8, 16)),
        "node4": tuple(range(16, 20)),
    }
    assert openmpi.notes == ("x:5: host 'node3' has no slot and is left out",)
    mpich = parse(text("hostfile_mpich.txt"), source="x")
    assert mpich.hosts == {
        "10.0.0.1": (0, 1),
        "worker-2.cluster.local": (2, 3),
        "worker-3": (4,),
    }
    assert mpich.notes == (
        "x: 1 of 3 hosts have no number of slots and get one rank each (Open MPI starts one for "
        "each core)",
    )


@pytest.mark.parametrize(
    ("line", "host", "count"),
    [
        ("a slots=4 max_slots=8", "a", 4),
        ("a max-slots=8 slots=4", "a", 4),
        ("a max_slots=8", "a", 8),
        ("a slots = 4 max-slots = 8", "a", 4),
        ("a count=3 port=22 username=me", "a", 3),
        ("a Slots=2", "a", 2),
        ("me@a slots=2", "a", 2),
        ("root@192.168.1.7:3", "192.168.1.7", 3),
        ("a:2 binding=user:0,3", "a", 2),
        ("2001:db8::7", "2001:db8::7", 1),
        ("2001:db8::7 slots=8", "2001:db8::7", 8),
        ("me@2001:db8::7 slots=8", "2001:db8::7", 8),
        ("[2001:db8::7]:8", "2001:db8::7", 8),
        ("[::1] slots=2", "::1", 2),
        ("fe80::1%eth0 slots=2", "fe80::1%eth0", 2),
        ("a slots=2\r", "a", 2),
        ("a\tslots=2 // comment", "a", 2),
    ],
)
def test_each_dialect(line: str, host: str, count: int) -> None:
    assert slots(line) == {host: count}


def test_a_host_once_for_each_rank() -> None:
    """PBS and LSF node files, ``srun hostname``, Open MPI."""
    found = parse("a\na\nb\nb\nb\n", source="h")
    assert found.hosts == {"a": (0, 1), "b": (2, 3, 4)}
    assert found.notes == ()
    apart = parse("a\nb\nuser@a\nb", source="h")
    assert apart.hosts == {"a": (0, 1), "b": (2, 3)}
    assert apart.notes == (
        "h:3: the lines of host 'a' are apart; the ranks of a host are numbered together, as Open "
        "MPI and Hydra do",
    )


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("", "h: no host has a slot; write one line 'host slots=N' for each host"),
        ("a slots=8\n\na slots=8", "h:3: host 'a' is there twice; give all its slots in one line"),
        ("a\na slots=8", "h:2: host 'a' is there twice; give all its slots in one line, or one"),
        ("a slots=many", "h:1: slots must be 0 to 65536, not 'many'"),
        ("a slots=-1", "h:1: slots must be 0 to 65536, not '-1'"),
        ("a:99999", "h:1: slots must be 0 to 65536, not '99999'"),
        ("a:", "h:1: slots must be 0 to 65536, not ''"),
        ("a:2 slots=4", "h:1: slots are given twice; write 'node1 slots=8' or 'node1:8'"),
        ("a slots=2 slots=4", "h:1: slots are given twice"),
        ("b slots=8\na lots=8", "h:2: 'lots=8' is not known in a hostfile; write 'node1 slots=8'"),
        ("a slot=8", "h:1: 'slot=8' is not known in a hostfile"),
        ("a slots 8", "h:1: 'slots' is not known in a hostfile"),
        ("a 8", "h:1: '8' is not known in a hostfile"),
        ("hostA 2 hostB 3", "h:1: '2' is not known in a hostfile"),
        ("a b", "h:1: 'b' is not known in a hostfile"),
        ("a,b", "h:1: 'a,b' is no host name"),
        ("a slots=", "h:1: 'slots=' is not known in a hostfile"),
        ("a/b slots=1", "h:1: 'a/b' is no host name; write 'node1 slots=8' or 'node1:8'"),
        ("^a", "h:1: '^a' is no host name"),
        ("+n2", "h:1: '+n2' is no host name"),
        ("rank 0=a slot=1", "h:1: '0=a' is not known in a hostfile"),
        ("node[01-04] slots=8", "h:1: 'node[01-04]' is a node list of Slurm; write one host a"),
        ("2001:db8::7:8:9:a:b:c:d", "h:1: slots must be 0 to 65536, not 'db8::7:8:9:a:b:c:d'"),
        ("a slots=60000\nb slots=60000", "h: more than the 65536 ranks allowed"),
    ],
)
def test_what_is_refused(bad: str, says: str) -> None:
    with pytest.raises(GraphError) as caught:
        parse(bad, source="h")
    assert str(caught.value).startswith(says)


HOSTS = st.sampled_from(["a", "b-1", "c.d", "10.0.0.1", "2001:db8::7"])
USERS = st.sampled_from(["", "me@", "root@"])


@given(
    st.dictionaries(HOSTS, st.tuples(st.booleans(), st.integers(0, 5)), min_size=1),
    st.data(),
)
def test_as_many_ranks_come_out_as_slots_went_in(
    wanted: dict[str, tuple[bool, int]], data: st.DataObject
) -> None:
    """However each host's slots are written; one with none is said."""
    lines: list[str] = []
    for host, (one_line, count) in wanted.items():
        user = data.draw(USERS)
        if one_line or not count:
            ways = [f"{user}{host} slots={count}", f"{user}{host} max_slots=9 slots={count} "]
            ways.append(f"{user}[{host}]:{count}" if ":" in host else f"{user}{host}:{count}")
            lines.append(data.draw(st.sampled_from(ways)))
        else:
            lines += [f"{user}{host}"] * count
    lines = data.draw(st.permutations(lines))
    counts = Counter({host: count for host, (_, count) in wanted.items()})
    if not counts.total():
        return
    found = parse("\n".join(lines), source="h")
    assert {host: len(ranks) for host, ranks in found.hosts.items()} == dict(+counts)
    assert sorted(rank for ranks in found.hosts.values() for rank in ranks) == [
        *range(counts.total())
    ]
    left_out = sum("has no slot" in note for note in found.notes)
    assert left_out == sum(not count for count in counts.values())
