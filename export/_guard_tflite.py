"""Whether a TFLite file's bytes hold together: a flatbuffer, read with every offset checked."""

from __future__ import annotations

import json
import math
import struct

from hetero.export._guard_limits import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_ELEMENTS,
    MAX_NODES,
    MAX_TEXT_BYTES,
    Bad,
    refused,
)

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
            raise Bad(f"an offset to byte {where} of {len(self.raw)}: truncated or altered")
        return int(struct.unpack_from("<" + form, self.raw, where)[0])

    def table(self, where: int) -> int:
        """The place of a table whose list of fields is whole."""
        self.seen += 1
        if self.seen > 20 * MAX_NODES:
            raise Bad("more parts than a model has")
        fields = where - self.at("i", where)
        size, own = self.at("H", fields), self.at("H", fields + 2)
        if size < 4 or size % 2 or own < 4 or fields + size > len(self.raw):
            raise Bad(f"a table at byte {where} of an impossible size")
        if where + own > len(self.raw):
            raise Bad(f"a table at byte {where} ends beyond the file")
        for slot in range(4, size, 2):
            if self.at("H", fields + slot) >= own:
                raise Bad(f"a table at byte {where} with a field beyond its end")
        return where

    def slot(self, table: int, index: int, size: int) -> int:
        """The place of a table's field, 0 if it is not there."""
        fields = table - self.at("i", table)
        where = 4 + 2 * index
        offset = self.at("H", fields + where) if where + 2 <= self.at("H", fields) else 0
        if offset and offset + size > self.at("H", fields + 2):
            raise Bad(f"a table at byte {table} with a field beyond its end")
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
            raise Bad(f"{length} entries at byte {where} of {len(self.raw)}: truncated or altered")
        return where + 4, length

    def numbers(self, table: int, index: int, form: str = "i") -> tuple[int, ...]:
        begin, length = self.vector(table, index, struct.calcsize(form))
        return struct.unpack_from(f"<{length}{form}", self.raw, begin) if length else ()

    def text(self, table: int, index: int) -> bytes:
        begin, length = self.vector(table, index, 1)
        if begin and self.at("B", begin + length):
            raise Bad(f"a text at byte {begin} without an end")
        return self.raw[begin : begin + length]

    def tables(self, table: int, index: int) -> list[int]:
        begin, length = self.vector(table, index, 4)
        if length > MAX_NODES:
            raise Bad(f"{length} parts in a list")
        return [self.table(b + self.at("I", b)) for b in range(begin, begin + 4 * length, 4)]


def tflite(raw: bytes, name: str) -> dict[str, str]:
    """The texts of a TFLite file that holds together.

    Raises:
        BundleError: It does not, holds weights elsewhere, or operators that an embedding model
            does not need.
    """
    try:
        if len(raw) > MAX_BYTES or raw[4:8] != b"TFL3":
            raise Bad(f"{len(raw)} bytes that do not begin as a TFLite file")
        flat = _Flat(raw)
        return _tflite(flat, flat.table(flat.at("I", 0)))
    except (Bad, struct.error, ValueError, RecursionError, OverflowError) as error:
        raise refused(name, error) from error


def _tflite(flat: _Flat, model: int) -> dict[str, str]:
    codes = [_tflite_code(flat, code) for code in flat.tables(model, 1)]
    buffers = [_tflite_buffer(flat, buffer) for buffer in flat.tables(model, 4)]
    graphs = flat.tables(model, 2)
    if not 1 <= len(graphs) <= MAX_DEPTH:
        raise Bad(f"{len(graphs)} graphs")
    counts = [_tflite_graph(flat, graph, codes, buffers) for graph in graphs]
    flat.text(model, 3)
    if any(not 0 <= b < len(buffers) for b in flat.numbers(model, 5)):
        raise Bad("texts in a buffer that is not there")
    for signature in flat.tables(model, 7):
        graph = flat.scalar(signature, 4, "I")
        flat.text(signature, 2)
        for side in (0, 1):
            for entry in flat.tables(signature, side):
                flat.text(entry, 0)
                if graph >= len(graphs) or flat.scalar(entry, 1, "I") >= counts[graph]:
                    raise Bad("a signature of a tensor that is not there")
    return _tflite_texts(flat, model, buffers)


def _tflite_texts(flat: _Flat, model: int, buffers: list[tuple[int, int]]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for entry in flat.tables(model, 6):
        at = flat.scalar(entry, 1, "I")
        if at >= len(buffers):
            raise Bad("texts in a buffer that is not there")
        begin, length = buffers[at]
        if flat.text(entry, 0) == b"hetero":
            if length > MAX_TEXT_BYTES:
                raise Bad(f"more than {MAX_TEXT_BYTES} bytes of texts")
            found = json.loads(flat.raw[begin : begin + length])
            if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
                raise Bad("texts that are none")
            texts |= found
    return texts


def _tflite_code(flat: _Flat, code: int) -> int:
    flat.text(code, 1)
    number = max(flat.scalar(code, 0, "b"), flat.scalar(code, 3, "i"))
    if number in _TFLITE_NEVER:
        raise Bad(f"the operator {number}, which an embedding model does not need")
    return number


def _tflite_buffer(flat: _Flat, buffer: int) -> tuple[int, int]:
    # 0 and 1 both say that nothing is stored after the flatbuffer.
    if flat.scalar(buffer, 1, "Q") > 1 or flat.scalar(buffer, 2, "Q") > 1:
        raise Bad("weights outside of the flatbuffer, which no exporter of ours writes")
    return flat.vector(buffer, 0, 1)


def _tflite_graph(flat: _Flat, graph: int, codes: list[int], buffers: list[tuple[int, int]]) -> int:
    """Number of tensors of a graph whose indices and sizes are right."""
    tensors = flat.tables(graph, 0)
    for tensor in tensors:
        _tflite_tensor(flat, tensor, buffers)
    count = len(tensors)

    def known(indices: tuple[int, ...], least: int) -> None:
        if any(not least <= i < count for i in indices):
            raise Bad(f"a tensor that is not there: {sorted(indices)[-1]} of {count}")

    known(flat.numbers(graph, 1), 0)
    known(flat.numbers(graph, 2), 0)
    flat.text(graph, 4)
    operators = flat.tables(graph, 3)
    if len(operators) > MAX_NODES:
        raise Bad(f"more than {MAX_NODES} operations")
    for operator in operators:
        if flat.scalar(operator, 0, "I") >= len(codes):
            raise Bad("an operator that is not there")
        known(flat.numbers(operator, 1), -1)
        known(flat.numbers(operator, 2), 0)
        known(flat.numbers(operator, 8), -1)
        flat.vector(operator, 5, 1)
        flat.vector(operator, 7, 1)
        if flat.scalar(operator, 9, "Q") > 1 or flat.slot(operator, 12, 4):
            raise Bad("options outside of the flatbuffer, or of StableHLO")
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
        raise Bad(f"tensor {name!r} of shape {list(shape[:17])}")
    elements = math.prod(shape)
    if elements > MAX_ELEMENTS:
        raise Bad(f"tensor {name!r} of shape {list(shape)}: more than would fit")
    if kind not in _TFLITE_BITS:
        raise Bad(f"tensor {name!r} of type {kind}, which an embedding model does not need")
    if at >= len(buffers):
        raise Bad(f"tensor {name!r} in a buffer that is not there")
    stored = buffers[at][1]
    if stored and stored != math.ceil(elements * _TFLITE_BITS[kind] / 8):
        raise Bad(f"tensor {name!r}: {stored} bytes for a shape of {list(shape)}")
    if flat.slot(tensor, 6, 4) or flat.slot(tensor, 9, 4):
        raise Bad(f"tensor {name!r} is sparse or a variant, which no exporter of ours writes")
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
            raise Bad(f"tensor {name!r}: {scales} scales and {zeros} zero points")
        if scales > 1 and shape[axis] != scales:
            raise Bad(f"tensor {name!r}: {scales} scales for {shape[axis]} channels")
        if flat.slot(quantised, 5, 4):
            raise Bad(f"tensor {name!r}: quantised in a way of its own")
