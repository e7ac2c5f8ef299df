"""Many choices of `keyed_random` at once, for a run that needs a million of them before its first step.

A generator takes microseconds to be seeded, and Python's lock is held all the while. So other processes draw, and begin
before anybody needs the result. They run this file, which therefore imports nothing but the standard library.
"""

import hashlib
import json
import os
import random
import subprocess
import sys
from array import array
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

Key = Sequence[str | int]

FORMAT = "H"
"""Of a choice, and so at most 65,536 may be chosen from."""

WORTH_A_PROCESS = 20_000
"""Choices that take as long as to start a process, some 0.1 s."""

MOST_PROCESSES = 8


def key_text(key: Key) -> str:
    """What is hashed of a key."""
    return json.dumps(key, ensure_ascii=True, separators=(",", ":"))


def keyed_choices(heads: Sequence[Key], numbers: int, options: int) -> array:
    """`keyed_random(*head, number).choice(range(options))` of each head and each number < numbers, by head."""
    generator, places, found = random.Random(), range(options), array(FORMAT)
    # the class's own method looks at what it is given, which takes as long as to hash
    seed = super(random.Random, generator).seed
    for head in heads:
        begun = hashlib.sha256(f"{key_text(head)[:-1]},".encode())
        for number in range(numbers):
            digest = begun.copy()
            digest.update(b"%d]" % number)
            seed(int.from_bytes(digest.digest(), "big"))
            found.append(generator.choice(places))
    return found


class ChoicesAhead:
    """`keyed_choices` that are drawn while other things are done.

    Args:
        heads, numbers, options: see there.
        processes: that draw; None: one for each core, if there is enough to do. 0: `finish` draws.
    """

    def __init__(self, heads: Sequence[Key], numbers: int, options: int, processes: int | None = None) -> None:
        self._asked = list(heads), numbers, options
        if processes is None:
            processes = min(_cores(), MOST_PROCESSES, len(self._asked[0]) * numbers // WORTH_A_PROCESS)
        size = -(-len(self._asked[0]) // max(1, processes))
        pieces = [self._asked[0][start : start + size] for start in range(0, len(self._asked[0]), size or 1)]
        self._drawn: list[Future[array]] = []
        if processes:
            threads = ThreadPoolExecutor(len(pieces), "choices")
            self._drawn = [threads.submit(_by_process, piece, numbers, options) for piece in pieces]
            threads.shutdown(wait=False)

    def finish(self) -> array:
        """The choices, once they are there."""
        if not self._drawn:
            return keyed_choices(*self._asked)
        found = array(FORMAT)
        for piece in self._drawn:
            found += piece.result()
        return found


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _by_process(heads: Sequence[Key], numbers: int, options: int) -> array:
    """`keyed_choices` by a process of its own; by this one where none can be started."""
    command = [sys.executable or "", "-I", "-S", str(Path(__file__).resolve())]
    told = json.dumps([heads, numbers, options]).encode()
    # what interrupts a run does not interrupt these seconds
    apart = (
        {"creationflags": subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP}
        if sys.platform == "win32"
        else {"start_new_session": True}
    )
    try:
        done = subprocess.run(
            command, input=told, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, **apart
        )
    except (OSError, subprocess.SubprocessError):
        return keyed_choices(heads, numbers, options)
    found = array(FORMAT)
    found.frombytes(done.stdout)
    return found


if __name__ == "__main__":
    sys.stdout.buffer.write(keyed_choices(*json.load(sys.stdin.buffer)).tobytes())
