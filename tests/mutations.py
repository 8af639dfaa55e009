"""Mutations of valid files: of their bytes, and of the JSON within; and a watch over what reading one does."""

import copy
import json
import os
import signal
import sys

import numpy as np
from crafted import parts_of, write
from fuzz import bounded_memory

# `make test-faults` sets it: that many inputs for each reader.
INPUTS = int(os.environ.get("KPRUNE_INPUTS", "0"))
NAMES = [
    *("os", "posix", "subprocess", "builtins", "importlib", "sys", "keras", "keras.layers", "keras.utils", "tf_keras"),
    *("system", "exec", "eval", "popen", "import_module", "get_file", "load_model", "deserialize", "function"),
    *("Lambda", "TFOpLambda", "Functional", "Sequential", "Dense", "Zeros", "relu", "__lambda__", "__typespec__"),
    *("__tensor__", "__numpy__", "PruneLowMagnitude", "kprune>Masked", "builtins>exec", "io.write_file", "math.add"),
    *("keras.src.engine.functional", "keras.layers.Dense", "Dense.from_config", "", "\0", "\uff4f\uff53", "x" * 500),
]
# No large numbers: how large a model may be, no file's size tells.
VALUES = [None, True, False, 0, -1, 7, 1.5, float("nan"), "", [], {}, [[]], {"a": 1}, [None, 4], ["x", 0, 0]]
# What a program does that reading a file may not.
_EVENTS = {"os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "urllib.Request"}
# Seconds after which a reader, which takes milliseconds, will not come to an end.
_HANGS = 300
_seen = None


def _audit(event, arguments):
    if _seen is not None and event in _EVENTS:
        _seen.append((event, arguments))


sys.addaudithook(_audit)


class Hangs(BaseException):
    """A reader did not come to an end; no `except Exception` of its own keeps this."""


def _hangs(*_):
    raise Hangs


signal.signal(signal.SIGALRM, _hangs)


class Watch:
    """What happened inside that must not: programs started, connections made."""

    def __enter__(self):
        global _seen
        _seen = []
        return _seen

    def __exit__(self, *_):
        global _seen
        _seen = None


def damaged_bytes(data, rng):
    """A few bits flipped, bytes overwritten, a piece cut out, the end cut off, or a piece put in twice."""
    data = bytearray(data)
    kind = rng.integers(5)
    if kind == 0 or len(data) < 8:
        for position in rng.integers(max(len(data), 1), size=rng.integers(1, 9)) if data else ():
            data[position] ^= 1 << int(rng.integers(8))
        return bytes(data)
    start = int(rng.integers(len(data)))
    length = int(rng.integers(1, 1 + min(64, len(data) - start)))
    if kind == 1:
        data[start : start + length] = bytes(rng.choice([0, 1, 0x7F, 0x80, 0xFF], length).astype(np.uint8))
    elif kind == 2:
        del data[start : start + length]
    elif kind == 3:
        del data[start:]
    else:
        data[start:start] = data[start : start + length]
    return bytes(data)


def damaged_json(value, rng, entries=()):
    """The value with one to three of its nodes exchanged: for another, a name, a number, or one of `entries`."""
    value = copy.deepcopy(value)
    for _ in range(rng.integers(1, 4)):
        nodes = list(_nodes(value))
        holder, key = nodes[rng.integers(len(nodes))]
        kind = rng.integers(6)
        if kind == 0:
            del holder[key]
        elif kind == 1:
            holder[key] = copy.deepcopy(VALUES[rng.integers(len(VALUES))])
        elif kind == 2 and entries:
            holder[key] = copy.deepcopy(entries[rng.integers(len(entries))])
        elif kind == 3:
            other, its = nodes[rng.integers(len(nodes))]
            holder[key] = copy.deepcopy(other.get(its)) if isinstance(other, dict) else None
        else:
            named = [(h, k) for h, k in nodes if k in ("class_name", "module", "registered_name", "function")]
            holder, key = named[rng.integers(len(named))] if named and kind == 4 else (holder, key)
            holder[key] = NAMES[rng.integers(len(NAMES))]
        if not value:
            break
    return value


def _nodes(value):
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _nodes(value[key])


def damaged_keras_file(path, source, rng, entries=()):
    """Write a mutation of a `.keras` file: of its bytes, or of one of its members, packed anew."""
    kind = rng.integers(8)
    if kind < 2:
        path.write_bytes(damaged_bytes(source.read_bytes(), rng))
        return
    parts = parts_of(source)
    name = {2: "metadata.json", 3: "model.weights.h5", 4: "model.weights.h5"}.get(int(kind), "config.json")
    if kind >= 5:
        # From a valid config, or from one that runs code; the first is what a hostile one would be hidden in.
        valid = not entries or rng.integers(2)
        config = json.loads(parts[name]) if valid else entries[rng.integers(len(entries))]
        parts[name] = json.dumps(damaged_json(config, rng, entries)).encode()
    else:
        parts[name] = damaged_bytes(parts[name], rng)
    write(path, parts)


def survives(read, path, inputs, seed, make):
    """Read `inputs` mutations that `make(rng)` writes to `path`: a report, or a ValueError that names the file.

    Returns a line for the table: how many were refused, how many could be read, and the memory that one took at most.
    """
    refused, most = 0, 0
    for number in range(inputs):
        rng = np.random.default_rng([seed, number])
        make(rng)
        with bounded_memory() as taken, Watch() as seen:
            try:
                signal.alarm(_HANGS)
                read(path)
            except ValueError as error:
                assert str(error).endswith(f"Received: path={str(path)!r}"), f"input {number}: {error}"
                refused += 1
            except BaseException as error:
                raise AssertionError(f"input {number} of seed {seed}: {error!r}") from error
            finally:
                signal.alarm(0)
        assert not seen, f"input {number} of seed {seed}: {seen}"
        most = max(most, *taken)
    return (
        f"{inputs:,} inputs (seed {seed}), {inputs:,} survived: {refused:,} refused, {inputs - refused:,} read, "
        f"{most / 1e6:,.0f} MB at most for one"
    )
