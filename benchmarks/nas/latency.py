"""Is a model searched by measured latency better than one searched by multiply-accumulates?

    python -m benchmarks.nas emoji
    python -m benchmarks.nas.latency emoji

After the study of `benchmarks.nas`. The space is measured on this machine, int8 by LiteRT, one
thread. The model that the search by multiply-accumulates found is measured the same way; what it
takes is the cap of a second search in the same supernet, by the table. The winners of both are
chosen in the same way, with trainings of the same length; they are exported and run in alternating
blocks: is the second really under the cap, and does it find more? Raw results go to
benchmarks/results/nas-latency-NAME.json.

    python -m benchmarks.nas.latency emoji --again

runs both files again in alternating blocks, for when the machine was too busy the first time.

    python -m benchmarks.nas.latency emoji --seeds

trains both architectures with three seeds: two models so near in cost differ by less than seeds do.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.lab import Job, again, corners, machine, parser, run, save
from benchmarks.nas.study import BUDGET, LEAST, STUDIES, Study, elect, query_job, searched
from benchmarks.tradeoff import STUDIES as TRADEOFFS

#: Of the query models of `--seeds`; the gallery model stays.
SEEDS = (0, 1, 2)
GROUPS = 15
FORMAT, PRECISION, DEVICE = "tflite", "int8", "local"
BY = ("by_macs", "by_latency")


def main() -> None:
    """Measure, search, train, measure again, write."""
    arguments = parser(__doc__, STUDIES)
    form = arguments.add_mutually_exclusive_group()
    form.add_argument("--again", action="store_true")
    form.add_argument("--seeds", action="store_true")
    args = arguments.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "30000"}

    from hetero import data as sources
    from hetero.bundle import Bundle
    from hetero.progress import Reporter
    from hetero.stages import measuring

    study, other = STUDIES[args.name], TRADEOFFS[args.name]
    work, images = args.work / f"tradeoff-{args.name}", sources.load(args.data)
    result = args.results / f"nas-latency-{args.name}.json"
    job = Job("gallery", "gallery", other.gallery, other.gallery_epochs)

    def exported(record: dict[str, Any]) -> tuple[Any, Any]:
        made = Bundle.load(work / "seed-0" / record["job"]["name"])
        return measuring.one_file(made, images, FORMAT, PRECISION)

    if args.again or args.seeds:
        kept = json.loads(result.read_text())
        records = [kept[key]["job"] for key in BY]
        if args.seeds:
            new = {"seeds": over_seeds(study, job, records, args.data, work)}
        else:
            both = [exported(record) for record in records]
            new = {"measured": _alternated(both, work / "nas-alternated")}
        save(result, {**kept, **new})
        return
    gallery = Bundle.load(work / "seed-0" / "gallery")
    table = measuring.measure(
        gallery,
        images,
        study.space,
        measuring.MeasureOptions(DEVICE, FORMAT, PRECISION),
        work / "nas-measure",
        reporter=Reporter(),
    )

    def train(jobs: list[Job], then: Any) -> dict[str, dict[str, Any]]:
        return run(jobs, args.data, 32, [0], work, workers=2, then=then, given=[job])[0]

    def found(name: str, contenders: list[dict[str, Any]]) -> dict[str, Any]:
        """Of a search's contenders the winner, trained on its own."""
        record: dict[str, Any] = elect(study, {name: contenders}, train)[name]["job"]
        return record

    most = gallery.manifest.model.macs / BUDGET
    by_macs = searched(
        study, args.data, 0, work, most, "budget-0", study.scored, least=LEAST * most
    )
    first = found("0", by_macs["contenders"])

    files = [exported(first)]
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
        LEAST * cap_ms,
    )
    second = found("latency", by_latency["contenders"])
    files.append(exported(second))
    save(
        result,
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


def over_seeds(
    study: Study, gallery: Job, records: list[dict[str, Any]], data: str, work: Path
) -> dict[str, dict[str, Any]]:
    """Seed -> name -> record of both architectures; a gallery model that is missing is trained."""
    run([gallery], data, 32, [0], work, workers=1)
    jobs = [
        query_job(study, f"latency-{key}", record["job"]["backbone"])
        for key, record in zip(BY, records, strict=True)
    ]
    return {
        str(seed): run(jobs, data, 32, [seed], again(work, seed), then=corners, given=[gallery])[
            seed
        ]
        for seed in SEEDS
    }


def _load(file: Any) -> Any:
    from hetero import devices

    bundle, item = file
    pixels = bundle.tensors("probe")["pixels"][:8]
    return devices.Load(bundle.path(item), item.kind, bundle.inputs(item, pixels))


def _quiet_ms(file: Any, folder: Path) -> float:
    from hetero import devices, latency
    from hetero.stages import measuring

    bundle, item = file
    device = devices.open_device(DEVICE)
    result = measuring.timed(device, bundle, item, _load(file).inputs, folder, threads=1)
    return latency.quiet(result.latency_ns) / 1e6


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
