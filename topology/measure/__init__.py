"""From measurements to links: what probes and buckets say of a link graph."""
