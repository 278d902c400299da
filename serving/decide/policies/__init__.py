"""Policies: which endpoint a request goes to, as a score for each."""
