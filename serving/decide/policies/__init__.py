"""Policies: each gives every endpoint a score for a request."""
