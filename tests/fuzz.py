"""Damaged and hostile files: mutations of valid ones, drawn from a seed, and the memory that they take a reader."""

import io
import json
import os
import struct
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from kprune.runtime import files

# `make test-faults` sets it.
INPUTS = int(os.environ.get("KPRUNE_FUZZ", "100"))
MOST_MEMORY = 300e6

DEEP = "[" * 50_000 + "]" * 50_000
WORDS = (*(None, True, -1, 2**70, float("nan"), 1e400, "", "x" * 5000, "\0", "é/\ud800"), *([], {}, [[]], {"": None}))
DTYPES = ("object", "str", "V1000000000", "float9", "f4,f4", "O", "", "bool", "float64", "int8", "datetime64", 5, None)
SHAPES = ([-1], [10**18], [2**70], [0] * 40, [0, 10**18], [], [1.5], "12", [True], [10**9] * 30, [[1]], None)
CELLS = (
    *("nan", "-1", "7", "inf", "1e999", "", "-0", "x" * 200_000, "\0", "9" * 5000, "\u0663", "0x1", "1_0", '"', "\n"),
    *("None", "dense", "1.5", "1e-9", "é", ",", "=1+1", "10.0"),
)


@contextmanager
def bounded_memory():
    """Inside, the process takes less than `MOST_MEMORY` bytes above what it has at the start, at any time.

    It yields a list, in which the number of bytes that were taken is put at the end.
    """
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is now what it has
    start, taken = _highest(), []
    yield taken
    taken.append(_highest() - start)
    assert taken[0] < MOST_MEMORY, f"{taken[0] / 1e6:,.0f} MB were taken"


def _highest():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def damaged(rng, whole):
    """Bits flipped, or a part cut out, doubled or zeroed."""
    data, kind = bytearray(whole), rng.integers(6)
    start, stop = sorted(rng.integers(0, len(data) + 1, 2))
    if kind < 2:
        for place in rng.integers(0, len(data), rng.integers(1, 9)):
            data[place] ^= 1 << rng.integers(8)
    elif kind == 2:
        del data[start:]
    elif kind == 3:
        del data[start:stop]
    elif kind == 4:
        data[start:start] = data[start:stop]
    else:
        data[start:stop] = bytes(stop - start)
    return bytes(data)


def hostile_json(rng, value):
    """The value with one of its parts, however deep, replaced or removed; or a word of JSON that is none of it."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not keys or rng.random() < 0.2:
        return pick(rng, WORDS)
    changed, key = dict(value) if isinstance(value, dict) else list(value), keys[rng.integers(len(keys))]
    if rng.random() < 0.2:
        del changed[key]
    elif rng.random() < 0.1 and isinstance(changed, dict):
        changed["more"] = changed.pop(key)
    else:
        changed[key] = hostile_json(rng, value[key])
    return changed


def pick(rng, choices):
    return choices[rng.integers(len(choices))]


def hostile_npz(rng, whole):
    """A file of `kprune.runtime.files.pack` made hostile, in one of the ways that a checksum does or does not find."""
    kind = rng.random()
    if kind < 0.3:
        return damaged(rng, whole)
    arrays, about = files.unpack(whole, "valid")
    if kind < 0.4:
        return files.pack(_other_arrays(rng, arrays), about)
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    if kind < 0.7:
        members = _other_description(rng, members)
    else:
        name = pick(rng, list(members))
        members |= {name: _other_member(rng, members[name])}
        if rng.random() < 0.1:
            members[pick(rng, ["../../up.npy", ".npy", "array0", "array0.npy\0", "é.npy"])] = members.pop(name)
    if kind > 0.97:
        return bomb(members, zeros=int(10 ** rng.uniform(3, 8.8)))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", pick(rng, [zipfile.ZIP_STORED] * 4 + [zipfile.ZIP_DEFLATED])) as archive:
        for name, raw in members.items():
            archive.writestr(name, raw)
    return buffer.getvalue()


def _other_arrays(rng, arrays):
    changed, name = dict(arrays), pick(rng, list(arrays))
    array = changed.pop(name)
    kind = rng.integers(6)
    if kind == 0:
        changed[name] = array.astype(pick(rng, ["float16", "float64", "int64", "bool", "complex64"]))
    elif kind == 1:
        changed[name] = np.concatenate([array.ravel()] * 2)
    elif kind == 2:
        changed[name] = array.reshape(-1, 1)
    elif kind == 3:
        changed[pick(rng, ["", "/", "mask", "other/x", "now/x/y", f"{name}/", "\0"])] = array
    elif kind == 4:
        changed[name] = np.frombuffer(json.dumps(pick(rng, WORDS)).encode(), np.uint8)  # a callback's own JSON
    return changed


def _other_description(rng, members):
    """Another JSON, with the right checksum."""
    stored = {name.removesuffix(".npy"): np.load(io.BytesIO(raw)) for name, raw in members.items()}
    known = json.loads(stored.pop("about.json").tobytes())
    stored.pop("sha256")
    kind, kinds = rng.random(), known["arrays"]
    if kind < 0.4 and kinds:
        name = pick(rng, list(kinds))
        kinds[name] = [pick(rng, DTYPES), kinds[name][1]] if rng.random() < 0.5 else [kinds[name][0], pick(rng, SHAPES)]
    else:
        known = hostile_json(rng, known)
    text = DEEP.encode() if kind > 0.95 else json.dumps(known).encode()
    if kind > 0.99:
        text = b"[" + b"[]," * 5_000_000 + b"0]"
    stored |= {"about.json": np.frombuffer(text, np.uint8), "sha256": np.array(files._checksum(text, stored))}
    return {f"{name}.npy": _npy(array) for name, array in stored.items()}


def _npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _other_member(rng, raw):
    """A .npy with another header of the same length, or damaged."""
    if rng.random() < 0.5 or not raw.startswith(b"\x93NUMPY"):
        return damaged(rng, raw)
    descr = pick(rng, ["|u1", "<U64", "|O", "<f8", "|V1000000000", "<U999999999"])
    shape = pick(rng, ["()", "(1,)", f"({10 ** int(rng.integers(9, 19))},)", "(-1,)", "(99999, 99999, 99999)", "[1]"])
    header = f"{{'descr': {descr!r}, 'fortran_order': {bool(rng.integers(2))}, 'shape': {shape}, }}"
    header = pick(rng, [header] * 9 + ["(" * 117, "-" * 110 + "1", "__import__('os').abort()"])
    return raw[:10] + header.encode().ljust(117)[:117] + b"\n" + raw[128:]


def bomb(members, zeros):
    """A zip archive of these members, compressed, each with zeros behind it: a thousandth of what it unpacks to."""
    body, directory, block = b"", b"", zlib.compressobj(9, zlib.DEFLATED, -15)
    million = block.compress(bytes(10**6)) + block.flush(zlib.Z_FULL_FLUSH)
    for name, raw in members.items():
        writer, size = zlib.compressobj(9, zlib.DEFLATED, -15), len(raw) + 10**6 * (zeros // 10**6)
        if raw.startswith(b"\x93NUMPY\x01\0") and b"'|u1'" in raw[:128]:  # it says that it is as long as it is
            header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({size - 128},), }}"
            raw = raw[:10] + header.encode().ljust(117) + b"\n" + raw[128:]
        data = writer.compress(raw) + writer.flush(zlib.Z_FULL_FLUSH) + million * (zeros // 10**6) + writer.flush()
        known = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 33, 0, len(data), size, len(name.encode()), 0)
        directory += b"PK\1\2\x14\0" + known + bytes(10) + struct.pack("<I", len(body)) + name.encode()
        body += b"PK\3\4" + known + name.encode() + data
    end = struct.pack("<HHHHIIH", 0, 0, len(members), len(members), len(directory), len(body), 0)
    return body + directory + b"PK\5\6" + end


def hostile_csv(rng, whole):
    """A table of runs made hostile."""
    kind = rng.random()
    if kind < 0.3:
        return damaged(rng, whole)
    if kind > 0.998:
        return whole + b"a\n" * 1_000_000
    rows = [line.split(",") for line in whole.decode().splitlines()]
    for _ in range(rng.integers(1, 3)):
        row = pick(rng, rows[1:] if rng.random() < 0.9 else rows)
        if kind < 0.85:
            row[rng.integers(len(row))] = pick(rng, CELLS)
        elif kind < 0.9:
            rows.append(list(row))
        elif kind < 0.95:
            row.append("0.5")
        else:
            row.pop()
    return "\n".join(map(",".join, rows)).encode() + b"\n"
