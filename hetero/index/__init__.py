"""Indexes of galleries: one small interface, and one module for each engine that exists.

An engine is a module of this folder (or a dotted path to one's own) with a frozen dataclass
``Engine``: its fields are the settings, ``create(where, space)`` gives an empty `Index` and
``load(where)`` one that is there. The command line names an index as ``ENGINE:WHERE``:
``exact:runs/index``, ``milvus:runs/gallery.db#photos``, ``pgvector:postgresql:///shop#photos``.

What every index promises, whoever stores it, is in `Index`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from hetero import _plugins
from hetero._settings import fill
from hetero.index._generations import Generations
from hetero.index._index import Found, Index, NoIndexError
from hetero.space import Space

__all__ = ["Engine", "Found", "Generations", "Index", "NoIndexError", "create", "load", "names"]


@runtime_checkable
class Engine(Protocol):
    """What a module of this folder offers under the name ``Engine``."""

    def create(self, where: str, space: Space) -> Index:
        """An empty index at a place where none is.

        Raises:
            ConfigError: One is there, or the place cannot hold one.
        """
        ...

    def load(self, where: str) -> Index:
        """The index at a place.

        Raises:
            NoIndexError: None is there.
            BundleError: It is torn.
        """
        ...


def names() -> tuple[str, ...]:
    """The engines of this folder."""
    return _plugins.names(__name__)


def create(spec: str, space: Space, settings: Mapping[str, Any] | None = None) -> Index:
    """An empty index.

    Args:
        spec: ``ENGINE:WHERE``; an engine that works in a folder takes "" for one in memory only.
        space: Of the rows it will hold.
        settings: Of the engine, over its defaults; text is converted.

    Raises:
        ConfigError: Unknown engine or setting, or there is an index already.
        MissingExtraError: The engine's library is not installed.
    """
    name, where = _split(spec)
    return _engine(name, settings).create(where, space)


def load(spec: str) -> Index:
    """The index of this name, with the settings that it was made with.

    Args:
        spec: ``ENGINE:WHERE``.

    Raises:
        NoIndexError: There is none.
        BundleError: It is torn.
        ConfigError: Unknown engine.
        MissingExtraError: The engine's library is not installed.
    """
    name, where = _split(spec)
    return _engine(name, None).load(where)


def _split(spec: str) -> tuple[str, str]:
    name, _, where = spec.partition(":")
    return name, where


def _engine(name: str, settings: Mapping[str, Any] | None) -> Engine:
    made: Engine = fill(_plugins.load(__name__, name), "Engine", name, settings or {})
    return made
