"""The host's side of the child process that converts: start it, take its results, end it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from pathlib import Path

from hetero import errors
from hetero._files import storage_errors
from hetero.errors import ExportError
from hetero.export._job import ConvertJob, Facts

#: How often a running child is looked at.
_POLL_S = 0.05


def result_of(job: ConvertJob) -> Path:
    """Where the child leaves what became of a job."""
    return job.output.with_name("result.json")


def facts(
    jobs: Sequence[ConvertJob], scratch: Path, log: Path, timeout_s: float
) -> Generator[Facts, None, None]:
    """The facts of each job in turn, converted and compared by one child process.

    Args:
        jobs: Of one format.
        scratch: Where the order is written.
        log: Gets all that the child prints.
        timeout_s: For each job.

    Raises:
        HeteroError: What the child raised, of the same class.
        ExportError: The converter raised something else, died, or took too long.
    """
    order = scratch / "jobs.json"
    with storage_errors(scratch):
        order.write_text("\n".join(job.to_json() for job in jobs), encoding="utf-8")
    with storage_errors(log):
        sink = log.open("wb")
    with sink:
        child = subprocess.Popen(
            # -P, and our own sys.path below: the child finds what we find, a user's backbone
            # included, and a file called onnx.py in the working folder is not the library.
            [sys.executable, "-P", "-m", "hetero.export._convert", str(order)],
            stdin=subprocess.PIPE,  # which tells the child of our end
            stdout=sink,
            stderr=sink,
            env=_environment(jobs[0].threads),
        )
        try:
            for job in jobs:
                _wait(child, job, log, timeout_s)
                yield _result(job, child.poll(), log)
        finally:
            child.kill()
            child.communicate()


def _environment(threads: int) -> dict[str, str]:
    count = str(threads)
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path),
        "PYTHONHASHSEED": "0",  # sets of names iterate alike, so equal bundles give equal files
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        "JAX_PLATFORMS": "cpu",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "ORT_DISABLE_TELEMETRY": "1",
    }


def _wait(child: subprocess.Popen[bytes], job: ConvertJob, log: Path, timeout_s: float) -> None:
    """Returns when the job has a result or the child has ended."""
    end = time.monotonic() + timeout_s
    while child.poll() is None and not result_of(job).exists():
        if time.monotonic() > end:
            raise ExportError(
                f"{job.format} {job.precision}: the converter was stopped after {timeout_s:g} s; "
                f"see {log}"
            )
        time.sleep(_POLL_S)


def _result(job: ConvertJob, code: int | None, log: Path) -> Facts:
    """The facts in a result file, or the error there as an exception of ours."""
    what = f"{job.format} {job.precision}"
    try:
        result = json.loads(result_of(job).read_bytes())
    except FileNotFoundError as error:
        how = f"ended with exit code {code}"
        if code is not None and code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
        raise ExportError(
            f"{what}: the converter {how}; its last line was {_last_line(log)!r}; see {log}"
        ) from error
    if "error" in result:
        kind = getattr(errors, result["error"], ExportError)
        text = f"{what}: {result['message']}"
        raise kind(text if result["ours"] else f"{text}; see {log}")
    found: Facts = result["facts"]
    return found


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((" ".join(x.split())[:300] for x in reversed(lines) if x.strip()), "")
