"""TFLite with int8 weights and float arithmetic, by litert-quantizer's recipe for weights alone."""

from __future__ import annotations

import re

from hetero.export._tflite_quantize import small


def int8w(model: bytes) -> bytes:
    """The model with int8 weights per channel, widened to float before use; activations are float.

    Operators with few weights, such as the first convolution, keep theirs in float.

    Args:
        model: In float32.
    """
    from litert_quantizer import qtyping, quantizer

    everything = qtyping.TFLOperationName.ALL_SUPPORTED
    work = quantizer.Quantizer(model)
    work.add_weight_only_config(regex=".*", operation_name=everything, num_bits=8)
    for name in small(model):
        work.update_quantization_recipe(
            regex=f"^{re.escape(name)};?$", operation_name=everything, algorithm_key="no_quantize"
        )
    return bytes(work.quantize(enable_progress_report=False).quantized_model)
