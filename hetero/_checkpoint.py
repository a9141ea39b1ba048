"""A run's state in one file, which says whose state it is."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch

from hetero._files import canonical_json, write_atomically
from hetero.errors import BundleError, ConfigError

NAME = "checkpoint.pt"


class Checkpoint:
    """A file that holds a run's state, and the identity of the run it belongs to.

    Args:
        path: The file.
        identity: What the run is, as JSON values; dictionaries may be nested.
    """

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        """See the class."""
        self._path, self._identity = path, identity

    def write(self, state: dict[str, Any]) -> None:
        """Replace the file, whole or not at all."""
        buffer = io.BytesIO()
        torch.save({**state, "identity": canonical_json(self._identity)}, buffer)
        write_atomically(self._path, buffer.getvalue())

    def read(self) -> dict[str, Any] | None:
        """The state that `write` got, or None where there is no file.

        Raises:
            BundleError: The file is damaged.
            ConfigError: It belongs to another run; the message names what differs.
        """
        if not self._path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self._path, map_location="cpu", weights_only=True)
            theirs = json.loads(state["identity"])
        except Exception as error:  # torch.load raises whatever the damage made of the bytes
            raise BundleError(
                f"{self._path}: the checkpoint cannot be read ({type(error).__name__}); "
                "run without --resume to start over"
            ) from error
        theirs, ours = _flat(theirs), _flat(json.loads(canonical_json(self._identity)))
        differing = sorted(k for k in {*ours, *theirs} if ours.get(k) != theirs.get(k))
        if differing:
            raise ConfigError(
                f"{self._path}: the checkpoint belongs to another run, it differs in "
                f"{', '.join(differing)}; use the same arguments, or run without --resume"
            )
        return state

    def restore(self, state: dict[str, Any], *parts: Any) -> None:
        """Put what `write` saved back into objective, optimiser and schedule.

        Raises:
            BundleError: The model's code has changed in between.
        """
        try:
            for name, part in zip(("objective", "optimizer", "schedule"), parts, strict=True):
                part.load_state_dict(state[name])
        except (KeyError, RuntimeError, ValueError) as error:
            raise BundleError(
                f"{self._path}: the checkpoint does not fit the model as its code is now "
                f"({' '.join(str(error).split())[:200]}); run without --resume to start over"
            ) from error


def _flat(value: object, name: str = "") -> dict[str, object]:
    """Dotted names to the leaves of nested settings."""
    if not isinstance(value, dict) or not value:
        return {name: value}
    dot = f"{name}." if name else ""
    return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{dot}{key}").items()}
