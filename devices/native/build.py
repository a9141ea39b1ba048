"""Build the native worker for every machine it is shipped for, byte for byte as it is shipped.

    python devices/native/build.py            write hetero-worker-MACHINE beside this file
    python devices/native/build.py FOLDER     write them there, for comparing

Needs `ziglang` from the package index, a compiler that brings every target's libc with it. The same
version of it gives the same bytes on any machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = ("worker.c", "machine.c", "onnxruntime.c", "litert.c")
#: Machine, as uname calls it, and the target: glibc as old as any that a runtime still runs on.
TARGETS = {"x86_64": "x86_64-linux-gnu.2.17", "aarch64": "aarch64-linux-gnu.2.17"}
FLAGS = (
    *("-std=gnu11", "-O2", "-s", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off"),
    *("-fno-sanitize=undefined", "-Wl,--build-id=none", "-Wl,-z,max-page-size=65536"),
)


def build(folder: Path, machine: str) -> Path:
    """The program for one machine, built into `folder`."""
    target = folder.resolve() / f"hetero-worker-{machine}"
    zig = [sys.executable, "-m", "ziglang", "cc", "-target", TARGETS[machine], *FLAGS]
    with tempfile.TemporaryDirectory() as cache:
        # Nothing of this machine may get in: relative names, and a cache of its own.
        subprocess.run(
            [*zig, "-o", str(target), *SOURCES, "-ldl", "-lpthread"],
            cwd=HERE,
            check=True,
            env={**os.environ, "ZIG_LOCAL_CACHE_DIR": cache, "SOURCE_DATE_EPOCH": "0"},
        )
    return target


if __name__ == "__main__":
    where = Path(sys.argv[1]) if sys.argv[1:] else HERE
    for name in TARGETS:
        path = build(where, name)
        print(f"{path}: {path.stat().st_size} bytes")
