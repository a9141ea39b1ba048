"""The steps of a Core ML export: the net made ready, converted, compressed, written.

Imports coremltools and PyTorch, so it is imported in the child process of an export only.
"""

from __future__ import annotations

import json
import logging
import shutil
import uuid
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_linear_bn_eval

from hetero._files import sha256, storage_errors, write_json
from hetero.errors import ExportError
from hetero.export import _seal
from hetero.export._job import LEAST_WEIGHTS, ConvertJob, Facts
from hetero.export._mil_store import WEIGHTS_KEY, line, message, model_file
from hetero.models import FromPixels

#: The operations that F.normalize and the linear layer before it become.
_TAIL = frozenset({"linear", "reduce_l2_norm", "maximum", "tile", "real_div"})


class _Planes(nn.Module):
    """A net that takes the planes of an image, 0..255."""

    scale: Tensor
    middle: Tensor

    def __init__(self, whole: FromPixels) -> None:
        super().__init__()
        self.net = whole.net
        scale = whole.scale[:, :, :1].permute(0, 3, 1, 2).contiguous()
        shift = whole.shift[:, :, :1].permute(0, 3, 1, 2).contiguous()
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("middle", -shift / scale, persistent=False)

    def forward(self, planes: Tensor) -> Tensor:
        """Unit rows."""
        # The mean goes first: float16 has every pixel value, but a scaled one is rounded, and
        # the difference of two rounded numbers is mostly rounding.
        rows: Tensor = self.net((planes - self.middle) * self.scale)
        return rows


def folded(net: nn.Module) -> nn.Module:
    """The net itself, batch norms folded into the linear layers before them, in place."""
    # Left to the converter, a batch norm behind a linear layer becomes three operations, and
    # float16 ones in the middle of the float32 tail.
    for part in net.modules():
        if isinstance(part, nn.Sequential):
            for i in range(len(part) - 1):
                first, second = part[i], part[i + 1]
                if isinstance(first, nn.Linear) and isinstance(second, nn.BatchNorm1d):
                    part[i], part[i + 1] = fuse_linear_bn_eval(first, second), nn.Identity()
    return net


def of_planes(net: nn.Module) -> nn.Module:
    """The net as Core ML shall see it, NCHW in: pixels of an image are NCHW floats 0..255."""
    return _Planes(net).eval() if isinstance(net, FromPixels) else net


def converted(net: nn.Module, job: ConvertJob) -> tuple[Any, Facts]:
    """A net as coremltools' model, and by which way it came about.

    The way by torch.export comes first. Where it is refused, the net is traced, and the facts say
    so under "fallback".

    Raises:
        ExportError: Both were refused.
    """
    shape = (job.batch, 3, job.size_px, job.size_px)
    example = torch.zeros(shape)
    if job.bake:
        entry = ct.ImageType(name="pixels", shape=shape, color_layout=ct.colorlayout.RGB)
    else:
        entry = ct.TensorType(name="images", shape=shape, dtype=np.float32)
    precision = ct.precision.FLOAT32
    if job.precision != "fp32":
        precision = ct.transform.FP16ComputePrecision(op_selector=lambda op: not _in_tail(op))

    # This one turns a·x + b into a batch norm whose epsilon, 1e-5, it does not take back.
    passes = ct.PassPipeline.DEFAULT
    passes.remove_passes({"common::fuse_elementwise_to_batchnorm"})

    def run(form: Any) -> Any:
        return ct.convert(
            form,
            inputs=[entry],
            # Without a type, a float16 program's input and output would be float16.
            outputs=[ct.TensorType(name=job.output_name, dtype=np.float32)],
            convert_to="mlprogram",
            compute_precision=precision,
            minimum_deployment_target=ct.target.iOS17,
            pass_pipeline=passes,
            skip_model_load=True,
        )

    try:
        with torch.no_grad():
            # Without decomposition coremltools refuses the training dialect.
            form = torch.export.export(net, (example,)).run_decompositions({})
        return run(form), {"exporter": "torch.export"}
    except Exception as error:  # whatever it is, the other way is tried and the reason kept
        logging.getLogger(__name__).exception("the way by torch.export was refused")
        reason = f"{type(error).__name__}: {line(error)}"
    try:
        with torch.no_grad():
            model = run(torch.jit.trace(net, example))  # type: ignore[no-untyped-call]
    except Exception as error:  # the two reasons together say what is wrong with the net
        raise ExportError(
            f"coremltools refuses the net by way of torch.export ({reason}) and by way of tracing "
            f"({type(error).__name__}: {line(error)}); use another format or change the backbone"
        ) from error
    how = f"traced through TorchScript, as the way by torch.export was refused: {reason}"
    return model, {"exporter": "torchscript", "fallback": how}


def _in_tail(op: Any) -> bool:
    """Whether an operation belongs to the end of the net that stays float32 in float16.

    The guard of the normalisation, 1e-12, is 0 in float16, and the sum of squares may overflow.
    """
    if op.op_type not in _TAIL:
        return False
    after = [child for out in op.outputs for child in out.child_ops]
    return all(child.op_type == "cast" or _in_tail(child) for child in after)


def int8(model: Any) -> Any:
    """The model with its larger weights as int8, one scale per output channel."""
    from coremltools.optimize import coreml as compress

    config = compress.OpLinearQuantizerConfig(
        mode="linear_symmetric",
        dtype="int8",
        granularity="per_channel",
        weight_threshold=LEAST_WEIGHTS,
    )
    return compress.linear_quantize_weights(
        model, compress.OptimizationConfig(global_config=config)
    )


def palette(model: Any, bits: int) -> Any:
    """The model with its larger weights as numbers of 2**bits values, k-means per layer.

    Values are clustered in one dimension, exactly, after rounding to float16, by the library that
    coremltools brings: the same on every machine, and in seconds where iterating takes minutes.
    """
    from coremltools.models.neural_network.quantization_utils import (
        _get_kmeans_lookup_table_and_weight as clustered,
    )
    from coremltools.optimize import coreml as compress

    def table(weight: np.ndarray[Any, Any]) -> tuple[Any, Any]:
        # One fixed number of bits: the table has to be full also where fewer values occur.
        values, which = clustered(bits, weight.astype(np.float16), force_kmeans1d=True)
        return values.astype(weight.dtype), which.astype(np.uint8)

    config = compress.OpPalettizerConfig(
        mode="custom", lut_function=table, weight_threshold=LEAST_WEIGHTS
    )
    return compress.palettize_weights(model, compress.OptimizationConfig(global_config=config))


def save(model: Any, job: ConvertJob) -> None:
    """Writes the package, with our texts, and with equal bytes for equal models."""
    with storage_errors(job.output):
        shutil.rmtree(job.output, ignore_errors=True)
        model.save(str(job.output))
        spec, file = message(job.output), model_file(job.output)
        about = spec.description.metadata
        what = job.metadata.get("hetero.role", "")
        logits = what == "classifier"
        about.shortDescription = (
            f"Linearised image classifier: {job.dim} numbers, one a class"
            if job.adaptation is not None
            else f"Image classifier: the logits of {job.dim} classes"
            if logits
            else f"Image embedding ({what} model): {job.dim} numbers, a row of length 1"
        )
        # The date would make equal models differ.
        about.userDefined.pop("com.github.apple.coremltools.conversion_date", None)
        weights = file.parent / "weights" / "weight.bin"
        about.userDefined[WEIGHTS_KEY] = sha256(weights)
        for key, text in job.metadata.items():
            about.userDefined[key] = text
        side = job.size_px
        entry, out = spec.description.input[0], spec.description.output[0]
        entry.shortDescription = (
            f"RGB image of {side}x{side} pixels; normalised inside"
            if job.bake
            else f"RGB as float32 (n, 3, {side}, {side}), normalised outside"
        )
        kind = "logits" if logits else job.output_name
        out.shortDescription = f"The {kind}, float32 (n, {job.dim})"
        about.userDefined[_seal.KEY] = _seal.BLANK
        file.write_bytes(_seal.seal(spec.SerializeToString(deterministic=True)))
        # A map for ExecuTorch's debugger, of no use to anybody else.
        (job.output / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)
        _rename_items(job.output / "Manifest.json")


def _rename_items(path: Path) -> None:
    """Gives a package's items identifiers that follow from their paths instead of random ones."""
    contents = json.loads(path.read_bytes())
    items = contents["itemInfoEntries"]
    ids = {k: str(uuid.uuid5(uuid.NAMESPACE_URL, items[k]["path"])) for k in items}
    contents["itemInfoEntries"] = {
        ids[k]: items[k] for k in sorted(items, key=lambda k: str(items[k]["path"]))
    }
    contents["rootModelIdentifier"] = ids[contents["rootModelIdentifier"]]
    write_json(path, contents)
