"""The stages end to end: what the command line calls, one module a stage.

These modules, the demo and the command line sit on top: they alone join formats and devices to the
core, and import them when asked.
"""
