"""What the workers are told: probes, telemetry, the link graph, verdicts and other routers."""
