"""One launch from begin to end: its settings, its processes, its signals, how it ended."""
