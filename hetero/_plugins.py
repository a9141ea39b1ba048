"""Variants without a registry: in a variants folder, every module without an underscore is one."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from hetero.errors import ConfigError


def names(package: str) -> tuple[str, ...]:
    """The variants in a package's folder, sorted, found without importing them."""
    found = pkgutil.iter_modules(importlib.import_module(package).__path__)
    return tuple(sorted(m.name for m in found if not m.name.startswith("_")))


def load(package: str, name: str) -> ModuleType:
    """The module of one variant: a file name in `package`, or a dotted path to a user's own.

    Raises:
        ConfigError: There is none of this name; the message lists those there are.
    """
    kind = package.rpartition(".")[2].removesuffix("s")
    if name in names(package):
        return importlib.import_module(f"{package}.{name}")
    if "." in name and not name.startswith("."):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise
            raise ConfigError(
                f"{kind} {name!r}: no module of this dotted path; is it on PYTHONPATH?"
            ) from error
    raise ConfigError(
        f"unknown {kind} {name!r}; there are {', '.join(names(package))}, "
        "or the dotted path of your own module"
    )
