"""What is learned from how requests went: times, tokens, caches, outliers."""
