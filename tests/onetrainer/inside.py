"""Runs tests in a Python of their own, inside the stand-in for OneTrainer, whose `modules` are not ours."""

import functools
import importlib.util
import io
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
STAND_IN, ROOT = HERE / "stand_in", HERE.parents[1]
DISTRIBUTIONS = [ROOT / "scaled-optim", ROOT / "scaled-onetrainer"]
INSIDE = "TESTS_RUN_INSIDE"


def environment(**variables: str) -> dict[str, str]:
    """Variables of a Python that finds both distributions, and not our own `modules`."""
    paths = {"PYTHONPATH": os.pathsep.join(map(str, DISTRIBUTIONS)), "PYTHONDONTWRITEBYTECODE": "1"}
    kept = {key: value for key, value in os.environ.items() if key != "SCALED_ONETRAINER"}
    return {**kept, **paths, **variables}


def run_python(*arguments: str, folder: Path = STAND_IN, code: int = 0, **variables: str) -> str:
    """What a Python says, on both its outputs; it has to end with `code`."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment(**variables),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=300,
    )
    assert done.returncode == code, f"ended with {done.returncode}:\n{done.stdout[-3000:]}"
    return done.stdout


class Inside:
    """A Python inside the stand-in that runs the tests of one file; it starts with the first."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._process: subprocess.Popen | None = None

    def run(self, name: str, arguments: dict[str, Any]) -> None:
        """Runs a test by its name. AssertionError: it failed; the message is what happened there."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, str(HERE / "inside.py"), str(self._file)],
                cwd=STAND_IN,
                env=environment(**{INSIDE: "1"}),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        pickle.dump((name, arguments), self._process.stdin)
        self._process.stdin.flush()
        failure = pickle.load(self._process.stdout)
        assert failure is None, f"inside the stand-in:\n{failure}"


@functools.cache
def _inside(file: Path) -> Inside:
    return Inside(file)


def inside(test: Callable[..., None]) -> Callable[..., None]:
    """Lets a test run inside the stand-in, with the plugin at work; imports of the stand-in stand in the test."""
    if INSIDE in os.environ:
        return test

    @functools.wraps(test)
    def run(**arguments: Any) -> None:
        _inside(Path(test.__code__.co_filename)).run(test.__name__, arguments)

    return run


def serve(file: Path) -> None:
    """Runs the tests that come in, one after the other, until there are no more."""
    answers, sys.stdout = sys.stdout.buffer, sys.stderr
    sys.path.insert(0, str(STAND_IN))
    sys.modules["tests.onetrainer.inside"] = sys.modules["__main__"]
    import scaled_onetrainer.startup  # noqa: F401

    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    while True:
        try:
            name, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            with redirect_stdout(io.StringIO()) as said:
                getattr(module, name)(**arguments)
            failure = None
        except BaseException:
            failure = f"{traceback.format_exc()}\nit said:\n{said.getvalue()}"
        pickle.dump(failure, answers)
        answers.flush()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
