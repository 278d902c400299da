"""Signals that endpoints and their GPUs give when they are asked."""
