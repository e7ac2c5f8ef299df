"""ONNX files of a few nodes, written as protobuf."""

from collections.abc import Sequence


def onnx_file(graph: bytes) -> bytes:
    """A ModelProto around the fields of a graph."""
    return entry(1, 8) + entry(8, entry(1, b"") + entry(2, 13)) + entry(7, graph)


def constant(name: str, sides: Sequence[int], data: bytes) -> bytes:
    """A float32 initializer of a graph."""
    counts = b"".join(entry(1, side) for side in sides)
    return entry(5, counts + entry(2, 1) + entry(8, name.encode()) + entry(9, data))


def entry(number: int, value: int | bytes) -> bytes:
    """A field of a message in the encoding of protobuf: a number, or bytes with their length before them."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    low, high = value & 127, value >> 7
    return bytes([low | 128]) + _varint(high) if high else bytes([low])


def node(kind: str, inputs: Sequence[str], output: str, attributes: bytes = b"") -> bytes:
    """A NodeProto in its graph."""
    read = b"".join(entry(1, name.encode()) for name in inputs)
    return entry(1, read + entry(2, output.encode()) + entry(4, kind.encode()) + attributes)


def value(name: str, sides: Sequence[int | str]) -> bytes:
    """A ValueInfoProto of float32, with a batch of any size before these sides; a name is a side of any size."""
    dims = [entry(2, side.encode()) if isinstance(side, str) else entry(1, side) for side in ("batch", *sides)]
    shape = b"".join(entry(1, one) for one in dims)
    return entry(1, name.encode()) + entry(2, entry(1, entry(1, 1) + entry(2, shape)))
