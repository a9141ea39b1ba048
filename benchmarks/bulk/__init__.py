"""Bulk embedding: its speed beside the model alone, its growth, and what kills it."""
