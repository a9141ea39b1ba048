"""Collections for benchmarks: sources named by dotted path, which the product knows nothing of."""
