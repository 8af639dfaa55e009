"""Indexes of checkpoints made by hand, with right checksums, so that TensorFlow goes by what they say."""

import struct

from kprune.report.checkpoint_index import _entries


def _table():
    made = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ 0x82F63B78 if value & 1 else value >> 1
        made.append(value)
    return made


_CRC = _table()


def checksum(data):
    """CRC-32C, masked as LevelDB and TensorFlow write it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC[(crc ^ byte) & 255] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def number(value):
    digits = b""
    while value > 127:
        digits, value = digits + bytes([value & 127 | 128]), value >> 7
    return digits + bytes([value])


def _block(entries):
    body, starts = bytearray(), []
    for key, value in entries:
        starts.append(len(body))
        body += number(0) + number(len(key)) + number(len(value)) + key + value
    starts = starts or [0]
    return bytes(body) + struct.pack(f"<{len(starts) + 1}I", *starts, len(starts))


def table(entries):
    """The bytes of an index with these keys and values, sorted."""
    data = _block(entries)
    return blocks_of(data, [(entries[-1][0] + b"z", number(0) + number(len(data)))])


def blocks_of(data, handles):
    """The bytes of an index of one block, and what is said of where blocks lie."""
    written = b""

    def put(block):
        nonlocal written
        handle = number(len(written)) + number(len(block))
        written += block + b"\0" + struct.pack("<I", checksum(block + b"\0"))
        return handle

    put(data)
    unused, last = put(_block([])), put(_block(handles))
    return written + (unused + last).ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def edit(folder, change):
    """Have `change(key, entry)` edit the entries (BundleEntryProto) of a SavedModel's index; it may return bytes."""
    from tensorflow.core.protobuf.tensor_bundle_pb2 import BundleEntryProto

    path = folder / "variables" / "variables.index"
    entries = []
    for key, value in _entries(path.read_bytes()):
        entry = BundleEntryProto.FromString(value)
        other = change(key, entry) if key else value
        entries.append((key, other if isinstance(other, bytes) else entry.SerializeToString()))
    path.write_bytes(table(entries))


def replace_graph(folder, graph):
    """Put another graph of objects into a SavedModel."""
    data = folder / "variables" / "variables.data-00000-of-00001"
    start, size = data.stat().st_size, struct.pack("<I", len(graph))
    lengths = struct.pack("<I", checksum(size))
    body = number(len(graph)) + lengths + graph
    data.write_bytes(data.read_bytes() + body)

    def change(key, entry):
        if key == b"_CHECKPOINTABLE_OBJECT_GRAPH":
            entry.offset, entry.size, entry.crc32c = start, len(body), checksum(size + lengths + graph)

    edit(folder, change)
