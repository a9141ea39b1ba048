"""Variants without a registry: in a variants folder, every module without an underscore is one."""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
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
            return own(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise
            raise ConfigError(
                f"{kind} {name!r}: no module of this dotted path, neither in the "
                "working folder nor on PYTHONPATH"
            ) from error
    raise ConfigError(
        f"unknown {kind} {name!r}; there are {', '.join(names(package))}, "
        "or the dotted path of your own module"
    )


def own(name: str) -> ModuleType:
    """A module of the user's own, by its dotted path.

    A program that pip installed does not look into the working folder. Here it does, last, so that
    nothing there hides a library, and only where a name is found there.

    Raises:
        ModuleNotFoundError: There is no such module, or it misses one itself.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        top, here = name.partition(".")[0], os.getcwd()
        file = os.path.join(here, top)
        if error.name != top or here in sys.path or not top.isidentifier():
            raise
        if not (os.path.isfile(f"{file}.py") or os.path.isdir(file)):
            raise
    sys.path.append(here)  # stays: what the module imports later, and child processes, need it
    importlib.invalidate_caches()
    return importlib.import_module(name)
