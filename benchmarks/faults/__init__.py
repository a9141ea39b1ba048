"""Proof of `hetero diagnose`: seeded faults of every stage, and healthy controls."""
