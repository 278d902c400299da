"""What a router says of itself: counters that its processes share, logs, traces."""
