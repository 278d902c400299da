"""Connections to endpoints: requests out, answers in."""
