"""How long does `hetero search` take on this machine, from a gallery model to a query bundle?

    python -m benchmarks.tradeoff emoji
    python -m benchmarks.nas.duration emoji

The quick form of the command, once, from nothing but the gallery model of `benchmarks.tradeoff`:
its own time and that of the processors, and the model's scores on test classes. Raw results go to
benchmarks/results/nas-duration-NAME.json.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.lab import embed_split, machine, pair, parser, save
from benchmarks.nas.study import BUDGET, STUDIES

QUICK = (
    "--epochs 6 --trials 60 --probes 3 --tries 8 --try-epochs 3 --finalists 2 --own-epochs 10 "
    "--start scratch --lr 2e-2 --quiet"
)


def main() -> None:
    """Search, score, write."""
    args = parser(__doc__, STUDIES).parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "30000"}

    from hetero.bundle import Bundle

    gallery = Bundle.load(args.work / f"tradeoff-{args.name}" / "seed-0" / "gallery")
    most = gallery.manifest.model.macs // BUDGET
    options = f"--data {args.data} --max-macs {most} {QUICK}"
    with tempfile.TemporaryDirectory(prefix="hetero-") as folder:
        command = [sys.executable, "-m", "hetero.cli", "search", str(gallery.root)]
        begun, load = time.monotonic(), os.getloadavg()[0]
        subprocess.run([*command, *options.split(), "-o", folder], check=True)
        took_s, used = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
        query = Bundle.load(Path(folder, "query"))
        task, theirs = embed_split(gallery.root, args.data)
        mine = embed_split(query.root, args.data)[1]
        save(
            args.results / f"nas-duration-{args.name}.json",
            {
                "command": f"python -m benchmarks.nas.duration {args.name}",
                "machine": machine(),
                "searched": f"hetero search GALLERY {options}",
                "wall_s": round(took_s, 1),
                "cpu_s": round(used.ru_utime + used.ru_stime, 1),
                "load_before": load,
                "load_after": os.getloadavg()[0],
                "macs": query.manifest.model.macs,
                "backbone": query.manifest.model.backbone,
                "scores": pair(task, mine, theirs),
            },
        )


if __name__ == "__main__":
    main()
