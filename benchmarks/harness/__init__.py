"""The device harness under fault, and what it costs."""
