"""TFLite (LiteRT) files: converted by litert-torch, run by LiteRT.

A file takes a fixed number of pictures, one unless asked for more: this converter has no dynamic
batch that works. Preprocessing, if baked in, and the L2 tail are float in every precision.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import numpy as np
from jaxtyping import Float32

from hetero._files import canonical_json, write_atomically
from hetero.errors import BundleError, ConfigError, require
from hetero.export._job import ConvertJob, Facts, in_batches

EXTRA = "tflite"
SUFFIX = ".tflite"
DYNAMIC_BATCH = False
RUNS_HERE = ""

#: Name of the metadata buffer that holds our texts as JSON.
METADATA = b"hetero"

_IDENTIFIER = b"TFL3"


def convert(job: ConvertJob) -> Facts:
    """Facts about how job.output was made.

    Raises:
        MissingExtraError: The extra is not installed.
        ExportError: No int8 file gives usable vectors.
    """
    require("litert_torch", EXTRA)
    require("litert_quantizer", EXTRA)
    import importlib.metadata

    import litert_torch
    import torch

    from hetero.export import _quantize

    hard_swish = "clamped" if job.precision == "int8" else "fused"
    net = _quantize.net_of(job, hard_swish)
    example = torch.zeros(job.input_shape, dtype=torch.uint8 if job.bake else torch.float32)
    model = litert_torch.convert(net, (example,)).model_content()
    facts: Facts = {
        f"{name}_version": importlib.metadata.version(name)
        for name in ("torch", "litert-torch", "litert-quantizer", "ai-edge-litert")
    }
    if job.precision == "fp16":
        model = _half(model)
    elif job.precision == "int8":
        calibration = _quantize.calibration_of(job, net)
        candidates = {}
        for name, ranges in _ranges(model, calibration.fit, job).items():
            candidates[name] = job.output.with_name(f"{name}{SUFFIX}")
            candidates[name].write_bytes(_int8(model, ranges))
        best, means = _quantize.best_of(candidates, load, calibration)
        model = candidates[best].read_bytes()
        facts["ranges"] = best
        facts |= {f"cosine_held_out_{name}": mean for name, mean in means.items()}
    write_atomically(job.output, _finished(model, job))
    return facts
