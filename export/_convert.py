"""The child process of an export: converts, compares, and leaves a result.json beside each file.

Run as ``python -m hetero.export._convert JOBS``, a file with one job in JSON a line. In a process
of its own, because converters print, take memory and can end in native code; what they say goes to
the log that is our output. Our input is a pipe that nothing is written to.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from pathlib import Path

from hetero._files import write_json
from hetero.bundle import Bundle, digest
from hetero.errors import BundleError, HeteroError
from hetero.export import module
from hetero.export._child import result_of
from hetero.export._job import ConvertJob, Facts, first_line
from hetero.export._parity import check


def run(job: ConvertJob) -> Facts:
    """The facts of one conversion: the converter's, the comparison's, and how long each took.

    Raises:
        BundleError: Weights or probe are altered.
        ExportError: The converter refused, or the file does not do what PyTorch does.
    """
    bundle = Bundle.load(job.bundle, verify=False)
    for kind in ("weights", "probe"):
        item = bundle.artifact(kind)
        if digest(bundle.path(item))[0] != item.sha256:
            raise BundleError(
                f"{bundle.path(item)}: altered since it was written; train again or copy it again"
            )
    variant = module(job.format)
    begin = time.perf_counter()
    facts: Facts = dict(variant.convert(job) or {})
    converted = time.perf_counter()
    facts.update(check(job, bundle.probe(), bundle.space))
    return {
        **facts,
        "conversion_s": round(converted - begin, 3),
        "parity_s": round(time.perf_counter() - converted, 3),
    }


def main(order: Path) -> int:
    """Exit code 0; each job's result.json says whether it worked. The first that fails ends it."""
    for text in order.read_text(encoding="utf-8").splitlines():
        job = ConvertJob.from_json(text)
        try:
            result: dict[str, object] = {"facts": run(job)}
        except HeteroError as error:
            traceback.print_exc()
            result = {"error": type(error).__name__, "message": str(error), "ours": True}
        except Exception as error:  # whatever it is gets reported; the log has its trace
            traceback.print_exc()
            result = {"error": "ExportError", "message": first_line(error), "ours": False}
        write_json(result_of(job), result)
        if "error" in result:
            break
    return 0


def _end_with_parent() -> None:
    """End this process as soon as the one that started it has ended, by whatever.

    Killed by SIGKILL, it cannot end us; we would write into what its successor makes anew.
    """
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.exit(main(Path(sys.argv[1])))
