"""``python -m trainmesh`` is ``trainmesh``."""

import sys

from trainmesh.launcher.cli import main

if __name__ == "__main__":
    sys.exit(main())
