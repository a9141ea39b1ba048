"""What the guard of every format shares: its limits, and how it says no."""

from __future__ import annotations

from hetero.errors import BundleError

#: Larger model files are refused; protobuf's own limit.
MAX_BYTES = 2**31 - 1

#: Elements of one tensor; more would not fit a phone.
MAX_ELEMENTS = 1 << 28

#: Texts that a file carries, all together.
MAX_TEXT_BYTES = 1 << 20

#: Graphs inside graphs, and functions calling functions.
MAX_DEPTH = 8

#: Operations in a file.
MAX_NODES = 200_000

#: Files in a package.
MAX_FILES = 64


class Bad(Exception):
    """What is wrong, without the file's name."""


def refused(name: str, error: Exception) -> BundleError:
    """The error to raise for a file of this name."""
    text = str(error) if isinstance(error, Bad) else f"damaged ({type(error).__name__} {error})"
    return BundleError(f"{name}: refused: {text[:300]}; export or copy it again")
