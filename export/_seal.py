"""Seal: a file's own SHA-256 inside it, so that no runtime is ever handed a torn or altered file.

Runtimes trust what they load: one flipped bit in a TFLite file has been seen to end the process, to
hang it, and, among the weights, to change every vector without a word. A manifest's hash guards a
file in its bundle; the seal guards it everywhere else. It detects accidents, not forgery.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from hetero.errors import BundleError
from hetero.export import _guard

#: Name under which a file's metadata holds its seal.
KEY = "hetero.seal"

_MARK = b"hetero-sha256:"

#: What to write into the metadata before `seal`.
BLANK = (_MARK + b"0" * 64).decode()

_SEAL = re.compile(re.escape(_MARK) + rb"([0-9a-f]{64})")


def seal(raw: bytes) -> bytes:
    """The bytes with their hash in place of the blank seal they contain once."""
    assert raw.count(BLANK.encode()) == 1, "a file to be sealed contains one blank seal"
    return raw.replace(BLANK.encode(), _MARK + _hash(raw))


def _hash(blank: bytes) -> bytes:
    return hashlib.sha256(blank).hexdigest().encode()


def read(path: Path, what: str) -> bytes:
    """The bytes of a file, if its seal is whole.

    Args:
        path: The file.
        what: The format, for messages: "a TFLite".

    Raises:
        BundleError: It cannot be read, was not written by an exporter of ours, was altered, or does
            not hold together.
    """
    raw = _guard.bounded(path)
    found = _SEAL.findall(raw)
    if len(found) != 1:
        raise BundleError(
            f"{path}: not {what} file that hetero exported, or only a part of one "
            f"({len(raw)} bytes without a seal); export it again"
        )
    if _hash(_SEAL.sub(BLANK.encode(), raw)) != found[0]:
        raise BundleError(
            f"{path}: altered since it was exported ({len(raw)} bytes do not match their seal); "
            "export or copy it again"
        )
    # Anybody can write a seal; what a runtime is given has to hold together besides.
    _guard.structure(raw, str(path), what)
    return raw
