"""TFLite with int8 weights and float arithmetic, by litert-quantizer's recipe for weights alone."""

from __future__ import annotations


def int8w(model: bytes) -> bytes:
    """The model with int8 weights per channel, widened to float before use; activations are float.

    Args:
        model: In float32.
    """
    from litert_quantizer import qtyping, quantizer

    work = quantizer.Quantizer(model)
    work.add_weight_only_config(
        regex=".*", operation_name=qtyping.TFLOperationName.ALL_SUPPORTED, num_bits=8
    )
    return bytes(work.quantize(enable_progress_report=False).quantized_model)
