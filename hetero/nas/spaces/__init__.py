"""Spaces of architectures, one file each: ``space(options) -> SearchSpace``."""
