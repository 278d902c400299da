"""What a plan is: its messages, its shape, and when compressing its buckets pays."""
