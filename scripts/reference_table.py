"""Print the reference systems as a Markdown table; docs/planning.md holds it.

python scripts/reference_table.py
"""

import tomllib
from fractions import Fraction
from pathlib import Path

SYSTEMS = Path(__file__).parent.parent / "tests" / "topology" / "systems.toml"


def rows() -> list[str]:
    lines = [
        "| system | all-gather | all-reduce | limited by | best single ring |",
        "|---|---|---|---|---|",
    ]
    for system in tomllib.loads(SYSTEMS.read_text())["system"]:
        ring = _number(system["ring"]) if "ring" in system else ""
        cells = (
            system["name"],
            f"{_number(system['allgather'])} ({system['sending']} ranks sending)",
            _number(system["allreduce"]),
            system["kind"],
            ring,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _number(text: str) -> str:
    return f"{float(Fraction(text)):.4f}".rstrip("0").rstrip(".")


if __name__ == "__main__":
    print("\n".join(rows()))
