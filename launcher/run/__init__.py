"""One launch from start to end: its settings, its processes, its signals, its outcome."""
