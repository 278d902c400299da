#!/usr/bin/env bash
# The main job: 4 ranks on a declared graph of two racks whose ranks are interleaved. The
# coordinator sees that the ring in rank order crosses the uplinks more often than it must,
# and moves the running job to a better order. The links are declared, not slow: what the
# report calls predicted follows from the declaration, what it calls measured from this machine.
set -euo pipefail
report=${1:-runs/demo}
echo "demo: a character-level transformer, 4 ranks, examples/two_racks.yaml; report in $report"
.venv/bin/trainmesh launch --nproc-per-node 4 --topology examples/two_racks.yaml \
  --report "$report" --progress on examples/chars.py --steps 300
.venv/bin/trainmesh report "$report"
echo "demo: open $report/report.html for the same with pictures"
