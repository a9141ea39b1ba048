"""What is asked of a device: the job of a run, and the model and rows as they travel."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from hetero._files import sha256, write_atomically
from hetero.devices import _protocol as protocol
from hetero.devices._types import Device, Plan
from hetero.errors import BundleError, ConfigError

#: How the one file ends that a package is sent as.
PACKED = ".mlpackage.zip"
PLAN_FIELDS = ("warmup_runs", "warmup_s", "min_runs", "min_s", "max_s", "beat_s")


def packed(package: Path, folder: Path) -> Path:
    """A package, which is a folder, as one file in `folder`: equal packages give equal bytes.

    Raises:
        BundleError: It cannot be read.
        StorageError: `folder` cannot be written.
    """
    data = io.BytesIO()
    try:
        with zipfile.ZipFile(data, "w", zipfile.ZIP_STORED) as file:
            for path in sorted(x for x in package.rglob("*") if x.is_file()):
                # ZipInfo's own date: what is sent is named by its content, not by when.
                file.writestr(
                    zipfile.ZipInfo(path.relative_to(package).as_posix()), path.read_bytes()
                )
    except OSError as error:
        raise BundleError(f"{package}: cannot be read ({error.strerror})") from error
    whole = data.getvalue()
    target = folder / "store" / f"{hashlib.sha256(whole).hexdigest()}{PACKED}"
    if not target.exists():
        write_atomically(target, whole)
    return target


def _accelerator(device: Device, plan: Plan) -> str:
    """Where the model is to run: as the plan or the device's address says."""
    own = str(getattr(device, "accelerator", ""))
    if own and plan.accelerator not in ("", own):
        raise ConfigError(
            f"{device.name}: its address asks for {own}, the plan for {plan.accelerator}; "
            "leave one of them out"
        )
    return own or plan.accelerator


def job_for(
    device: Device,
    model: Path,
    sent: Path,
    format: str,
    inputs: Shaped[np.ndarray, "n ..."],
    plan: Plan,
    repeat: int,
) -> Callable[[str], protocol.Job]:
    """The job for these arguments, checked as far as this machine can, by its inputs' hash."""
    if format not in protocol.RUNTIMES:
        raise ConfigError(
            f"{device.name}: a worker has no runtime for format {format!r}; there are "
            f"{', '.join(protocol.RUNTIMES)}"
        )
    if inputs.dtype.name not in protocol.DTYPES:
        raise ConfigError(f"inputs are {inputs.dtype}; a worker takes {', '.join(protocol.DTYPES)}")
    if inputs.ndim < 2 or len(inputs) == 0:
        raise ConfigError(f"inputs have shape {inputs.shape}; give at least one row")
    try:
        model_sha256 = sha256(sent)
    except OSError as error:
        raise BundleError(f"{model}: cannot be read ({error.strerror})") from error
    accelerator = _accelerator(device, plan)

    def order(inputs_sha256: str) -> protocol.Job:
        return protocol.Job(
            runtime=protocol.RUNTIMES[format],
            model=f"store/{model_sha256}{model.suffix if sent is model else PACKED}",
            model_sha256=model_sha256,
            inputs=f"store/{inputs_sha256}.bin",
            inputs_sha256=inputs_sha256,
            dtype=inputs.dtype.name,
            shape=inputs.shape,
            threads=plan.threads if device.threads is None else device.threads,
            plan={name: getattr(plan, name) for name in PLAN_FIELDS},
            repeat=repeat,
            accelerator=accelerator,
            duty=plan.duty,
            profile=plan.profile,
        )

    return order


def row_bytes(inputs: Shaped[np.ndarray, "n ..."]) -> memoryview:
    """The rows as they travel: contiguous and little-endian; a copy only where they are not so."""
    little = inputs.astype(inputs.dtype.newbyteorder("<"), copy=False)
    return np.ascontiguousarray(little).data.cast("B")
