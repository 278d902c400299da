"""Rank 1 fails: with --record by an exception that torchrun's error file tells about."""

import os
import sys
import time

from torch.distributed.elastic.multiprocessing.errors import record


@record
def main() -> None:
    if os.environ["RANK"] != "1":
        time.sleep(60)
    if "--record" in sys.argv:
        raise ValueError("rank 1 has a reason")
    sys.exit(5)


if __name__ == "__main__":
    main()
