"""Is a model searched by measured latency better than one searched by multiply-accumulates?

    python -m benchmarks.nas emoji
    python -m benchmarks.nas.latency emoji

After the study of `benchmarks.nas`. The space is measured on this machine, int8 by LiteRT, one
thread. The model that the search by multiply-accumulates found is measured the same way; what it
takes is the cap of a second search in the same supernet, by the table. Both models are trained the
same, exported, and run in alternating blocks: is the second really under the cap, and does it find
more? Raw results go to benchmarks/results/nas-latency-NAME.json.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.lab import RESULTS, WORK, Job, corners, machine, run, save
from benchmarks.nas.study import BUDGET, METHOD, STUDIES, searched
from benchmarks.tradeoff import STUDIES as TRADEOFFS

GROUPS = 15
FORMAT, PRECISION, DEVICE = "tflite", "int8", "local"


def main() -> None:
    """Measure, search, train, measure again, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=sorted(STUDIES))
    parser.add_argument("--data", default="emoji")
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "30000"}

    from hetero import data as sources
    from hetero.bundle import Bundle
    from hetero.progress import Reporter
    from hetero.stages import searching

    study, other = STUDIES[args.name], TRADEOFFS[args.name]
    work = args.work / f"tradeoff-{args.name}"
    images, gallery = sources.load(args.data), Bundle.load(work / "seed-0" / "gallery")
    table = searching.measure(
        gallery,
        images,
        study.space,
        searching.MeasureOptions(DEVICE, FORMAT, PRECISION),
        work / "nas-measure",
        reporter=Reporter(),
    )
    job = Job("gallery", "gallery", other.gallery, other.gallery_epochs)
    plain = Job("", "query", "", study.epochs, "gallery", METHOD, views=study.views, lr=study.lr)

    def train(name: str, backbone: str) -> dict[str, Any]:
        own = replace(plain, name=f"nas-{name}", backbone=backbone)
        return run([own], args.data, 32, [0], work, workers=1, then=corners, given=[job])[0][
            own.name
        ]

    most = gallery.manifest.model.macs / BUDGET
    by_macs = searched(study, args.data, 0, work, most, "budget-0", study.scored)
    first = train("found-0", by_macs["best"]["backbone"])
    files = [_exported(work / "seed-0" / "nas-found-0", images)]
    cap_ms = _quiet_ms(files[0], work / "nas-cap")
    by_latency = searched(
        study,
        args.data,
        0,
        work,
        cap_ms,
        "latency",
        study.scored,
        f"latency:{work / 'nas-measure' / 'table.csv'}",
    )
    second = train("latency", by_latency["best"]["backbone"])
    files.append(_exported(work / "seed-0" / "nas-latency", images))
    save(
        args.results / f"nas-latency-{args.name}.json",
        {
            "command": f"python -m benchmarks.nas.latency {args.name}",
            "machine": machine(),
            "study": asdict(study),
            "table": dict(table.about),
            "cap_ms": cap_ms,
            "by_macs": {**by_macs, "job": first},
            "by_latency": {**by_latency, "job": second},
            "measured": _alternated(files, work / "nas-alternated"),
        },
    )


def _exported(root: Path, images: Any) -> Any:
    """The model's file, in its bundle."""
    from hetero.bundle import Bundle
    from hetero.progress import Reporter
    from hetero.stages.exporting import export_all

    bundle = export_all(
        Bundle.load(root),
        (FORMAT,),
        (PRECISION,),
        images=images,
        bake=True,
        batch=None,
        resume=True,
        reporter=Reporter(quiet=True),
    )
    (item,) = bundle.exported()
    return bundle, item


def _load(file: Any) -> Any:
    from hetero import devices

    bundle, item = file
    pixels = bundle.tensors("probe")["pixels"][:8]
    return devices.Load(bundle.path(item), item.kind, bundle.inputs(item, pixels))


def _quiet_ms(file: Any, folder: Path) -> float:
    import numpy as np

    from hetero import devices
    from hetero.latency import QUIET_PERCENT

    load = _load(file)
    result = devices.run(
        devices.open_device(DEVICE),
        load.model,
        load.format,
        load.inputs,
        folder=folder,
        plan=devices.Plan(warmup_runs=20, warmup_s=0.2, min_runs=200, min_s=1.0, threads=1),
    )
    return float(np.percentile(result.latency_ns, QUIET_PERCENT)) / 1e6


def _alternated(files: list[Any], folder: Path) -> dict[str, Any]:
    """Quiet latency of both in one run, and the second's over the first's with its interval."""
    from hetero import devices, latency

    ran = devices.alternate(
        devices.open_device(DEVICE),
        {"A": _load(files[0]), "B": _load(files[1])},
        latency.orders(GROUPS, 0),
        folder=folder,
        plan=replace(devices.BLOCK_PLAN, threads=1),
    )
    found = latency.compare(ran.groups, 0.0)
    return {
        "quiet_ms": [q / 1e6 for q in found.quiet_ns],
        "ratio": [found.ratio.value, found.ratio.low, found.ratio.high],
        "grade": found.grade,
        "reason": found.reason,
    }


if __name__ == "__main__":
    main()
