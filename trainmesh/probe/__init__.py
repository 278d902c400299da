"""Measured probes between two agents: one connection, a few bytes, a round trip and a rate."""
