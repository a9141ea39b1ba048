"""Settings of a variant: the fields of its dataclass, filled from text or values by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import ModuleType
from typing import Any

from hetero.errors import ConfigError

_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def fill(module: ModuleType, kind: str, name: str, settings: Mapping[str, Any]) -> Any:
    """The module's dataclass `kind` with these settings over its defaults.

    Args:
        module: A variant, from `hetero._plugins.load`.
        kind: Name of the dataclass in it: "Map".
        name: What the user called the variant, for messages.
        settings: Field name to value; text is converted to the field's type.

    Raises:
        ConfigError: No such dataclass or setting, or a value of the wrong kind.
    """
    what = f"{kind.lower()} {name}"
    made: Any = getattr(module, kind, None)
    if not (isinstance(made, type) and is_dataclass(made)):
        raise ConfigError(f"{what}: the module has no dataclass {kind}")
    known: dict[str, object] = {f.name: f.default for f in fields(made)}
    if MISSING in known.values():
        bare = next(k for k, default in known.items() if default is MISSING)
        raise ConfigError(f"{what}: the setting {bare} has no default")
    given: dict[str, Any] = {}
    for key, value in settings.items():
        if key not in known:
            raise ConfigError(f"{what}: no setting {key!r}; there are {', '.join(known) or 'none'}")
        wanted: Any = type(known[key])
        try:
            given[key] = _TRUTH[str(value).lower()] if wanted is bool else wanted(value)
        except (KeyError, TypeError, ValueError):
            raise ConfigError(f"{what}: {key} needs a {wanted.__name__}, got {value!r}") from None
    return made(**given)
