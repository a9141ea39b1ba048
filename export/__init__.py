"""Formats: a bundle's net as a file for a runtime that is not PyTorch, proved to do the same.

A format is a module of this folder. The command line names it by its file name; a dotted path names
a user's own. It offers:

    EXTRA          the extra of this package that brings its libraries
    SUFFIX         ".onnx": how its files end
    DYNAMIC_BATCH  whether one file can take any number of pictures
    PRECISIONS     those it can write; a module that does not say writes fp32, fp16 and int8
    RUNS_HERE      "" if its own runtime can execute the files on this machine, else why not
    convert(job)   writes job.output and gives facts about how; called in a child process
    load(path)     a Runner for a file
    metadata(path) the ``hetero.*`` texts that a file carries

An export is done when the written file, run on the bundle's probe, agrees with PyTorch.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import numpy as np
from jaxtyping import UInt8

from hetero import _plugins
from hetero._files import canonical_json, make_folder, storage_errors
from hetero.bundle import Artifact, Bundle, digest
from hetero.errors import ConfigError
from hetero.export import _child
from hetero.export._job import ConvertJob, Facts, Judging, Runner
from hetero.export._parity import GATES
from hetero.export._placing import register, scratch_folder
from hetero.space import Embeddings

__all__ = [
    "MIN_CALIBRATION",
    "PRECISIONS",
    "SCHEMA",
    "ConvertJob",
    "Facts",
    "FileEmbedder",
    "Judging",
    "Runner",
    "export",
    "export_each",
    "file_name",
    "formats",
    "load",
    "metadata_of",
    "module",
    "precisions",
]

SCHEMA = "hetero.model/1"

#: What every format here can write. Some can write more: see `precisions`.
PRECISIONS = ("fp32", "fp16", "int8")

#: What each layer in int8 costs search, beside a file; kept in the bundle's logs/.
SENSITIVITY = "sensitivity.json"

#: Fewer calibration pictures than this cannot be split into a part to fit and a part to judge.
MIN_CALIBRATION = 8


def formats() -> tuple[str, ...]:
    """Names of the formats there are."""
    return _plugins.names(__name__)


def module(format: str) -> ModuleType:
    """The module of a format.

    Raises:
        ConfigError: There is none of this name; the message lists those there are.
    """
    return _plugins.load(__name__, format)


def precisions(format: str) -> tuple[str, ...]:
    """Names of the precisions that a format can write: fp32, fp16, int8, and what it has beside.

    "int8w" is int8 of weights alone. "palette6" is weights out of 64 values a layer.

    Raises:
        ConfigError: There is no format of this name.
    """
    found: tuple[str, ...] = getattr(module(format), "PRECISIONS", PRECISIONS)
    return found


def load(path: Path, format: str) -> Runner:
    """A model file opened for running on this machine, with one thread.

    Raises:
        BundleError: The file is missing, torn or not of this format.
        ConfigError: Unknown format.
        MissingExtraError: Its runtime is not installed.
    """
    runner: Runner = module(format).load(path)
    return runner


class FileEmbedder:
    """A bundle's model file on this machine, as a `hetero.embedder.Embedder`; a context manager.

    Args:
        bundle: Where the file is.
        item: Which of its files.
    """

    def __init__(self, bundle: Bundle, item: Artifact) -> None:
        self._bundle, self._item = bundle, item
        self._runner = load(bundle.path(item), item.kind)
        self.space = bundle.space
        self.name = f"{item.kind} {item.precision} by {self._runner.runtime}"

    @property
    def runtime(self) -> str:
        """What executes the file, with its version."""
        return self._runner.runtime

    def __enter__(self) -> FileEmbedder:
        """Itself."""
        self._runner.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing; the file is closed."""
        self._runner.__exit__(kind, error, trace)

    def embed(self, ids: Sequence[str], pixels: UInt8[np.ndarray, "n s s 3"]) -> Embeddings:
        """See `hetero.embedder.Embedder.embed`."""
        rows = self._runner(self._bundle.inputs(self._item, pixels))
        return Embeddings.normalised(self.space, ids, rows, self.name)


def file_name(format: str, precision: str, bake: bool = True) -> str:
    """Name of an exported file: ``model.int8.tflite``, ``model-float.fp32.onnx``."""
    return f"model{'' if bake else '-float'}.{precision}{module(format).SUFFIX}"


def metadata_of(bundle: Bundle, precision: str, bake: bool) -> dict[str, str]:
    """The texts that every file exported from this bundle carries."""
    return {
        "hetero.schema": SCHEMA,
        "hetero.space_id": bundle.space.id,
        "hetero.space_digest": bundle.space.digest,
        "hetero.role": bundle.role,
        "hetero.dim": str(bundle.space.dim),
        "hetero.input": "uint8_nhwc" if bake else "float32_nchw",
        "hetero.preprocess": canonical_json(bundle.preprocess.to_json()),
        "hetero.preprocess_sha256": bundle.preprocess.sha256,
        "hetero.weights_sha256": bundle.digest,
        "hetero.precision": precision,
    }


def export(
    bundle: Bundle,
    format: str,
    precision: str,
    *,
    calibration: UInt8[np.ndarray, "n s s 3"] | None = None,
    judging: Judging | None = None,
    bake: bool = True,
    batch: int | None = None,
    threads: int = 1,
    timeout_s: float = 3600,
    on_line: Callable[[str], None] | None = None,
) -> Bundle:
    """The bundle with one more model file, converted, run on the probe and found to agree.

    Conversion and comparison happen in a child process, whose chatter goes to
    ``logs/export-FORMAT.log`` in the bundle. Nothing that was in the bundle changes unless all of
    it succeeds; then a file of the same format and precision is replaced.

    Args:
        bundle: Its weights and probe are verified; its other files need not be whole, so that an
            altered model file can be made anew.
        format: See `formats`.
        precision: See `precisions`.
        calibration: Training pictures, 100 or so; needed for int8, without effect else.
        judging: If given, as few layers of an int8 file stay float as keep search within its
            limits; else all are int8. Without effect on Core ML, whose int8 is of weights alone.
        bake: Put the preprocessing into the file.
        batch: Pictures a call; None for any number where the format can, else 1.
        threads: For the converter.
        timeout_s: After this the converter is stopped.
        on_line: Told in a line what happens.

    Raises:
        ConfigError: Unknown format or precision, int8 without calibration, wrong pictures.
        MissingExtraError: The format's libraries are not installed.
        ExportError: The converter refused, or the file does not do what PyTorch does.
        StorageError: The disk is full.
    """
    (done,) = export_each(
        bundle,
        format,
        (precision,),
        calibration=calibration,
        judging=judging,
        bake=bake,
        batch=batch,
        threads=threads,
        timeout_s=timeout_s,
        on_line=on_line,
    )
    return done


def export_each(
    bundle: Bundle,
    format: str,
    precisions: Sequence[str],
    *,
    calibration: UInt8[np.ndarray, "n s s 3"] | None = None,
    judging: Judging | None = None,
    bake: bool = True,
    batch: int | None = None,
    threads: int = 1,
    timeout_s: float = 3600,
    on_line: Callable[[str], None] | None = None,
) -> Iterator[Bundle]:
    """The bundle after each of these precisions has been added to it, as by `export`.

    One child process converts them all, so a converter's libraries are loaded once, which is half
    of the time. The first that fails ends it; those before it stay.

    Args:
        bundle: As for `export`, like all that follows.
        format: Of all.
        precisions: In this order.
        calibration: Needed if one of them is int8.
        judging: Of int8.
        bake: Of all.
        batch: Of all.
        threads: Of all.
        timeout_s: For each.
        on_line: Told in a line what happens.
    """
    jobs = [_job(bundle, format, p, calibration, bake, batch, threads) for p in precisions]
    return _each(bundle, jobs, calibration, judging, timeout_s, on_line or (lambda _: None))


def _each(
    bundle: Bundle,
    jobs: Sequence[ConvertJob],
    calibration: UInt8[np.ndarray, "n s s 3"] | None,
    judging: Judging | None,
    timeout_s: float,
    say: Callable[[str], None],
) -> Iterator[Bundle]:
    """The bundle after each job."""
    format = jobs[0].format
    log = make_folder(bundle.root / "logs") / f"export-{format}.log"
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(scratch_folder(bundle.root / f".export-{format}"))
        pixels = scratch / "calibration.npy"
        if calibration is not None:
            with storage_errors(bundle.root):
                np.save(pixels, calibration, allow_pickle=False)
        limits: dict[str, Any] = {}
        if judging is not None:
            with storage_errors(bundle.root):
                judging.save(scratch / "judge.npz")
            limits = {"most_lost": judging.most_lost, "most_flips": judging.most_flips}
            limits["judge"] = scratch / "judge.npz"
        placed = []
        for job in jobs:
            folder = make_folder(scratch / job.precision)
            placed.append(
                replace(
                    job,
                    output=folder / file_name(format, job.precision, job.bake),
                    calibration=pixels if job.precision == "int8" else None,
                    **(limits if job.precision == "int8" else {}),
                )
            )
        say(f"{format} {', '.join(j.precision for j in placed)}: converting")
        results = stack.enter_context(
            contextlib.closing(_child.facts(placed, scratch, log, timeout_s))
        )
        for job, facts in zip(placed, results, strict=True):
            hexdigest, size = digest(job.output)
            item = Artifact(
                path=job.output.name,
                kind=format,
                sha256=hexdigest,
                size_bytes=size,
                precision=job.precision,
                input=job.input,
                batch=job.batch,
                facts=facts,
            )
            bundle = register(bundle, item, job.output, scratch)
            what = f"{format} {job.precision}"
            if "fallback" in facts:
                say(f"{what}: {facts['fallback']}")
            if job.precision == "int8":
                say(f"{what}: {_used(facts)}")
            if (table := job.output.with_name(SENSITIVITY)).exists():
                os.replace(table, log.with_name(f"sensitivity-{format}.json"))
            say(
                f"{what}: {size / 2**20:.2f} MiB, worst cosine to PyTorch "
                f"{facts['cosine_worst']:.6f}, {facts['conversion_s']:.1f} s"
            )
            yield bundle


def _used(facts: Facts) -> str:
    """What an int8 file's layers are, and by what that was decided."""
    if "layers" not in facts:
        how = "int8 weights alone" if "activations" in facts else "every layer in int8"
        return f"{how}; what search loses was not measured here, `hetero check` does"
    lost, flipped = (
        100 * float(facts[f"judged_{k}"]) for k in ("recall_at_1_lost", "negative_flips")
    )
    kept = facts["float_layers"]
    return (
        f"{facts['layers_in_float']} of {facts['layers']} layers in float"
        f"{f' ({kept})' if kept else ''}; on validation pictures search loses {lost:.2f} points of "
        f"Recall@1, {flipped:.2f} % negative flips"
    )


def _job(
    bundle: Bundle,
    format: str,
    precision: str,
    calibration: UInt8[np.ndarray, "n s s 3"] | None,
    bake: bool,
    batch: int | None,
    threads: int,
) -> ConvertJob:
    """The job of a call, its arguments checked before anything is started."""
    variant = module(format)
    if precision not in (known := precisions(format)):
        what = f"{format} has no" if precision in GATES else "unknown"
        raise ConfigError(f"{what} precision {precision!r}; there are {', '.join(known)}")
    if batch is not None and batch < 1:
        raise ConfigError(f"batch must be at least 1, got {batch}; leave it out for any number")
    if threads < 1:
        raise ConfigError(f"threads must be at least 1, got {threads}")
    size = bundle.preprocess.size_px
    if precision == "int8":
        if calibration is None:
            raise ConfigError(
                f"{format} int8 needs calibration pictures, got none; "
                "give some 100 training pictures, or export fp16"
            )
        shape = calibration.shape
        if (
            calibration.dtype != np.uint8
            or shape[1:] != (size, size, 3)
            or shape[0] < MIN_CALIBRATION
        ):
            raise ConfigError(
                f"calibration pictures have to be uint8 (n, {size}, {size}, 3) with n at least "
                f"{MIN_CALIBRATION}, got {calibration.dtype} {shape}"
            )
    return ConvertJob(
        bundle=bundle.root.resolve(),
        output=Path(),
        format=format,
        precision=precision,
        bake=bake,
        batch=batch or (0 if variant.DYNAMIC_BATCH else 1),
        size_px=size,
        dim=bundle.space.dim,
        metadata=metadata_of(bundle, precision, bake),
        threads=threads,
    )
