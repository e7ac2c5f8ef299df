from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from modules.ui.AskWindow import AskWindow
from modules.util.texts import later, tr
from modules.viewModel.paths import portable

if TYPE_CHECKING:
    from modules.ui.App import App


CANCEL, REPLACE = later("Cancel"), later("Replace it")


def write_file(app: "App", begun: str, target: Path, write: Callable[[bool], object], done: str) -> None:
    """Writes a file on a worker's thread, and says so at the foot of the window.

    Args:
        app: the window.
        begun, done: what is said.
        target: is replaced, if it is there, only after a person has agreed.
        write: does it; is given whether the file may be replaced.
    """
    overwrite = target.exists()
    if overwrite:
        question = tr("{file} exists. Replace it?", file=portable(target))
        if AskWindow(app, app.tools, tr("A file is there"), question, (CANCEL, REPLACE)).ask() != REPLACE:
            return
    app.say(begun)
    app.worker.run(lambda: write(overwrite), lambda _: app.say(done), lambda error: app.say(str(error)))
