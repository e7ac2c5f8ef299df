"""Starts of this project's scripts by a fork of one process that has imported the libraries: a second, not five.

What is started is a process of its own, child of the one that asked for it: it can be watched, signalled and killed as
any other. Only Linux lets a process become the parent of its helper's children; elsewhere scripts start as always.
Each kind of script is started as always by one test at least, which shows that it finds what it imports.
"""

import array
import ctypes
import inspect
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"
# of Linux's prctl: orphans among the descendants become children of the caller
SET_CHILD_SUBREAPER = 36
# bytes of an order: command line and environment
LONGEST = 1 << 17


class ScriptServer:
    """The process with the libraries. It is started when it is first needed, and ends with this process."""

    def __init__(self) -> None:
        self._channel: socket.socket | None = None
        self._process: subprocess.Popen | None = None

    @contextmanager
    def used(self) -> Iterator[None]:
        """Meanwhile `subprocess.Popen` forks scripts of this project, and starts everything else as always."""
        if sys.platform != "linux":
            yield
            return
        if self._channel is None:
            self._start()
        before, server = subprocess.Popen, self

        class ForkedPopen(before):
            def _execute_child(self, *arguments: Any) -> None:
                own = inspect.signature(before._execute_child).bind(self, *arguments).arguments
                if not _is_script(own["args"]):
                    super()._execute_child(*arguments)
                    return
                pipes = [own[name] for name in ("p2cread", "c2pwrite", "errwrite")]
                streams = [number if pipe == -1 else pipe for number, pipe in enumerate(pipes)]
                env = os.environ if own["env"] is None else own["env"]
                try:
                    self.pid = server.fork(
                        [str(part) for part in own["args"][1:]], dict(env), str(own["cwd"] or os.getcwd()),
                        own["start_new_session"], streams,
                    )  # fmt: skip
                    self._child_created = True
                finally:
                    names = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
                    self._close_pipe_fds(*(own[name] for name in names))

        subprocess.Popen = ForkedPopen
        try:
            yield
        finally:
            subprocess.Popen = before

    def fork(self, argv: list[str], env: dict[str, str], cwd: str, session: bool, streams: list[int]) -> int:
        """Starts a script; returns the number of its process, which is a child of this one.

        Args:
            argv: path of the script and its arguments.
            session: whether it leads a session of its own.
            streams: file descriptors of its standard input, output and error.
        """
        order = json.dumps({"argv": argv, "env": env, "cwd": cwd, "session": session}).encode()
        assert len(order) < LONGEST, len(order)
        _adopt_orphans(True)
        try:
            socket.send_fds(self._channel, [order], streams)
            answer = self._channel.recv(64)
        finally:
            _adopt_orphans(False)
        assert answer, "the process that forks scripts has ended"
        return int(answer)

    def close(self) -> None:
        """Ends it; what it has forked goes on."""
        if self._channel is not None:
            self._channel.close()
            self._process.wait()

    def _start(self) -> None:
        self._channel, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            # what transformers lacks, it would tell whoever runs the tests
            env = {**os.environ, "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
            command = [sys.executable, str(Path(__file__).resolve()), str(other.fileno())]
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, pass_fds=[other.fileno()], env=env, cwd=ROOT
            )


def _is_script(args: Any) -> bool:
    """Whether a command line is Python on a file of `scripts/` or `tests/`, with no options for Python itself."""
    if isinstance(args, (str, bytes, os.PathLike)) or len(args) < 2:
        return False
    script = Path(str(args[1]))
    return str(args[0]) == sys.executable and (script.parent.resolve() == SCRIPTS or ROOT / "tests" in script.parents)


def _adopt_orphans(wished: bool) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(SET_CHILD_SUBREAPER, int(wished), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def serve(channel: socket.socket) -> dict[str, Any]:
    """Forks for each order. Returns the order in each process that is to become a script, and nowhere else."""
    while True:
        message, ancillary, _, _ = channel.recvmsg(LONGEST, socket.CMSG_SPACE(3 * array.array("i").itemsize))
        if not message:
            sys.exit()
        streams = array.array("i")
        streams.frombytes(ancillary[0][2])
        read, write = os.pipe()
        between = os.fork()
        if not between:
            if os.fork():
                # its child is an orphan now, which who ordered it takes over
                os._exit(0)
            os.write(write, str(os.getpid()).encode())
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
            for own in (read, write, *streams):
                os.close(own)
            channel.close()
            return json.loads(message)
        os.waitpid(between, 0)
        channel.send(os.read(read, 64))
        for own in (read, write, *streams):
            os.close(own)


def become(order: dict[str, Any]) -> None:
    """Runs a script in this process as a command line starts it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if order["session"]:
        os.setsid()
    os.environ.clear()
    os.environ.update(order["env"])
    os.chdir(order["cwd"])
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        old = getattr(sys, name)
        stream = open(number, "w" if number else "r", encoding=old.encoding, errors=old.errors, closefd=False)
        if number:
            stream.reconfigure(line_buffering=name == "stderr", write_through=unbuffered)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    script = order["argv"][0]
    sys.path[0], sys.argv = str(Path(script).parent), order["argv"]
    runpy.run_path(script, run_name="__main__")


def main() -> None:
    # Ctrl-C is for whoever runs the tests
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.path.insert(1, str(ROOT))
    from benchmarks.torture.ForkedRun import load_libraries

    load_libraries()
    become(serve(socket.socket(fileno=int(sys.argv[1]))))


if __name__ == "__main__":
    main()
