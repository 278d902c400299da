#!/usr/bin/env bash
# The demo, which shows what trainmesh is worth where this machine can emulate a slow network, and
# only that it works where not.
set -euo pipefail
report=${1:-runs/demo}
echo "demo: trying out whether this machine can emulate a network"
if why=$(.venv/bin/trainmesh lab check 2>&1 >/dev/null); then
  exec .venv/bin/python -m scripts.demo "$report"
fi
echo "demo: no gain can be shown here, as a slow network can't be emulated (${why#trainmesh: error: no lab here: })"
# 4 ranks on a declared graph of two racks whose ranks are interleaved. The coordinator sees that
# the ring in rank order crosses the uplinks more often than it must, and moves the running job to a
# better order. The links are declared, not slow: what the report calls predicted follows from the
# declaration, what it calls measured from this machine.
echo "demo: so links are only declared slow: 4 ranks on examples/two_racks.yaml move to another plan in mid-run, and are about as fast as before"
.venv/bin/trainmesh launch --nproc-per-node 4 --topology examples/two_racks.yaml \
  --report "$report" --progress on examples/chars.py --steps 300
.venv/bin/trainmesh report "$report"
echo "demo: open $report/report.html for the same with pictures"
