"""What endpoints and their GPUs say of themselves, when they are asked."""
