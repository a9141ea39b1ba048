"""Proof of the verdict: error rates by simulation, faults on real vectors, the page."""
