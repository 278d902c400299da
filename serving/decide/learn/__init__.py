"""Learns from the outcomes of requests: times, tokens, caches, outliers."""
