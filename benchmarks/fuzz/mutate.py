"""Mutations of bytes and of JSON values, each a pure function of a random number generator."""

from __future__ import annotations

import copy
import json
import random
import struct
from typing import Any

#: What has broken parsers before.
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**400, 0.5, 1e308, -0.0),
    *(float("nan"), float("inf"), "", "\0", "..", "../../etc/passwd", "/etc/passwd", "a/../../b"),
    *("C:\\x", "\\\\host\\x", "manifest.json", ".", "\ud800", "\u202e", "x" * 5000, "%s%n", "{}"),
    *("0" * 64, "f" * 64, "NaN", "weights", "onnx", "uint8_nhwc", [], [[]], {}, {"": {}}),
    *([0] * 1000, [None, None], ["a", 1], {"path": ".."}, "/dev/zero", "~", "con", "a\nb"),
)

_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63)


def _value(rng: random.Random) -> Any:
    """One of VALUES, the caller's own: a later mutation of it must not change the next case."""
    return copy.deepcopy(rng.choice(VALUES))


def of_bytes(raw: bytes, other: bytes, rng: random.Random) -> bytes:
    """The bytes with one to four things wrong."""
    out = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        kind = rng.randrange(7)
        at = rng.randrange(len(out)) if out else 0
        if kind == 0 and out:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[at:]
        elif kind == 2 and other:
            begin = rng.randrange(len(other))
            part = other[begin : begin + rng.randrange(1, 200)]
            out[at : at + rng.choice((0, len(part)))] = part
        elif kind == 3:
            form = rng.choice("BHIQ")
            size = struct.calcsize(form)
            number = (rng.choice(_NUMBERS) + rng.randrange(-2, 3)) % (1 << 8 * size)
            out[at : at + size] = struct.pack("<" + form, number)
        elif kind == 4:
            del out[at : at + rng.randrange(1, 64)]
        elif kind == 5:
            begin = rng.randrange(len(out)) if out else 0
            out[at:at] = out[begin : begin + rng.randrange(1, 300)]
        else:
            out[at:at] = rng.randbytes(rng.randrange(1, 16))
    return bytes(out)


def of_json(value: Any, rng: random.Random) -> Any:
    """The value with one to three parts replaced, removed, added or nested."""
    whole = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(_places(whole))
        if not places:
            return _value(rng)
        holder, key = rng.choice(places)
        kind = rng.randrange(6)
        if kind < 3:
            holder[key] = _value(rng)
        elif kind == 3:
            del holder[key]
        elif kind == 4 and isinstance(holder, dict):
            holder[rng.choice(("extra", "", "__class__", "schema", "path", "x" * 300))] = _value(
                rng
            )
        else:
            there, name = rng.choice(places)
            holder[key] = copy.deepcopy(there[name]) if _has(there, name) else None
    return whole


def _has(holder: Any, key: Any) -> bool:
    return key in holder if isinstance(holder, dict) else key < len(holder)


def _places(value: Any) -> Any:
    items: Any = ()
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    for key, inner in items:
        yield value, key
        yield from _places(inner)


def text(value: Any, rng: random.Random) -> bytes:
    """JSON text of a value, now and then nested beyond what a parser can follow."""
    raw = json.dumps(value).encode("utf-8", "backslashreplace")
    if rng.random() < 0.01:
        deep = rng.choice((50, 2000, 100_000))
        return b'{"a":' * deep + raw + b"}" * deep
    return raw
