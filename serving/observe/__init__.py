"""A router's observability: counters that its processes share, logs, traces."""
