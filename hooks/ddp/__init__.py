"""DDP: its modules are found, their buckets timed and sent where the plan says."""
