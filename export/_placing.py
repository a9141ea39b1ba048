"""How a converted file gets its place in a bundle: made beside it, and moved in whole."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from hetero._files import make_folder, storage_errors
from hetero.bundle import Artifact, Bundle
from hetero.errors import BundleError, HeteroError


@contextlib.contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """A folder that is gone afterwards; what a killed run left there is removed first."""
    shutil.rmtree(path, ignore_errors=True)
    make_folder(path)
    try:
        yield path.resolve()
    finally:
        shutil.rmtree(path, ignore_errors=True)


def register(bundle: Bundle, item: Artifact, written: Path, scratch: Path) -> Bundle:
    """The bundle with the file in place and in the manifest.

    The manifest is read again, as another export may have written it meanwhile. A run killed
    between two steps leaves a bundle whose manifest is true: the entry goes before its file does.
    A step that fails puts back what was there.

    Args:
        bundle: Where to.
        item: What the manifest is to say.
        written: The file or folder.
        scratch: Folder on the same disk for what was there before.
    """
    current = Bundle.load(bundle.root, verify=False)
    if current.digest != bundle.digest:
        raise BundleError(f"{bundle.root}: its weights changed during the export; export again")
    same = (item.kind, item.precision)
    last = [f for f in current.manifest.files if (f.kind, f.precision) == same]
    target = current.path(item)
    aside: dict[Path, Path] = {}
    try:
        with storage_errors(bundle.root):
            if last:
                current = current.without_artifact(*same)
            for path in {current.path(f) for f in last} | {target}:
                # A folder cannot be replaced by a rename as a file can; so both move away first.
                if path.exists():
                    os.replace(path, scratch / f"last-{path.name}")
                    aside[path] = scratch / f"last-{path.name}"
            os.replace(written, target)
            return current.with_artifact(item)
    except BaseException:
        if not written.exists():
            os.replace(target, written)
        for path, kept in aside.items():
            os.replace(kept, path)
        for entry in last:
            # On a full disk this may fail too; the file is then there and not listed.
            with contextlib.suppress(HeteroError, OSError):
                current = current.with_artifact(entry)
        raise
