"""What a launch tells its workers and its control plane, and who is in it."""

from __future__ import annotations

import os
import re
import secrets
import socket
from argparse import ArgumentTypeError, Namespace
from dataclasses import dataclass
from pathlib import Path

from trainmesh.launcher.service import PythonProcess, Process, Service
from trainmesh.rundir import ENV_RUN_DIR, RunDir, job_slug
...
