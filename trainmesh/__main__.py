"""``python -m trainmesh`` is ``trainmesh``."""

from trainmesh.launcher.entry import main

if __name__ == "__main__":
    main()
