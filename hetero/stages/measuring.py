"""Stage: what the operators of a search space take on a device."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hetero import models, nas
from hetero._files import write_json
from hetero.bundle import Artifact, Bundle
from hetero.data import Images
from hetero.errors import ConfigError
from hetero.latency import quiet
from hetero.nas.costs import latency
from hetero.nas.space import Architecture, SearchSpace
from hetero.progress import Reporter
from hetero.space import Space

if TYPE_CHECKING:
    from hetero.devices import RunResult


@dataclass(frozen=True)
class MeasureOptions:
    """How to measure a space on a device.

    Attributes:
        device: As `hetero.devices.open_device` takes it.
        format, precision: Of the files.
        fitted: Architectures that the table is fitted to.
        held_out: Others, that it is judged by.
        threads: Of the runtime.
        seed: Of the architectures.
    """

    device: str = "local"
    format: str = "tflite"
    precision: str = "int8"
    fitted: int = 40
    held_out: int = 10
    threads: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a table that nothing would speak for."""
        if self.fitted < 2 or self.held_out < 1:
            raise ConfigError(
                f"measure: at least 2 architectures to fit and 1 held out, got {self.fitted} and "
                f"{self.held_out}"
            )


def measure(
    gallery: Bundle,
    images: Images,
    space: str,
    options: MeasureOptions,
    root: Path,
    *,
    reporter: Reporter,
) -> latency.Table:
    """The latency table of a space on a device, in ``root/table.csv``.

    Architectures are drawn, given random weights, exported and run; each is kept as soon as it was
    measured, so a stopped run goes on where it was.

    Raises:
        ConfigError: The device only emulates, so its times mean nothing.
        DeviceError: It failed; what was measured is kept.
    """
    from hetero import devices

    device = devices.open_device(options.device)
    if device.execution != "native":
        raise ConfigError(
            f"{options.device}: an {device.execution} device has no times of its own; measure on "
            "the board itself"
        )
    searched = nas.load_space(space)
    rng = np.random.default_rng(options.seed)
    drawn = [searched.smallest(), searched.largest()]
    while len(drawn) < options.fitted + options.held_out:
        drawn.append(searched.draw(rng))
    # The ends are fitted to; what is held out was drawn like what a search will ask for.
    rows = []
    with reporter.bar("measure", len(drawn)) as bar:
        for at, architecture in enumerate(drawn):
            path = root / "architectures" / f"{at:03d}.json"
            row = _measured(path, searched, architecture, gallery, images, device, options)
            rows.append(row)
            bar.advance(1, f"{row['latency_ns'] / 1e6:.3f} ms")
    done = [{k: (int(c), float(m)) for k, (c, m) in r["operators"].items()} for r in rows]
    took = np.array([r["latency_ns"] for r in rows], float)
    fit = slice(0, options.fitted)
    table = latency.fitted(done[fit], took[fit], {})
    errors = latency.errors(table, done[options.fitted :], took[options.fitted :])
    off = np.abs(errors)
    margin = max(0.0, float(np.quantile(1 / (1 + errors) - 1, 0.9)))
    about = {
        "device": options.device,
        "format": options.format,
        "precision": options.precision,
        "threads": str(options.threads),
        "space": space,
        "fitted to": f"{options.fitted} architectures",
        "held-out error": f"median {np.median(off):.1%}, worst {off.max():.1%} of "
        f"{options.held_out} architectures",
        "margin": f"{margin:.3f}",
    }
    table = replace(table, about=about)
    table.save(root / "table.csv")
    write_json(
        root / "table.json",
        {
            "about": about,
            "held_out_errors": [float(x) for x in errors],
            "rows": {k: list(v) for k, v in table.rows.items()},
        },
    )
    return table


def _measured(
    path: Path,
    space: SearchSpace,
    architecture: Architecture,
    gallery: Bundle,
    images: Images,
    device: Any,
    options: MeasureOptions,
) -> dict[str, Any]:
    """Latency and operators of one architecture, from `path` if it was measured before."""
    import torch

    from hetero import devices

    backbone = space.backbone(architecture)
    if path.exists():
        kept: dict[str, Any] = json.loads(path.read_text())
        if kept["backbone"] == backbone and kept["options"] == asdict(options):
            return kept
    preprocess, dim = gallery.preprocess, gallery.space.dim
    torch.manual_seed(0)
    net = models.build(backbone, dim, preprocess.size_px).eval()
    pixels = images.pixels(images.rows("val")[:8], preprocess)
    root = path.with_suffix("")
    made = models.as_it_is(root, net, backbone, Space("measure", "0" * 64, dim), preprocess, pixels)
    bundle, item = one_file(made, images, options.format, options.precision)
    inputs = bundle.inputs(item, pixels)
    result = timed(device, bundle, item, inputs, root / "runs", options.threads, resume=True)
    row = {
        "backbone": backbone,
        "options": asdict(options),
        "latency_ns": quiet(result.latency_ns),
        "validity": devices.timing(result).validity,
        "macs": made.manifest.model.macs,
        "operators": latency.operators(net, preprocess.size_px),
    }
    write_json(path, row)
    return row


def one_file(
    bundle: Bundle, images: Images, format: str, precision: str
) -> tuple[Bundle, Artifact]:
    """The bundle with one exported file, and that file.

    Args:
        bundle: With no other file.
        images: For int8 calibration.
        format: Of the file.
        precision: Of the file.
    """
    from hetero.stages.exporting import export_all

    done = export_all(
        bundle,
        (format,),
        (precision,),
        images=images,
        bake=True,
        batch=None,
        resume=True,
        reporter=Reporter(quiet=True),
    )
    (item,) = done.exported()
    return done, item


def timed(
    device: Any,
    bundle: Bundle,
    item: Artifact,
    inputs: Any,
    folder: Path,
    threads: int,
    *,
    resume: bool = False,
) -> RunResult:
    """The run on a device that latency tables are made of.

    Args:
        device: From `hetero.devices.open_device`.
        bundle: Of the file.
        item: The file.
        inputs: As the file takes them.
        folder: Where the run's results go.
        threads: Of the runtime.
        resume: Take over what an equal run left there.
    """
    from hetero import devices

    return devices.run(
        device,
        bundle.path(item),
        item.kind,
        inputs,
        folder=folder,
        plan=devices.Plan(warmup_runs=20, warmup_s=0.2, min_runs=200, min_s=1.0, threads=threads),
        resume=resume,
    )
