"""Guard: whether a file's bytes hold together, before a native runtime sees them.

Runtimes trust their files: an offset beyond the end ends the process, a dimension of a million
fills the memory, a loop never returns. Everything here is read in Python with every length checked,
and nothing is allocated that a file merely claims. `hetero.export._seal` calls it for every file,
after the seal: a seal detects accidents, and whoever forges one is met here.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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

#: ONNX operators that may run for ever, or run something else.
_NEVER = frozenset({b"Loop", b"Scan", b"SequenceMap", b"PythonOp"})

#: ONNX operators whose output is as large as a number among their inputs says.
_SHAPED = frozenset({b"ConstantOfShape", b"Expand", b"Tile", b"Reshape", b"Resize", b"Pad"})

#: ONNX number of a type -> bits of an element.
_ONNX_BITS = {
    **{1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64},
    **{14: 64, 15: 128, 16: 16, 17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4},
}


def bounded(path: Path, most: int = MAX_BYTES) -> bytes:
    """The bytes of an ordinary file of at most so many bytes.

    A pipe would never end, and a device has no end.

    Raises:
        BundleError: It is something else, too large, or cannot be read.
    """
    try:
        if path.exists() and not path.is_file():
            raise BundleError(f"{path}: not an ordinary file")
        size = path.stat().st_size
        if size > most:
            raise BundleError(f"{path}: {size} bytes are more than the {most} that are read")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        text = getattr(error, "strerror", None) or error
        raise BundleError(f"{path}: cannot be read ({text})") from error


def structure(raw: bytes, name: str, what: str) -> None:
    """Nothing, if a file of this kind holds together.

    Args:
        raw: The file.
        name: For messages.
        what: "an ONNX", "a TFLite" or another, of which nothing is asked here.

    Raises:
        BundleError: It does not; the message says where.
    """
    if what == "an ONNX":
        onnx(raw, name)
    elif what == "a TFLite":
        tflite(raw, name)


class _Bad(Exception):
    """What is wrong, without the file's name."""


def _refused(name: str, error: Exception) -> BundleError:
    text = str(error) if isinstance(error, _Bad) else f"damaged ({type(error).__name__} {error})"
    return BundleError(f"{name}: refused: {text[:300]}; export or copy it again")


# -- protobuf and ONNX ---------------------------------------------------------------------------


def _varint(raw: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(raw) or shift > 63:
            raise _Bad(f"a number at byte {at} does not end: truncated or altered")
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
            raise _Bad("a field without a number: altered")
        if wire == 0:
            value, at = _varint(raw, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(raw, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise _Bad(f"a field of kind {wire}, which ONNX does not have: altered")
        if size > len(raw) - at:
            raise _Bad(f"a field of {size} bytes where {len(raw) - at} are left: truncated")
        yield number, raw[at : at + size]
        at += size


def _signed(value: object) -> int:
    if not isinstance(value, int):
        raise _Bad("a part where a number was expected: altered")
    return value - (1 << 64) if value >> 63 else value


def _bytes(value: object) -> memoryview:
    if not isinstance(value, memoryview):
        raise _Bad("a number where a part was expected: altered")
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
                raise _Bad("training information, which no exporter of ours writes")
        if graphs != 1:
            raise _Bad(f"{graphs} graphs, one was expected")
        for part in functions:
            self.function(part)
        self.no_circle()

    def pair(self, raw: memoryview) -> None:
        found = {1: b"", 2: b""}
        for number, value in _fields(raw):
            found[number] = bytes(_bytes(value))
        self.text += len(raw)
        if self.text > MAX_TEXT_BYTES:
            raise _Bad(f"more than {MAX_TEXT_BYTES} bytes of texts")
        key = found[1].decode("utf-8")
        if key in self.texts:
            raise _Bad(f"the text {key[:60]!r} twice")
        self.texts[key] = found[2].decode("utf-8")

    def graph(self, raw: memoryview, depth: int, calls: set[tuple[bytes, bytes]]) -> None:
        if depth > MAX_DEPTH:
            raise _Bad(f"graphs inside graphs, more than {MAX_DEPTH} deep")
        sizes: dict[bytes, list[int]] = {}
        nodes = []
        for number, value in _fields(raw):
            if number == 1:
                nodes.append(_bytes(value))
            elif number == 5:
                self.tensor(_bytes(value), sizes)
            elif number == 15:
                raise _Bad("sparse weights, which no exporter of ours writes")
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
            raise _Bad(f"more than {MAX_NODES} operations")
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
            raise _Bad(f"the operation {op.decode()}, which an embedding model does not need")
        calls.add((domain, op))
        if op in _SHAPED:
            for name in inputs:
                self.extent(op, sizes.get(name, []))

    @staticmethod
    def extent(op: bytes, numbers: list[int]) -> None:
        if math.prod(max(abs(n), 1) for n in numbers) > MAX_ELEMENTS:
            raise _Bad(f"the operation {op.decode()} to {numbers[:6]}: more than would fit")

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
                raise _Bad("sparse weights, which no exporter of ours writes")

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
                raise _Bad(f"weights outside of the file ({name.decode(errors='replace')[:60]!r})")
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
            raise _Bad(f"a tensor of shape {dims[:17]}")
        elements = math.prod(dims)
        if elements > MAX_ELEMENTS:
            raise _Bad(f"a tensor of shape {dims}: more than would fit")
        if kind != 8 and kind not in _ONNX_BITS:
            raise _Bad(f"a tensor of an unknown type {kind}")
        if stored is not None:
            wanted = math.ceil(elements * _ONNX_BITS.get(kind, 8) / 8)
            if len(stored) != wanted:
                raise _Bad(f"{len(stored)} bytes for a tensor of shape {dims}, {wanted} expected")
            if kind == 7 and elements <= 16:
                ints = list(struct.unpack(f"<{elements}q", stored))
        elif counted != elements and not (_ONNX_BITS.get(kind, 8) < 8 or kind in (14, 15)):
            raise _Bad(f"{counted} numbers for a tensor of shape {dims}, {elements} expected")
        if ints is not None and kind == 7:
            sizes[name] = ints[:16]

    def value(self, raw: memoryview) -> None:
        """The type of an input or output."""
        for number, type_ in _fields(raw):
            if number != 2:
                continue
            for which, tensor in _fields(_bytes(type_)):
                if which not in (1, 6):
                    raise _Bad("an input or output that is no tensor")
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
                        raise _Bad("an input or output of more elements than would fit")

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
            raise _Bad(f"the function {name[:60]!r} twice")
        self.calls[domain, name] = calls

    def no_circle(self) -> None:
        """Nothing, if functions call each other without end nowhere.

        Raises:
            _Bad: They do, or too deep.
        """
        left = {k: {c for c in v if c in self.calls} for k, v in self.calls.items()}
        for _ in range(MAX_DEPTH):
            left = {k: {c for c in v if c in left} for k, v in left.items() if v}
            if not left:
                return
        name = next(iter(left))[1].decode(errors="replace")
        raise _Bad(f"the function {name[:60]!r} calls itself, or is more than {MAX_DEPTH} deep")


def onnx(raw: bytes, name: str) -> dict[str, str]:
    """The texts of an ONNX file that holds together.

    Raises:
        BundleError: It does not, holds weights elsewhere, or operations that may never end.
    """
    checker = _Onnx()
    try:
        if len(raw) > MAX_BYTES:
            raise _Bad(f"{len(raw)} bytes are more than {MAX_BYTES}")
        checker.model(memoryview(raw))
    except (_Bad, UnicodeDecodeError, struct.error, OverflowError) as error:
        raise _refused(name, error) from error
    return checker.texts


# -- flatbuffers and TFLite ----------------------------------------------------------------------

#: TFLite number of a type -> bits of an element; 5 is text, 13 a resource, 14 a variant.
_TFLITE_BITS = {
    **{0: 32, 1: 16, 2: 32, 3: 8, 4: 64, 6: 8, 7: 16, 8: 64, 9: 8, 10: 64, 11: 128, 12: 64},
    **{15: 32, 16: 16, 17: 4, 18: 16},
}

#: Operators that run other graphs, read variables, or are an app's own code:
#: IF, WHILE, CALL_ONCE, CUSTOM, DELEGATE, CALL, hash tables, variables.
_TFLITE_NEVER = frozenset({118, 119, 129, 32, 51, 31, 136, 137, 138, 139, 142, 143, 144})

#: Options with vectors in them -> slots and element sizes: RESHAPE, SQUEEZE.
_TFLITE_VECTORS = {17: ((0, 4),), 30: ((0, 4),)}


class _Flat:
    """Bounds-checked reading of a flatbuffer."""

    def __init__(self, raw: bytes) -> None:
        self.raw, self.seen = raw, 0

    def at(self, form: str, where: int) -> int:
        size = struct.calcsize(form)
        if where < 0 or where + size > len(self.raw):
            raise _Bad(f"an offset to byte {where} of {len(self.raw)}: truncated or altered")
        return int(struct.unpack_from("<" + form, self.raw, where)[0])

    def table(self, where: int) -> int:
        """The place of a table whose list of fields is whole."""
        self.seen += 1
        if self.seen > 20 * MAX_NODES:
            raise _Bad("more parts than a model has")
        fields = where - self.at("i", where)
        size, own = self.at("H", fields), self.at("H", fields + 2)
        if size < 4 or size % 2 or own < 4 or fields + size > len(self.raw):
            raise _Bad(f"a table at byte {where} of an impossible size")
        if where + own > len(self.raw):
            raise _Bad(f"a table at byte {where} ends beyond the file")
        for slot in range(4, size, 2):
            if self.at("H", fields + slot) >= own:
                raise _Bad(f"a table at byte {where} with a field beyond its end")
        return where

    def slot(self, table: int, index: int, size: int) -> int:
        """The place of a table's field, 0 if it is not there."""
        fields = table - self.at("i", table)
        where = 4 + 2 * index
        offset = self.at("H", fields + where) if where + 2 <= self.at("H", fields) else 0
        if offset and offset + size > self.at("H", fields + 2):
            raise _Bad(f"a table at byte {table} with a field beyond its end")
        return table + offset if offset else 0

    def scalar(self, table: int, index: int, form: str, default: int = 0) -> int:
        where = self.slot(table, index, struct.calcsize(form))
        return self.at(form, where) if where else default

    def child(self, table: int, index: int) -> int:
        """The place of what a field points at, 0 if it is not there."""
        where = self.slot(table, index, 4)
        return where + self.at("I", where) if where else 0

    def vector(self, table: int, index: int, size: int) -> tuple[int, int]:
        """First place and length of a vector."""
        where = self.child(table, index)
        if not where:
            return 0, 0
        length = self.at("I", where)
        if where + 4 + length * size > len(self.raw):
            raise _Bad(f"{length} entries at byte {where} of {len(self.raw)}: truncated or altered")
        return where + 4, length

    def numbers(self, table: int, index: int, form: str = "i") -> tuple[int, ...]:
        begin, length = self.vector(table, index, struct.calcsize(form))
        return struct.unpack_from(f"<{length}{form}", self.raw, begin) if length else ()

    def text(self, table: int, index: int) -> bytes:
        begin, length = self.vector(table, index, 1)
        if begin and self.at("B", begin + length):
            raise _Bad(f"a text at byte {begin} without an end")
        return self.raw[begin : begin + length]

    def tables(self, table: int, index: int) -> list[int]:
        begin, length = self.vector(table, index, 4)
        if length > MAX_NODES:
            raise _Bad(f"{length} parts in a list")
        return [self.table(b + self.at("I", b)) for b in range(begin, begin + 4 * length, 4)]


def tflite(raw: bytes, name: str) -> dict[str, str]:
    """The texts of a TFLite file that holds together.

    Raises:
        BundleError: It does not, holds weights elsewhere, or operators that an embedding model
            does not need.
    """
    try:
        if len(raw) > MAX_BYTES or raw[4:8] != b"TFL3":
            raise _Bad(f"{len(raw)} bytes that do not begin as a TFLite file")
        flat = _Flat(raw)
        return _tflite(flat, flat.table(flat.at("I", 0)))
    except (_Bad, struct.error, ValueError, RecursionError, OverflowError) as error:
        raise _refused(name, error) from error


def _tflite(flat: _Flat, model: int) -> dict[str, str]:
    codes = [_tflite_code(flat, code) for code in flat.tables(model, 1)]
    buffers = [_tflite_buffer(flat, buffer) for buffer in flat.tables(model, 4)]
    graphs = flat.tables(model, 2)
    if not 1 <= len(graphs) <= MAX_DEPTH:
        raise _Bad(f"{len(graphs)} graphs")
    counts = [_tflite_graph(flat, graph, codes, buffers) for graph in graphs]
    flat.text(model, 3)
    if any(not 0 <= b < len(buffers) for b in flat.numbers(model, 5)):
        raise _Bad("texts in a buffer that is not there")
    for signature in flat.tables(model, 7):
        graph = flat.scalar(signature, 4, "I")
        flat.text(signature, 2)
        for side in (0, 1):
            for entry in flat.tables(signature, side):
                flat.text(entry, 0)
                if graph >= len(graphs) or flat.scalar(entry, 1, "I") >= counts[graph]:
                    raise _Bad("a signature of a tensor that is not there")
    return _tflite_texts(flat, model, buffers)


def _tflite_texts(flat: _Flat, model: int, buffers: list[tuple[int, int]]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for entry in flat.tables(model, 6):
        at = flat.scalar(entry, 1, "I")
        if at >= len(buffers):
            raise _Bad("texts in a buffer that is not there")
        begin, length = buffers[at]
        if flat.text(entry, 0) == b"hetero":
            if length > MAX_TEXT_BYTES:
                raise _Bad(f"more than {MAX_TEXT_BYTES} bytes of texts")
            found = json.loads(flat.raw[begin : begin + length])
            if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
                raise _Bad("texts that are none")
            texts |= found
    return texts


def _tflite_code(flat: _Flat, code: int) -> int:
    flat.text(code, 1)
    number = max(flat.scalar(code, 0, "b"), flat.scalar(code, 3, "i"))
    if number in _TFLITE_NEVER:
        raise _Bad(f"the operator {number}, which an embedding model does not need")
    return number


def _tflite_buffer(flat: _Flat, buffer: int) -> tuple[int, int]:
    # 0 and 1 both say that nothing is stored after the flatbuffer.
    if flat.scalar(buffer, 1, "Q") > 1 or flat.scalar(buffer, 2, "Q") > 1:
        raise _Bad("weights outside of the flatbuffer, which no exporter of ours writes")
    return flat.vector(buffer, 0, 1)


def _tflite_graph(flat: _Flat, graph: int, codes: list[int], buffers: list[tuple[int, int]]) -> int:
    """Number of tensors of a graph whose indices and sizes are right."""
    tensors = flat.tables(graph, 0)
    for tensor in tensors:
        _tflite_tensor(flat, tensor, buffers)
    count = len(tensors)

    def known(indices: tuple[int, ...], least: int) -> None:
        if any(not least <= i < count for i in indices):
            raise _Bad(f"a tensor that is not there: {sorted(indices)[-1]} of {count}")

    known(flat.numbers(graph, 1), 0)
    known(flat.numbers(graph, 2), 0)
    flat.text(graph, 4)
    operators = flat.tables(graph, 3)
    if len(operators) > MAX_NODES:
        raise _Bad(f"more than {MAX_NODES} operations")
    for operator in operators:
        if flat.scalar(operator, 0, "I") >= len(codes):
            raise _Bad("an operator that is not there")
        known(flat.numbers(operator, 1), -1)
        known(flat.numbers(operator, 2), 0)
        known(flat.numbers(operator, 8), -1)
        flat.vector(operator, 5, 1)
        flat.vector(operator, 7, 1)
        if flat.scalar(operator, 9, "Q") > 1 or flat.slot(operator, 12, 4):
            raise _Bad("options outside of the flatbuffer, or of StableHLO")
        options = flat.child(operator, 4)
        if options:
            flat.table(options)
            for slot, size in _TFLITE_VECTORS.get(flat.scalar(operator, 3, "B"), ()):
                flat.vector(options, slot, size)
    return count


def _tflite_tensor(flat: _Flat, tensor: int, buffers: list[tuple[int, int]]) -> None:
    shape = flat.numbers(tensor, 0)
    kind, at = flat.scalar(tensor, 1, "b"), flat.scalar(tensor, 2, "I")
    name = flat.text(tensor, 3).decode(errors="replace")[:60]
    signature = flat.numbers(tensor, 7)
    if len(shape) > 16 or any(d < 0 for d in shape) or any(d < -1 for d in signature):
        raise _Bad(f"tensor {name!r} of shape {list(shape[:17])}")
    elements = math.prod(shape)
    if elements > MAX_ELEMENTS:
        raise _Bad(f"tensor {name!r} of shape {list(shape)}: more than would fit")
    if kind not in _TFLITE_BITS:
        raise _Bad(f"tensor {name!r} of type {kind}, which an embedding model does not need")
    if at >= len(buffers):
        raise _Bad(f"tensor {name!r} in a buffer that is not there")
    stored = buffers[at][1]
    if stored and stored != math.ceil(elements * _TFLITE_BITS[kind] / 8):
        raise _Bad(f"tensor {name!r}: {stored} bytes for a shape of {list(shape)}")
    if flat.slot(tensor, 6, 4) or flat.slot(tensor, 9, 4):
        raise _Bad(f"tensor {name!r} is sparse or a variant, which no exporter of ours writes")
    quantised = flat.child(tensor, 4)
    if quantised:
        flat.table(quantised)
        scales = flat.vector(quantised, 2, 4)[1]
        zeros = flat.vector(quantised, 3, 8)[1]
        flat.vector(quantised, 0, 4)
        flat.vector(quantised, 1, 4)
        axis = flat.scalar(quantised, 6, "i")
        # Without a list of zero points LiteRT would read one all the same.
        if scales != zeros or (scales > 1 and not (0 <= axis < len(shape))):
            raise _Bad(f"tensor {name!r}: {scales} scales and {zeros} zero points")
        if scales > 1 and shape[axis] != scales:
            raise _Bad(f"tensor {name!r}: {scales} scales for {shape[axis]} channels")
        if flat.slot(quantised, 5, 4):
            raise _Bad(f"tensor {name!r}: quantised in a way of its own")


# -- Core ML -------------------------------------------------------------------------------------


def package(path: Path) -> None:
    """Nothing, if a Core ML package is a plain folder of a few ordinary files.

    Raises:
        BundleError: It has links, pipes, too many or too large files.
    """
    try:
        if not path.is_dir() or path.is_symlink():
            raise BundleError(f"{path}: not a Core ML package: a folder was expected")
        found: list[Path] = []
        for inner in path.rglob("*"):
            found.append(inner)
            if len(found) > MAX_FILES:
                raise BundleError(f"{path}: more than {MAX_FILES} files; export it again")
            if inner.is_symlink() or not (inner.is_file() or inner.is_dir()):
                raise BundleError(f"{inner}: a link or no ordinary file; export it again")
        contents = path / "Manifest.json"
        if contents.exists() and contents.stat().st_size > MAX_TEXT_BYTES:
            raise BundleError(f"{contents}: more than {MAX_TEXT_BYTES} bytes; export it again")
        if sum(p.stat().st_size for p in found if p.is_file()) > MAX_BYTES:
            raise BundleError(f"{path}: more than {MAX_BYTES} bytes; export it again")
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: cannot be read ({error})") from error
