"""The device harness under fault, and what it costs."""

import sys
from pathlib import Path

# The doubles of servers and runtimes are the tests' own.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
