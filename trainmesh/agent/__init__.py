"""The node's agent, and the rank's way to it."""
