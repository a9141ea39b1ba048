"""Why two devices give different vectors for one file: what is known to make a difference.

The sizes are 1 - cosine as seen with small networks, for orientation; fp32 to int8 itself costs
about 3e-4.
"""

from __future__ import annotations

from hetero.cells import Cell

VNNI = frozenset({"avx512_vnni", "avx_vnni"})

#: Precisions whose products are of small integers on some device or other.
_INTEGER = ("int8", "int8w")


def likely_causes(a: Cell, b: Cell) -> tuple[str, ...]:
    """What differs between two cells and is known to move vectors, the likeliest first.

    Args:
        a: A file on a device.
        b: The same format and precision on another.
    """
    found: list[str] = []
    for one, other in ((a, b), (b, a)):
        if one.execution == "reference" != other.execution:
            found.append(f"{one.device} is a reference interpreter, not the file's own runtime")
    if a.runtime != b.runtime:
        found.append(f"two runtimes: {_runtime(a)}, {_runtime(b)}")
    if _saturates(a) != _saturates(b):
        odd = a if _saturates(a) else b
        found.append(
            f"{odd.device} ({odd.cpu}) has no VNNI: onnxruntime's int8 products saturate in 16 "
            "bits there (about 3e-4), and it is the one that is off"
        )
    if a.runtime == b.runtime and a.version != b.version:
        more = (
            "; a runtime's version moves int8 more than the processor does (about 6e-4)"
            if a.precision in _INTEGER
            else ""
        )
        found.append(f"two versions of {a.runtime}: {a.version}, {b.version}{more}")
    if a.precision in _INTEGER and _is_32_bit(a) != _is_32_bit(b):
        odd = a if _is_32_bit(a) else b
        found.append(f"{odd.device} has 32-bit kernels, which differ for int8 (about 6e-4)")
    if a.format == "tflite" and a.precision in _INTEGER and _dotprod(a) != _dotprod(b):
        odd = a if _dotprod(a) else b
        found.append(
            f"{odd.device} has dotprod without i8mm: other kernels for weights in int8 (about 4e-5)"
        )
    if a.provider != b.provider and a.runtime == b.runtime:
        found.append(f"computed with {_name(a.provider)} and with {_name(b.provider)}")
    return tuple(found)


def _runtime(cell: Cell) -> str:
    return f"{_name(cell.runtime)} {cell.version} on {cell.device}".replace("  ", " ")


def _name(text: str) -> str:
    return text or "something unknown"


def _saturates(cell: Cell) -> bool:
    """Whether it is onnxruntime's int8 on an x86 processor without VNNI."""
    x86 = "avx2" in cell.features or "avx512f" in cell.features
    integer = cell.runtime == "onnxruntime" and cell.precision == "int8"
    return integer and x86 and not VNNI & set(cell.features)


def _is_32_bit(cell: Cell) -> bool:
    return "neon" in cell.features and "asimd" not in cell.features


def _dotprod(cell: Cell) -> bool:
    return "dotprod" in cell.features and "i8mm" not in cell.features
