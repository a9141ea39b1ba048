"""Whether an ONNX file's bytes hold together: protobuf, read with every length checked."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from typing import Any

from hetero.export._guard_limits import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_ELEMENTS,
    MAX_NODES,
    MAX_TEXT_BYTES,
    Bad,
    refused,
)

#: ONNX operators that may run for ever, or run something else.
_NEVER = frozenset({b"Loop", b"Scan", b"SequenceMap", b"PythonOp"})

#: ONNX operators whose output is as large as a number among their inputs says.
_SHAPED = frozenset({b"ConstantOfShape", b"Expand", b"Tile", b"Reshape", b"Resize", b"Pad"})

#: ONNX number of a type -> bits of an element.
_ONNX_BITS = {
    **{1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64},
    **{14: 64, 15: 128, 16: 16, 17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4},
}


def _varint(raw: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(raw) or shift > 63:
            raise Bad(f"a number at byte {at} does not end: truncated or altered")
        byte = raw[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value & (1 << 64) - 1, at


def _fields(raw: memoryview) -> Iterator[tuple[int, Any]]:
    """Number and value of a message's fields: an int, or the bytes of what has a length."""
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise Bad("a field without a number: altered")
        if wire == 0:
            value, at = _varint(raw, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(raw, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise Bad(f"a field of kind {wire}, which ONNX does not have: altered")
        if size > len(raw) - at:
            raise Bad(f"a field of {size} bytes where {len(raw) - at} are left: truncated")
        yield number, raw[at : at + size]
        at += size


def _signed(value: object) -> int:
    if not isinstance(value, int):
        raise Bad("a part where a number was expected: altered")
    return value - (1 << 64) if value >> 63 else value


def _bytes(value: object) -> memoryview:
    if not isinstance(value, memoryview):
        raise Bad("a number where a part was expected: altered")
    return value


def _numbers(value: object) -> list[int]:
    """A repeated whole number, packed or one of them."""
    if isinstance(value, int):
        return [_signed(value)]
    part, out, at = _bytes(value), [], 0
    while at < len(part):
        number, at = _varint(part, at)
        out.append(_signed(number))
    return out


class _Onnx:
    """One pass over a model; counts what has to be bounded."""

    def __init__(self) -> None:
        self.nodes = self.text = 0
        self.texts: dict[str, str] = {}
        self.calls: dict[tuple[bytes, bytes], set[tuple[bytes, bytes]]] = {}

    def model(self, raw: memoryview) -> None:
        graphs = 0
        functions: list[memoryview] = []
        for number, value in _fields(raw):
            if number == 7:
                graphs += 1
                self.graph(_bytes(value), 1, set())
            elif number == 14:
                self.pair(_bytes(value))
            elif number == 25:
                functions.append(_bytes(value))
            elif number == 20:
                raise Bad("training information, which no exporter of ours writes")
        if graphs != 1:
            raise Bad(f"{graphs} graphs, one was expected")
        for part in functions:
            self.function(part)
        self.no_circle()

    def pair(self, raw: memoryview) -> None:
        found = {1: b"", 2: b""}
        for number, value in _fields(raw):
            found[number] = bytes(_bytes(value))
        self.text += len(raw)
        if self.text > MAX_TEXT_BYTES:
            raise Bad(f"more than {MAX_TEXT_BYTES} bytes of texts")
        key = found[1].decode("utf-8")
        if key in self.texts:
            raise Bad(f"the text {key[:60]!r} twice")
        self.texts[key] = found[2].decode("utf-8")

    def graph(self, raw: memoryview, depth: int, calls: set[tuple[bytes, bytes]]) -> None:
        if depth > MAX_DEPTH:
            raise Bad(f"graphs inside graphs, more than {MAX_DEPTH} deep")
        sizes: dict[bytes, list[int]] = {}
        nodes = []
        for number, value in _fields(raw):
            if number == 1:
                nodes.append(_bytes(value))
            elif number == 5:
                self.tensor(_bytes(value), sizes)
            elif number == 15:
                raise Bad("sparse weights, which no exporter of ours writes")
            elif number in (11, 12, 13):
                self.value(_bytes(value))
        for node in nodes:
            self.node(node, depth, calls, sizes)

    def node(
        self,
        raw: memoryview,
        depth: int,
        calls: set[tuple[bytes, bytes]],
        sizes: dict[bytes, list[int]],
    ) -> None:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise Bad(f"more than {MAX_NODES} operations")
        op = domain = b""
        inputs, outputs, made = [], [], dict(sizes) if depth > 1 else sizes
        for number, value in _fields(raw):
            if number == 1:
                inputs.append(bytes(_bytes(value)))
            elif number == 2:
                outputs.append(bytes(_bytes(value)))
            elif number == 4:
                op = bytes(_bytes(value))
            elif number == 7:
                domain = bytes(_bytes(value))
            elif number == 5:
                found: dict[bytes, list[int]] = {}
                self.attribute(_bytes(value), depth, calls, found)
                if outputs and found:
                    made[outputs[0]] = next(iter(found.values()))
        if op in _NEVER:
            raise Bad(f"the operation {op.decode()}, which an embedding model does not need")
        calls.add((domain, op))
        if op in _SHAPED:
            for name in inputs:
                self.extent(op, sizes.get(name, []))

    @staticmethod
    def extent(op: bytes, numbers: list[int]) -> None:
        if math.prod(max(abs(n), 1) for n in numbers) > MAX_ELEMENTS:
            raise Bad(f"the operation {op.decode()} to {numbers[:6]}: more than would fit")

    def attribute(
        self,
        raw: memoryview,
        depth: int,
        calls: set[tuple[bytes, bytes]],
        sizes: dict[bytes, list[int]],
    ) -> None:
        for number, value in _fields(raw):
            if number in (6, 11):
                self.graph(_bytes(value), depth + 1, calls)
            elif number in (5, 10):
                self.tensor(_bytes(value), sizes)
            elif number in (22, 23):
                raise Bad("sparse weights, which no exporter of ours writes")

    def tensor(self, raw: memoryview, sizes: dict[bytes, list[int]]) -> None:
        dims: list[int] = []
        kind, name, stored, counted, ints = 0, b"", None, 0, None
        for number, value in _fields(raw):
            if number == 1:
                dims += _numbers(value)
            elif number == 2:
                kind = int(value) if isinstance(value, int) else -1
            elif number == 8:
                name = bytes(_bytes(value))
            elif number == 9:
                stored = _bytes(value)
            elif number == 13 or (number == 14 and value):
                raise Bad(f"weights outside of the file ({name.decode(errors='replace')[:60]!r})")
            elif number in (4, 10):  # float, double: fixed sizes
                counted += len(_bytes(value)) // (4 if number == 4 else 8)
            elif number == 7:
                ints = (ints or []) + _numbers(value)
                counted = len(ints)
            elif number in (5, 11):
                counted += len(_numbers(value))
            elif number == 6:
                counted += 1
        if len(dims) > 16 or any(d < 0 for d in dims):
            raise Bad(f"a tensor of shape {dims[:17]}")
        elements = math.prod(dims)
        if elements > MAX_ELEMENTS:
            raise Bad(f"a tensor of shape {dims}: more than would fit")
        if kind != 8 and kind not in _ONNX_BITS:
            raise Bad(f"a tensor of an unknown type {kind}")
        if stored is not None:
            wanted = math.ceil(elements * _ONNX_BITS.get(kind, 8) / 8)
            if len(stored) != wanted:
                raise Bad(f"{len(stored)} bytes for a tensor of shape {dims}, {wanted} expected")
            if kind == 7 and elements <= 16:
                ints = list(struct.unpack(f"<{elements}q", stored))
        elif counted != elements and not (_ONNX_BITS.get(kind, 8) < 8 or kind in (14, 15)):
            raise Bad(f"{counted} numbers for a tensor of shape {dims}, {elements} expected")
        if ints is not None and kind == 7:
            sizes[name] = ints[:16]

    def value(self, raw: memoryview) -> None:
        """The type of an input or output."""
        for number, type_ in _fields(raw):
            if number != 2:
                continue
            for which, tensor in _fields(_bytes(type_)):
                if which not in (1, 6):
                    raise Bad("an input or output that is no tensor")
                if which == 1:
                    self.dims(_bytes(tensor))

    @staticmethod
    def dims(tensor: memoryview) -> None:
        total = 1
        for number, shape in _fields(tensor):
            if number != 2:
                continue
            for _, dim in _fields(_bytes(shape)):
                for kind, size in _fields(_bytes(dim)):
                    total *= max(abs(_signed(size)), 1) if kind == 1 else 1
                    if total > MAX_ELEMENTS:
                        raise Bad("an input or output of more elements than would fit")

    def function(self, raw: memoryview) -> None:
        name = domain = b""
        calls: set[tuple[bytes, bytes]] = set()
        for number, value in _fields(raw):
            if number == 1:
                name = bytes(_bytes(value))
            elif number == 10:
                domain = bytes(_bytes(value))
            elif number == 7:
                self.node(_bytes(value), 1, calls, {})
        if (domain, name) in self.calls:
            raise Bad(f"the function {name[:60]!r} twice")
        self.calls[domain, name] = calls

    def no_circle(self) -> None:
        """Nothing, if functions call each other without end nowhere.

        Raises:
            Bad: They do, or too deep.
        """
        left = {k: {c for c in v if c in self.calls} for k, v in self.calls.items()}
        for _ in range(MAX_DEPTH):
            left = {k: {c for c in v if c in left} for k, v in left.items() if v}
            if not left:
                return
        name = next(iter(left))[1].decode(errors="replace")
        raise Bad(f"the function {name[:60]!r} calls itself, or is more than {MAX_DEPTH} deep")


def onnx(raw: bytes, name: str) -> dict[str, str]:
    """The texts of an ONNX file that holds together.

    Raises:
        BundleError: It does not, holds weights elsewhere, or operations that may never end.
    """
    checker = _Onnx()
    try:
        if len(raw) > MAX_BYTES:
            raise Bad(f"{len(raw)} bytes are more than {MAX_BYTES}")
        checker.model(memoryview(raw))
    except (Bad, UnicodeDecodeError, struct.error, OverflowError) as error:
        raise refused(name, error) from error
    return checker.texts
