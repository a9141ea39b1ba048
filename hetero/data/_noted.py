"""What was found out of files in an earlier run, kept in the user's cache folder.

A cache, not a record: what cannot be read, or was noted by another Pillow, is found out again.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from hetero._files import canonical_json, write_atomically
from hetero.errors import ConfigError, HeteroWarning, StorageError

T = TypeVar("T")


def store(kind: str, place: Path) -> Path:
    """Where what is known of a file or folder is kept."""
    from platformdirs import user_cache_path

    key = hashlib.sha256(os.fsencode(place.resolve())).hexdigest()
    return user_cache_path("hetero") / kind / f"{key[:32]}.json"


def recall(path: Path, schema: str, build: Callable[[Mapping[str, Any]], T]) -> T | None:
    """What `build` makes of the note, or None if there is none that it can use."""
    import PIL

    try:
        kept = json.loads(path.read_bytes())
        if (kept["schema"], kept["pillow"]) != (schema, PIL.__version__):
            return None
        return build(kept)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def note(path: Path, schema: str, found: Mapping[str, Any], otherwise: str) -> None:
    """Keep it; where that cannot be, a warning begins with what happens `otherwise`."""
    import PIL

    kept = {"schema": schema, "pillow": PIL.__version__, **found}
    try:
        write_atomically(path, canonical_json(kept))
    except (ConfigError, StorageError, OSError) as error:
        text = f"{otherwise}, the cache cannot be written: {error}"
        warnings.warn(text, HeteroWarning, stacklevel=3)
