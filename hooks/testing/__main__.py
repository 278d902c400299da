"""``python -m trainmesh.hooks.testing executor|codec TARGET``: the checks from a shell."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from trainmesh.errors import TrainmeshError
from trainmesh.hooks.testing.checks import STEPS, WORLD_SIZES, check_codec, check_executor

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trainmesh.hooks.testing",
        description="Prove an executor or a codec right on processes joined by gloo.",
    )
    parser.add_argument("kind", choices=("executor", "codec"))
    parser.add_argument(
        "target", help="a registered name, package.module:Class, or path/file.py:Class"
    )
    parser.add_argument("--options", default="", help="of a codec: what follows its name's colon")
    parser.add_argument("--steps", type=int, default=STEPS, help="of a codec")
    parser.add_argument("--world-sizes", type=int, nargs="+", default=WORLD_SIZES)
    args = parser.parse_args(arguments)
    try:
        if args.kind == "executor":
            report = check_executor(args.target, world_sizes=args.world_sizes)
        else:
            report = check_codec(
                args.target, args.options, world_sizes=args.world_sizes, steps=args.steps
            )
    except AssertionError as failure:
        print(f"FAILED  {failure}", file=sys.stderr)
        return 1
    except TrainmeshError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    sizes = ", ".join(map(str, report.world_sizes))
    print(
        f"passed: {args.kind} {report.target} on {sizes} ranks, "
        f"{report.num_results} results compared in {report.seconds:.1f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
