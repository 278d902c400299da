"""Executors carry a plan out, bucket by bucket: natively, by rings, by trees."""
