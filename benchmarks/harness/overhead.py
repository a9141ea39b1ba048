"""What the harness costs: its latency beside the runtime's own, host time beside the device's.

The same file takes turns between `run` of this project (its Python worker on `local`) and the
runtime's own benchmark, `benchmarks.harness.own`: short blocks, each a process of its own, as many
warm-up and measured runs in both, ABBA or BAAB by lot. What is compared is `hetero.latency`'s quiet
latency (2nd percentile of a block, the quieter block of a group), as for any two files; the median
latencies stand beside it.

The host's time is that of the whole `run` over SSH: connect, send model and pictures, start,
follow, fetch, verify. The device's own compute is what its worker says it spent in the runtime:
importing it (with NumPy, without which none can be), loading the file, and every inference.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from hetero import latency
from hetero.devices import Plan, RunResult, open_device, run

WARMUP, RUNS, GROUPS = 10, 200, 10
MARGIN, HOST_LIMIT = 0.03, 1.2
PROBES = 1000
#: As many runs on both sides, whatever their speed.
PLAN = Plan(warmup_runs=WARMUP, warmup_s=0, min_runs=RUNS, min_s=0, max_s=600)
#: Rows only; nothing is measured after them.
ROWS = Plan(warmup_runs=0, warmup_s=0, min_runs=0, min_s=0)


def pictures(count: int, size: int) -> np.ndarray:
    """Pictures of noise; what is in them changes no time."""
    draw = np.random.default_rng(0)
    return draw.integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def side_by_side(model: Path, format: str, size: int, seed: int) -> dict[str, Any]:
    """The agent's latency (B) against the runtime's own benchmark (A)."""
    pixels = pictures(1, size)
    groups, shares, load = [], [], os.getloadavg()[0]
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hetero-") as folder:
        (inputs := Path(folder, "inputs.bin")).write_bytes(pixels.tobytes())
        for order in latency.orders(GROUPS, seed):
            group = []
            for arm in order:
                if arm == "A":
                    times = _own(format, model, inputs)
                else:
                    result = _ran(model, format, pixels, Path(folder, "run"))
                    shares.append(result.conditions.cpu_share or 0.0)
                    times = result.latency_ns
                group.append(latency.Block("A" if arm == "A" else "B", times))
            groups.append(tuple(group))
    found = latency.compare(groups, MARGIN)
    said = {k: v for k, v in asdict(found).items() if k not in ("same", "ratio", "median_ratio")}
    return {
        "format": format,
        "seed": seed,
        "seconds": round(time.monotonic() - begun),
        "load_before": load,
        "load_after": os.getloadavg()[0],
        "cpu_share_median": statistics.median(shares),
        "agent_over_own": asdict(found.ratio),
        "agent_over_own_by_medians": asdict(found.median_ratio),
        "within_margin": abs(found.ratio.value - 1) <= MARGIN,
        **said,
        "blocks_quiet_ns": [
            [b.arm, round(latency.quiet(b.latency_ns))] for group in groups for b in group
        ],
    }


def _plain_python(folder: Path) -> Path:
    """A Python as a device has it: our packages, without what an editable install runs at start."""
    builder = venv.EnvBuilder(symlinks=True)
    builder.create(folder)
    packages = folder / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    # Packages are found through this line; start-up hooks that lie among them are not run.
    (packages / "here.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"


def _own(format: str, model: Path, inputs: Path) -> np.ndarray:
    call = [sys.executable, "-m", "benchmarks.harness.own", format, str(model)]
    call += [str(WARMUP), str(RUNS), str(inputs)]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    times = json.loads(done.stdout.splitlines()[-1])
    assert len(times) == RUNS, done.stderr
    return np.round(1e6 * np.array(times)).astype(np.int64)


def _ran(model: Path, format: str, pixels: np.ndarray, folder: Path) -> RunResult:
    return run(open_device("local"), model, format, pixels, folder=folder, plan=PLAN)


def over_ssh(model: Path, format: str, size: int, times: int) -> dict[str, Any]:
    """The host's time for a thousand pictures, device and host both this machine.

    The first run sends model and pictures, the others find them on the device, as a second file
    or the next check does.
    """
    from sshd import serving

    pixels, runs = pictures(PROBES, size), []
    with (
        tempfile.TemporaryDirectory(prefix="hetero-") as folder,
        # A login shell that reads none of its user's start-up files, which may take any time.
        serving(Path(folder, "sshd"), "SetEnv SHLVL=1") as server,
        # Its host key is not to be stored among the user's.
        mock.patch.dict(os.environ, XDG_CONFIG_HOME=folder),
    ):
        python = _plain_python(Path(folder, "python"))
        address = server.address.replace(f"python={sys.executable}", f"python={python}")
        device = open_device(f"ssh:{address},folder={folder}/far")
        out = Path(folder, "out")
        for number in range(times + 1):
            begun = time.perf_counter()
            result = run(device, model, format, pixels, folder=out, plan=ROWS, repeat=number)
            host_s = time.perf_counter() - begun
            assert result.folder is not None
            log = (result.folder / "log.jsonl").read_text().splitlines()
            inference_s = (int(result.embed_ns.sum()) + result.first_ns) / 1e9
            start_s = (int(result.facts["import_ns"]) + result.load_ns) / 1e9
            runs.append(
                {
                    "sent": number == 0,
                    "host_s": host_s,
                    "device_s": inference_s + start_s,
                    "inference_s": inference_s,
                    "worker_s": json.loads(log[-1])["t_s"],
                    "rows": len(result.outputs),
                    "load": os.getloadavg()[0],
                }
            )
    again = [r for r in runs if not r["sent"]]
    ratios = [r["host_s"] / r["device_s"] for r in again]
    return {
        "format": format,
        "pictures": PROBES,
        "sent_bytes": pixels.nbytes + model.stat().st_size,
        "host_over_device": statistics.median(ratios),
        "host_over_device_range": [min(ratios), max(ratios)],
        "host_over_device_first": runs[0]["host_s"] / runs[0]["device_s"],
        "host_over_inference": statistics.median(r["host_s"] / r["inference_s"] for r in again),
        "host_over_worker": statistics.median(r["host_s"] / r["worker_s"] for r in again),
        "within_limit": statistics.median(ratios) <= HOST_LIMIT,
        "runs": runs,
    }
