"""Wait until all control processes work, then say whose modules these are."""

import importlib
import os
import sys
import time

STATUS = os.path.join(os.environ["TRAINMESH_RUN_DIR"], "status.json")
deadline_s = time.monotonic() + 60
while not os.path.exists(STATUS) and time.monotonic() < deadline_s:
    time.sleep(0.05)
own = [name for name in sys.argv[1:] if getattr(importlib.import_module(name), "OWN", False)]
print(os.path.exists(STATUS), *own)
