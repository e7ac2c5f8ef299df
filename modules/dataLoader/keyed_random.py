import hashlib
import json
import random


def keyed_random(*key: str | int) -> random.Random:
    """A random generator that depends on `key` alone: not on threads, on order of calls, or on the machine."""
    text = json.dumps(key, ensure_ascii=True, separators=(",", ":"))
    return random.Random(int.from_bytes(hashlib.sha256(text.encode()).digest(), "big"))
