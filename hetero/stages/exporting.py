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

    wanted = [(f, p) for f in formats for p in precisions]
    for name in formats:
        export.module(name)
    calibration = None
    if "int8" in precisions:
        if images is None:
            raise ConfigError("int8 needs calibration pictures; name a collection with --data")
        calibration = calibration_pixels(bundle, images)
    with reporter.bar("export", len(wanted)) as bar:
        for format, precision in wanted:
            have = any(
                f.kind == format and f.precision == precision and (f.input == "uint8_nhwc") == bake
                for f in bundle.exported()
            )
            if not (resume and have):
                bundle = export.export(
                    bundle,
                    format,
                    precision,
                    calibration=calibration if precision == "int8" else None,
                    bake=bake,
                    batch=batch,
                    on_line=reporter.line,
                )
            bar.advance(1, f"{format} {precision}")
    return bundle
