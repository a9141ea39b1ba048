"""Why a device's vectors differ: the stage that moved them, named with evidence or not at all.

Three ways are used together. The canary pictures are built so that each is moved by few stages, so
that which of them moved says much. Where the device's intermediate results are known, they take the
place of the reference's one stage at a time, and what is lost adds up. And wrong versions of every
step are tried until one gives what the device gave.

    found = diagnose(pictures, spec, engine, trace, scorer)

Pure measuring: nothing here knows a file format or a device.
"""

from __future__ import annotations

from hetero.diagnose._diagnosis import (
    EXIT_CODES,
    Diagnosis,
    Fault,
    Layer,
    Loss,
    Suspect,
    Verdict,
)
from hetero.diagnose._file import FileCheck, refused
from hetero.diagnose._judge import diagnose
from hetero.diagnose._library import Library, library
from hetero.diagnose._pipeline import STAGES, Engine, Pipeline, reference
from hetero.diagnose.canary import Canary, canaries, write
from hetero.diagnose.trace import Trace, load

__all__ = [
    "EXIT_CODES",
    "STAGES",
    "Canary",
    "Diagnosis",
    "Engine",
    "Fault",
    "FileCheck",
    "Layer",
    "Library",
    "Loss",
    "Pipeline",
    "Suspect",
    "Trace",
    "Verdict",
    "canaries",
    "diagnose",
    "library",
    "load",
    "reference",
    "refused",
    "write",
]
