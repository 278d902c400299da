"""What attempts beyond the first may cost."""
