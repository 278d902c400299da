"""DDP: finds its modules, times their buckets and sends them as the plan says."""
