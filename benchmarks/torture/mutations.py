"""Structure-aware damage: configs, tensor files, pictures and captions that are nearly sound.

Each function takes a `random.Random`, so that a seed, or hypothesis, decides everything.
"""

import json
import random
import struct
from collections.abc import Callable
from typing import Any

from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.field_type import field_type, option_of
from modules.util.config.TrainConfig import TrainConfig

# places to write are named below the trial's own folder alone: a run as root could harm real ones
WRITTEN = ("workspace_dir", "cache_dir", "output_model_destination", "debug_dir", "quantization")
BAD_NUMBERS = (
    0, -1, 1, 2, 3, 10**6, 10**9, 10**18, 10**40, -(10**18), 0.5, -0.0, 1e-320, 1e308, -1e308, "inf", "nan", "1e400",
)  # fmt: skip
BAD_TEXTS = (
    "", " ", "   ", "\n", "\0", "a\0b", "../..", "a/../../b", "~", "~nobody/x", "con", "aux.txt", "x" * 5000, "é" * 300,
    "\u202e", "\ufeff", "%s%n", "{0}", "${HOME}", "$(id)", "'; --", "<|endoftext|>", "(a+)+$", "[", "(?P<x", "\\", "*",
    "**", "?", "a,,b", ",", "\t", "1", "true", "null", "-1", "🙂" * 50, "\\d{1,2}", "x{1,99999}", "no such", "\x1b[31m",
    "a" * 200 + "/b",
)  # fmt: skip
BAD_VALUES: tuple[Callable[[random.Random], Any], ...] = (
    lambda rng: rng.choice(BAD_NUMBERS), lambda rng: rng.choice(BAD_TEXTS), lambda rng: rng.choice((True, False, None)),
    lambda rng: [rng.choice(BAD_TEXTS) for _ in range(rng.randrange(4))], lambda rng: [[[[[]]]]],
    lambda rng: {rng.choice(BAD_TEXTS): rng.choice(BAD_NUMBERS)}, lambda rng: [{}, None, 5], lambda rng: {},
    lambda rng: rng.uniform(-10, 10), lambda rng: rng.randint(-5, 200),
)  # fmt: skip


def mutate_config(data: dict[str, Any], rng: random.Random, places: bool = False) -> tuple[dict[str, Any], list[str]]:
    """A config with one to four options that have other values; and which.

    Args:
        data: JSON of a `TrainConfig`.
        places: whether places that are written to may change, too.
    """
    data, changed = json.loads(json.dumps(data)), []
    for _ in range(rng.randint(1, 4)):
        target, config_class, path = data, TrainConfig, []
        while True:
            names = [name for name in config_class.model_fields if places or name not in WRITTEN]
            name = rng.choice(names)
            path.append(name)
            kind = field_type(config_class, name)
            inner = kind.kind if kind.is_config else kind.item
            if inner is None or rng.random() < 0.25:
                target[name] = _value(config_class, name, rng)
                break
            # an earlier change may have put something else there
            if kind.kind is list:
                known = target.get(name)
                target[name] = known if isinstance(known, list) and known else [{}]
                target, key = target[name], 0
            else:
                target, key = target, name
                if not kind.is_config:
                    target[name] = target.get(name) if isinstance(target.get(name), dict) else {}
                    target, key = target[name], "any"
            if not isinstance(target[key] if isinstance(target, list) else target.get(key), dict):
                target[key] = {}
            target, config_class = target[key], inner
        changed.append(".".join(path))
    if rng.random() < 0.05:
        data[rng.choice(BAD_TEXTS)] = rng.choice(BAD_VALUES)(rng)
    return data, changed


def _value(config_class: type[BaseConfig], name: str, rng: random.Random) -> Any:
    """Mostly one of the option's own kind, as others are refused at once."""
    kind, declared = field_type(config_class, name), option_of(config_class, name)
    chance = rng.random()
    if chance < 0.15:
        return rng.choice(BAD_VALUES)(rng)
    if kind.is_enum:
        return rng.choice(kind.values)
    if kind.kind is bool:
        return rng.random() < 0.5
    if kind.kind is int:
        bounds = [bound for bound in (declared.ge, declared.le) if bound is not None]
        return rng.choice([*map(int, bounds), rng.randint(-3, 300), *(n for n in BAD_NUMBERS if isinstance(n, int))])
    if kind.kind is float:
        return rng.choice([rng.uniform(0, 1), rng.uniform(-10, 1000), *BAD_NUMBERS])
    if kind.kind is str:
        return rng.choice(declared.choices or BAD_TEXTS) if chance < 0.4 else rng.choice(BAD_TEXTS)
    return rng.choice(BAD_VALUES)(rng)


def mutate_text(data: bytes, rng: random.Random) -> bytes:
    """Bytes of JSON or a caption with pieces cut, doubled, replaced or put in."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 5)):
        start = rng.randrange(len(found) + 1)
        stop = min(len(found), start + rng.choice((1, 2, 8, 64)))
        piece = bytes(found[start:stop])
        extra = (
            b"\xff\xfe", b"\x00", b"\xef\xbb\xbf", b"{", b"[" * 200, b"}", b'"', b",", b"1e999", b"\\ud800", b"\r",
            b"\n\n", "\u2028".encode(), "\u0085".encode(), rng.randbytes(8), b"NaN", b"\x1a",
        )  # fmt: skip
        found[start:stop] = rng.choice((b"", piece * 3, rng.choice(extra), bytes(byte ^ 1 for byte in piece)))
    return bytes(found)


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Bytes with a few flipped, a part cut off, doubled or zeroed."""
    found = bytearray(data)
    kind = rng.randrange(5)
    if kind == 0 and found:
        for _ in range(rng.randint(1, 8)):
            found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del found[rng.randrange(len(found) + 1) :]
    elif kind == 2:
        start = rng.randrange(len(found) + 1)
        found[start:start] = found[start : start + rng.randint(1, 64)]
    elif kind == 3:
        start = rng.randrange(len(found) + 1)
        length = min(len(found) - start, rng.randint(1, 256))
        found[start : start + length] = bytes(length)
    else:
        # numbers of four bytes near the start are lengths and sizes in most formats
        start = rng.randrange(min(len(found), 64) + 1)
        found[start : start + 4] = struct.pack(rng.choice("<>") + "I", rng.choice((0, 1, 2**31, 2**32 - 1, 65536)))
    return bytes(found)


def mutate_safetensors(data: bytes, rng: random.Random) -> bytes:
    """A tensor file whose header says something else than it should, or whose bytes are damaged."""
    if rng.random() < 0.3:
        return mutate_bytes(data, rng)
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    for _ in range(rng.randint(1, 3)):
        name = rng.choice(list(header))
        entry, kind = header[name], rng.randrange(8)
        if not isinstance(entry, dict):
            # a change before this one has put it there
            kind = 1
        if kind == 0:
            header[rng.choice(BAD_TEXTS)] = header.pop(name)
        elif kind == 1:
            del header[name]
        elif kind == 2:
            header[name.replace(".weight", rng.choice((".bias", ".magnitude", ".weight_mine", "", ".alpha")))] = entry
        elif kind == 3 and "dtype" in entry:
            entry["dtype"] = rng.choice(("F16", "BF16", "F64", "I64", "BOOL", "U8", "F8_E4M3", "C64", "X", 5, None))
        elif kind == 4 and "shape" in entry:
            entry["shape"] = rng.choice(
                ([], [0], [1], [10**12, 10**12], [-1], entry["shape"][::-1], [1, *entry["shape"]], "x")
            )
        elif kind == 5 and "data_offsets" in entry:
            entry["data_offsets"] = rng.choice(([0, 0], [0, len(body) * 2], [10**18, 10**18], [5, 1], [0], None))
        elif kind == 6:
            header["__metadata__"] = rng.choice(({}, {"a": 5}, {"a": "\0"}, [], None, {"ss_network_args": "[" * 5000}))
        else:
            header[f"{name}.more"] = entry
        if not header:
            break
    text = json.dumps(header).encode()
    if rng.random() < 0.1:
        text = mutate_text(text, rng)
    return struct.pack("<Q", rng.choice((len(text), len(text), len(text), 0, 2**63, len(text) + 9))) + text + body
