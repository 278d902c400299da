"""What happens to a step's buckets on their way: held back, compressed, summed."""
