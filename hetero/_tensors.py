"""Safetensors files of ours: tensors, and texts that say what they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from hetero import _schemas
from hetero.errors import BundleError, ConfigError

T = TypeVar("T")


def read_tensors(
    path: Path,
    schema: str,
    what: str,
    made_by: str,
    build: Callable[[Mapping[str, np.ndarray[Any, Any]], Mapping[str, str]], T],
) -> T:
    """What `build` makes of a file's tensors and texts, after the file said what it is.

    Args:
        path: A safetensors file.
        schema: What its text hetero.schema has to be.
        what: What it is, for messages: "a map".
        made_by: The command that writes one, for messages.
        build: From tensors and texts, both by name; what it raises of a file's faults is turned
            into one line.

    Raises:
        BundleError: The file is missing, torn, of another schema, or holds what `build` refuses.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            texts = file.metadata() or {}
            _schemas.check(
                path, texts.get("hetero.schema"), schema, again=f"`{made_by}` writes {what}"
            )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return build(tensors, texts)
    except BundleError:
        raise
    except KeyError as error:
        raise BundleError(f"{path}: cannot be read as {what}, it has no {error}") from error
    # TypeError: a number type that NumPy does not have. RuntimeError: weights of another shape.
    except (OSError, SafetensorError, TypeError, ValueError, RuntimeError, ConfigError) as error:
        raise BundleError(f"{path}: cannot be read as {what}: {str(error)[:300]}") from error
