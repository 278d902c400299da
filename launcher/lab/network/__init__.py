"""The lab's network: namespaces, cables, and the rate, latency and loss of their frames."""
