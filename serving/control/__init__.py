"""Builds what the workers are given, from probes, telemetry, the link graph, verdicts and other
routers."""
