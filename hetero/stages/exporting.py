"""Stage: a bundle's model files, each written, run and found to agree with PyTorch."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from hetero._files import write_atomically
from hetero.bundle import Artifact, Bundle
from hetero.data import Images
from hetero.errors import ConfigError, DataError, ExportError
from hetero.evaluate import task
from hetero.passport import beside
from hetero.progress import Reporter
from hetero.stages.embedding import embed
from hetero.stages.snippeting import canaries, passport

if TYPE_CHECKING:
    from hetero.export import Judging

#: Training pictures given to int8 calibration.
CALIBRATION = 256

#: Training pictures among which those are chosen.
POOL = 4096

#: By how much one number may differ between a file and the same with the whole path inside.
SAME = 1e-5

#: Queries by which int8 is judged, and pictures they search, at most.
JUDGED = 2000


def calibration_pixels(
    bundle: Bundle, images: Images, reporter: Reporter
) -> UInt8[np.ndarray, "n s s 3"]:
    """Training pictures for int8 that cover what the model tells apart.

    The pictures nearest to the centres of so many clusters of the model's own vectors: evenly
    spaced rows would give rare kinds of pictures, which use the ends of ranges, no say.
    """
    rows = images.rows("train")
    if not rows:
        raise DataError(f"{images.name}: no training picture to calibrate int8 with")
    some = [rows[i] for i in _spread(len(rows), POOL)]
    pixels = images.pixels(some, bundle.preprocess)
    if len(some) > CALIBRATION:
        vectors = embed(bundle, [images.ids[r] for r in some], pixels, reporter).vectors
        pixels = pixels[covering(vectors, CALIBRATION)]
    return pixels


def covering(vectors: Float32[np.ndarray, "n d"], count: int) -> Int64[np.ndarray, " m"]:
    """Rows nearest to the centres of `count` clusters, ascending, each once; repeatable."""
    from scipy.cluster.vq import kmeans2

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an empty cluster is no harm here
        centres, _ = kmeans2(vectors, count, iter=10, minit="++", seed=0)
    nearest: Int64[np.ndarray, " m"] = np.unique((vectors @ centres.T).argmax(axis=0))
    return nearest


def judging(
    bundle: Bundle,
    gallery: Bundle,
    images: Images,
    reporter: Reporter,
    *,
    most_lost: float,
    most_flips: float,
) -> Judging:
    """Validation pictures in the gallery's index, by which int8 is held to limits.

    Args:
        bundle: Whose files are judged.
        gallery: Whose index is searched.
        images: Their validation split is used.
        reporter: Shows progress.
        most_lost: See `hetero.export.Judging`.
        most_flips: See there.

    Raises:
        SpaceMismatchError: The two bundles are not of one space.
        DataError: The validation split cannot be searched.
    """
    from hetero.export import Judging

    gallery.space.must_match(bundle.space, f"bundle {bundle.root}")
    job = task(images, "val")
    t = job.truth
    place = {name: row for row, name in zip(job.rows, job.ids, strict=True)}
    queries = _spread(len(job.query_ids), JUDGED)
    seen = images.pixels([place[job.query_ids[i]] for i in queries], bundle.preprocess)
    searched = images.pixels([place[i] for i in job.gallery_ids], gallery.preprocess)
    return Judging(
        seen,
        tuple(t.query_labels[i] for i in queries),
        tuple(t.query_groups[i] for i in queries),
        embed(gallery, job.gallery_ids, searched, reporter).vectors,
        t.gallery_labels,
        t.gallery_groups,
        most_lost,
        most_flips,
    )


def _spread(count: int, most: int) -> list[int]:
    """At most so many positions, evenly spaced."""
    return sorted({int(i) for i in np.linspace(0, count - 1, min(most, count))})


def export_all(
    bundle: Bundle,
    formats: Sequence[str],
    precisions: Sequence[str],
    *,
    images: Images | None,
    gallery: Bundle | None = None,
    most_lost: float = 0.005,
    most_flips: float = 0.01,
    bake: bool,
    batch: int | None,
    resume: bool,
    reporter: Reporter,
    whole: bool = False,
) -> Bundle:
    """The bundle with every format in every precision, each proved on the probe.

    Each file gets a passport beside it, see `hetero.passport`.

    Args:
        bundle: Of a query (or gallery) model.
        formats: Which; see `hetero.export`.
        precisions: Which; a format leaves out those it does not have, see
            `hetero.export.precisions`.
        images: For int8 calibration; needed only then.
        gallery: If given, int8 files keep as many layers in float as search in this model's index
            needs to stay within the limits.
        most_lost: Those limits, see `hetero.export.Judging`.
        most_flips: See there.
        bake: Put preprocessing into the files.
        batch: Pictures a call; None for what the format likes.
        resume: Leave files alone that are there already and still from these weights.
        reporter: Told what happens.
        whole: Beside each ONNX file, one that takes a picture of any size; see `write_whole`.
    """
    from hetero import export

    if bundle.role == "classifier" and (whole or gallery is not None):
        raise ConfigError(
            f"{bundle.root}: a classifier searches no gallery and has no whole path; export it "
            "without --gallery and --whole, and hold int8 to PyTorch by `hetero pct compare`"
        )
    if whole and not (bake and "onnx" in formats):
        raise ConfigError(
            "the whole path can be put into ONNX files that have their preprocessing inside; "
            "add the format onnx, and leave --no-bake out"
        )
    able = {name: export.precisions(name) for name in formats}
    every = list(dict.fromkeys(p for known in able.values() for p in known))
    unknown = sorted(set(precisions) - set(every))
    if unknown:
        raise ConfigError(
            f"unknown precision {unknown[0]!r} for {', '.join(formats)}; "
            f"there are {', '.join(every)}"
        )
    calibration = held = None
    if "int8" in precisions:
        if images is None:
            raise ConfigError("int8 needs calibration pictures; name a collection with --data")
        calibration = calibration_pixels(bundle, images, reporter)
        if gallery is not None:
            held = judging(
                bundle, gallery, images, reporter, most_lost=most_lost, most_flips=most_flips
            )
    kept = "uint8_nhwc" if bake else "float32_nchw"
    count = sum(p in known for known in able.values() for p in precisions)
    with reporter.bar("export", count) as bar:
        for format in formats:
            have = {f.precision for f in bundle.exported() if (f.kind, f.input) == (format, kept)}
            here = [p for p in precisions if p in able[format]]
            for p in precisions:
                if p not in here:
                    reporter.line(f"{format}: has no {p}; left out")
            wanted = [p for p in here if not (resume and p in have)]
            bar.advance(len(here) - len(wanted))
            if not wanted:
                continue
            # One child process for all precisions of a format: its libraries load once.
            for done in export.export_each(
                bundle,
                format,
                wanted,
                calibration=calibration,
                judging=held,
                bake=bake,
                batch=batch,
                on_line=reporter.line,
            ):
                bundle = done
                bar.advance(1)
    for item in bundle.exported():
        if item.kind in formats and item.precision in precisions:
            _finish(bundle, item, whole, reporter)
    return bundle


def _finish(bundle: Bundle, item: Artifact, whole: bool, reporter: Reporter) -> None:
    """A file's passport, and if wanted the file with the whole path; what was there is replaced."""
    target = beside(bundle.path(item))
    if bundle.role == "classifier":  # a passport's canaries are unit vectors
        return
    try:
        passport(bundle, item).save(target)
    except DataError as error:  # a net that tells no pictures apart has no canaries
        target.unlink(missing_ok=True)
        reporter.line(f"{item.kind} {item.precision}: no passport: {error}")
    if whole and item.kind == "onnx":
        reporter.line(f"onnx {item.precision}: whole path in {write_whole(bundle, item).name}")


def write_whole(bundle: Bundle, item: Artifact) -> Path:
    """The ONNX file that takes a picture of any size, beside the file it is made from.

    It is run on the bundle's canaries, pictures of odd sizes, and written only if it gives what the
    other file gives for the same pictures prepared by `hetero.preprocess`.

    Raises:
        ConfigError: The file does not have its preprocessing inside.
        ExportError: The two files do not agree.
        MissingExtraError: onnx or ONNX Runtime is not installed.
    """
    from hetero import export
    from hetero.export import _onnx_whole

    source = bundle.path(item)
    raw = _onnx_whole.whole_image(source.read_bytes(), bundle.preprocess)
    pictures = [rgb for _, rgb in canaries(bundle)]
    pixels = np.stack([bundle.preprocess.pixels(rgb) for rgb in pictures])
    with export.load(source, item.kind) as runner:
        right = np.concatenate([runner(p[None]) for p in pixels])
    got = _onnx_whole.run(raw, pictures)
    if not np.abs(got - right).max() <= SAME:
        raise ExportError(
            f"{item.path}: with the whole path inside, vectors differ by "
            f"{np.abs(got - right).max():.3g}, at most {SAME:g} was expected; use "
            "`hetero snippet` for the app's side"
        )
    target = source.with_name(f"whole.{item.precision}.onnx")
    write_atomically(target, raw)
    return target
