"""Stage: what a long job would do and about how long it takes; nothing is written.

Inputs are read and checked as the job itself would. Times come from a short probe on this machine:
some pictures read, some steps made. What cannot be told so is said to be unknown, not guessed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hetero.bundle import Bundle
from hetero.data import Images
from hetero.errors import ConfigError, DataError
from hetero.preprocess import Preprocess

#: Pictures that a probe reads and embeds.
PROBE = 64

#: Steps that a probe trains, after one that is not counted.
STEPS = 3

#: Bytes of a parameter in a finished training: bundle, and checkpoint with two moments of AdamW.
BYTES_PER_PARAMETER = 4 * (1 + 3)


@dataclass(frozen=True)
class Estimate:
    """What would be done.

    Attributes:
        job: In a few words.
        facts: What it takes, by name: pictures, epochs, files, devices.
        seconds: Parts of the time by name; None for a part that is not known.
        disk_bytes: What will be written; None if not known.
        unknown: Why a part is not known; "" if all are.
    """

    job: str
    facts: Mapping[str, str]
    seconds: Mapping[str, float | None] = field(default_factory=dict)
    disk_bytes: int | None = None
    unknown: str = ""

    @property
    def total_s(self) -> float | None:
        """All the time, in seconds; None where a part is not known."""
        parts = [s for s in self.seconds.values() if s is not None]
        return sum(parts) if parts and len(parts) == len(self.seconds) else None

    def to_json(self) -> dict[str, Any]:
        """The estimate as JSON values."""
        return {
            "dry_run": True,
            "job": self.job,
            **self.facts,
            "seconds": dict(self.seconds),
            "total_s": self.total_s,
            "disk_bytes": self.disk_bytes,
            "unknown": self.unknown,
        }

    def lines(self) -> list[str]:
        """The estimate for people."""
        total = "unknown" if self.total_s is None else f"about {spoken(self.total_s)}"
        parts = ", ".join(
            f"{name} {'unknown' if s is None else spoken(s)}" for name, s in self.seconds.items()
        )
        size = "unknown" if self.disk_bytes is None else f"about {self.disk_bytes / 2**20:.1f} MiB"
        return [
            f"would {self.job}; nothing is written",
            *(f"  {name}: {value}" for name, value in self.facts.items()),
            f"  time: {total}" + (f" ({parts})" if parts else ""),
            f"  disk: {size}",
            *([f"  not known: {self.unknown}"] if self.unknown else []),
        ]


def spoken(seconds: float) -> str:
    """A time in the unit that suits it: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def training(
    images: Images,
    backbone: str,
    dim: int,
    preprocess: Preprocess,
    settings: Any,
    *,
    kind: str = "gallery model",
    teacher: Bundle | None = None,
    views: int = 0,
    models: int = 1,
) -> Estimate:
    """What a training would take.

    Args:
        images: Its pictures.
        backbone: See `hetero.models.backbone`.
        dim: Length of the embedding.
        preprocess: Of the pictures.
        settings: A `hetero.fit.Settings`.
        kind: What is trained, in words.
        teacher: A gallery model that embeds the training pictures beforehand, once for all models.
        views: So many views of each; 0 for the plain picture alone.
        models: How many such trainings.

    Raises:
        ConfigError: The pictures do not fill a batch, or there is no such backbone.
        DataError: There is nothing to train on or to validate by.
    """
    rows, watched = images.rows("train"), images.rows("val")
    if len(images.classes("train")) < 2 and images.labelled:
        raise DataError(f"{images.name}: fewer than two training classes")
    steps = len(rows) // settings.batch
    if not steps:
        raise ConfigError(
            f"training: {len(rows)} pictures do not fill one batch of {settings.batch}; "
            "lower --batch"
        )
    from hetero import models as nets

    net = nets.build(backbone, dim, preprocess.size_px)
    read_s, embed_s, step_s = _probe(images, rows, net, preprocess, settings.batch)
    parameters = sum(p.numel() for p in net.parameters())
    seconds: dict[str, float | None] = {"reading": read_s * (len(rows) + len(watched))}
    disk = models * parameters * BYTES_PER_PARAMETER
    if teacher is not None:
        own = nets.load(teacher)
        with_teacher = _per_picture(own, teacher.preprocess, images, rows)
        seconds["gallery vectors"] = with_teacher * (len(rows) * max(1, views) + len(watched))
        disk += len(rows) * max(1, views) * teacher.space.dim * 4
    seconds["training"] = step_s * steps * settings.epochs
    seconds["validation"] = embed_s * len(watched) * settings.epochs
    facts = {
        "pictures": f"{len(rows):,} to train on, {len(watched):,} to validate by",
        "epochs": f"{settings.epochs} of {steps} steps of {settings.batch}",
        "model": f"{backbone}, {parameters:,} parameters",
    }
    if models > 1:
        facts["models"] = str(models)
        once = ("gallery vectors",)
        seconds = {n: s and s * (1 if n in once else models) for n, s in seconds.items()}
    return Estimate(f"train a {kind}", facts, seconds, disk)


def embedding(
    bundle: Bundle, images: Images, rows: tuple[int, ...], workers: int, by_file: str = ""
) -> Estimate:
    """What embedding these rows would take.

    Args:
        bundle: Whose model.
        images: Where the pictures are.
        rows: Which of them.
        workers: Processes side by side.
        by_file: An exported file that would be run instead of PyTorch; its speed is not probed.

    Raises:
        DataError: There is no picture.
    """
    if not rows:
        raise DataError(f"{images.name}: no picture to embed")
    seconds: dict[str, float | None] = {"reading": _reading(images, rows, bundle.preprocess)}
    if by_file:
        seconds["embedding"] = None
    else:
        from hetero import models

        net = models.load_any(bundle)
        seconds["embedding"] = _per_picture(net, bundle.preprocess, images, rows)
    side = max(1, workers)
    seconds = {k: s and s * len(rows) / side for k, s in seconds.items()}
    facts = {"pictures": f"{len(rows):,}", "model": by_file or bundle.manifest.model.backbone}
    if workers > 1:
        facts["workers"] = str(workers)
    why = "the speed of an exported file; `hetero bench` measures it" if by_file else ""
    return Estimate("embed", facts, seconds, len(rows) * bundle.space.dim * 4, why)


def on_devices(job: str, bundle: Bundle, options: Any, images: Images | None = None) -> Estimate:
    """What running a bundle's exported files on devices would take; no device is contacted.

    Args:
        job: In a word.
        bundle: With exported files.
        options: A `hetero.stages.running.CheckOptions`.
        images: Whose test pictures are searched, in a check.

    Raises:
        ConfigError: No exported file is left, or there is no such device.
    """
    from hetero import devices
    from hetero.stages.running import chosen, plan_for

    files = chosen(bundle, options)
    named = [devices.open_device(x, options.inventory).name for x in options.devices]
    plan = plan_for(options.thorough, options.threads)
    facts = {
        "files": ", ".join(f"{f.kind} {f.precision}" for f in files),
        "devices": ", ".join(named),
        "runs": f"each of {len(files)} files on each of {len(named)} devices",
    }
    seconds: dict[str, float | None] = {
        "latency, at least": len(files) * (plan.warmup_s + plan.min_s)
    }
    if images is not None:
        facts["pictures"] = f"{len(images.rows('test')):,} of test classes"
        seconds["vectors"] = None
    why = "how fast the devices are" + (" with all the pictures" if images else "")
    return Estimate(job, facts, seconds, None, why)


def _probe(
    images: Images, rows: tuple[int, ...], net: Any, preprocess: Preprocess, batch: int
) -> tuple[float, float, float]:
    """Seconds to read a picture, to embed one, and to train a step of `batch`."""
    import torch

    from hetero import models

    whole = models.FromPixels(net, preprocess)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    size = preprocess.size_px
    pixels = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8)

    def step() -> None:
        optimizer.zero_grad()
        whole(pixels).sum().backward()
        optimizer.step()

    net.train()
    return (
        _reading(images, rows, preprocess),
        _per_picture(net, preprocess, images, rows),
        _timed(step),
    )


def _some(rows: tuple[int, ...]) -> list[int]:
    """At most `PROBE` rows, evenly spaced."""
    return list(rows[:: max(1, len(rows) // PROBE)][:PROBE])


def _reading(images: Images, rows: tuple[int, ...], preprocess: Preprocess) -> float:
    """Seconds a picture; what is decoded once and kept is paid before the clock starts."""
    some = _some(rows)
    images.pixels(some[:1], preprocess)
    begun = time.perf_counter()
    images.pixels(some, preprocess)
    return (time.perf_counter() - begun) / len(some)


def _per_picture(net: Any, preprocess: Preprocess, images: Images, rows: tuple[int, ...]) -> float:
    """Seconds that a net takes for a picture, in a batch of those that a probe reads."""
    from hetero import models

    pixels = images.pixels(_some(rows), preprocess)
    return _timed(lambda: models.embed_pixels(net, preprocess, pixels)) / len(pixels)


def _timed(call: Callable[[], object]) -> float:
    """Seconds of a call, the mean of some after one that is not counted."""
    call()
    begun = time.perf_counter()
    for _ in range(STEPS):
        call()
    return (time.perf_counter() - begun) / STEPS
