"""Stage: a bundle's model files, each written, run and found to agree with PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from hetero.bundle import Bundle
from hetero.data import Images
from hetero.errors import ConfigError, DataError
from hetero.progress import Reporter

#: Training pictures given to int8 calibration.
CALIBRATION = 256


def calibration_pixels(bundle: Bundle, images: Images) -> UInt8[np.ndarray, "n s s 3"]:
    """Training pictures for int8, spread evenly over the training rows."""
    rows = images.rows("train")
    if not rows:
        raise DataError(f"{images.name}: no training picture to calibrate int8 with")
    some = sorted({int(i) for i in np.linspace(0, len(rows) - 1, min(CALIBRATION, len(rows)))})
    return images.pixels([rows[i] for i in some], bundle.preprocess)


def export_all(
    bundle: Bundle,
    formats: Sequence[str],
    precisions: Sequence[str],
    *,
    images: Images | None,
    bake: bool,
    batch: int | None,
    resume: bool,
    reporter: Reporter,
) -> Bundle:
    """The bundle with every format in every precision, each proved on the probe.

    Args:
        bundle: Of a query (or gallery) model.
        formats: Which; see `hetero.export`.
        precisions: Which of fp32, fp16, int8.
        images: For int8 calibration; needed only then.
        bake: Put preprocessing into the files.
        batch: Pictures a call; None for what the format likes.
        resume: Leave files alone that are there already and still from these weights.
        reporter: Told what happens.
    """
    from hetero import export

    for name in formats:
        export.module(name)
    unknown = sorted(set(precisions) - set(export.PRECISIONS))
    if unknown:
        raise ConfigError(
            f"unknown precision {unknown[0]!r}; there are {', '.join(export.PRECISIONS)}"
        )
    calibration = None
    if "int8" in precisions:
        if images is None:
            raise ConfigError("int8 needs calibration pictures; name a collection with --data")
        calibration = calibration_pixels(bundle, images)
    kept = "uint8_nhwc" if bake else "float32_nchw"
    with reporter.bar("export", len(formats) * len(precisions)) as bar:
        for format in formats:
            have = {f.precision for f in bundle.exported() if (f.kind, f.input) == (format, kept)}
            wanted = [p for p in precisions if not (resume and p in have)]
            bar.advance(len(precisions) - len(wanted))
            if not wanted:
                continue
            # One child process for all precisions of a format: its libraries load once.
            for done in export.export_each(
                bundle,
                format,
                wanted,
                calibration=calibration,
                bake=bake,
                batch=batch,
                on_line=reporter.line,
            ):
                bundle = done
                bar.advance(1)
    return bundle
