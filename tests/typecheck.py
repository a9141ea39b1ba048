"""The checker of types and shapes under which the whole package runs in tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from beartype import BeartypeConf, FrozenDict, beartype

#: Made from what stands in files, so they say themselves what is wrong with a value of a wrong
#: type; a checker before them would hide that.
SELF_CHECKING = {
    ("hetero.preprocess", "Preprocess.__init__"),
    ("hetero.measurement", "Limit.__init__"),
    ("hetero.measurement", "Measurement.__init__"),
}

_check = beartype(
    conf=BeartypeConf(
        is_pep484_tower=True,  # an int passes for a float
        # beartype 0.23 wants a number type in ndarray[shape, number type]; Any says any.
        hint_overrides=FrozenDict({np.ndarray[Any, Any]: np.ndarray}),
    )
)


def checked(function):
    """The function with its arguments and result checked."""
    if (function.__module__, function.__qualname__) in SELF_CHECKING:
        return function
    return _check(function)
