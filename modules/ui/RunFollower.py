import tkinter as tk
from collections.abc import Callable
from pathlib import Path

from modules.ui.AskWindow import AskWindow
from modules.ui.WindowTools import WindowTools
from modules.util.texts import later, tr
from modules.viewModel.RunController import RunController
from modules.viewModel.Session import RUNS, Session

TICK_MS = 250
STOP, GO_ON, CANCEL = later("Stop and save"), later("Let it go on"), later("Cancel")


class RunFollower:
    """Looks after runs as long as the window is open, whichever tab is shown.

    Args:
        window: over which it asks, and whose timer it uses.
        session: of which runs get their secrets.
        root: below it stands what runs leave behind for the window.
        say: shows a line.
        news: is called when there is something new of a run.

    Attributes:
        controller: starts runs and the queue.
    """

    def __init__(
        self,
        window: tk.Misc,
        tools: WindowTools,
        session: Session,
        root: Path,
        say: Callable[[str], None],
        news: Callable[[], None],
    ) -> None:
        self._window, self._tools, self._session, self._say, self._news = window, tools, session, say, news
        self.controller = RunController(root / RUNS)
        window.after(TICK_MS, self._tick)

    def may_close(self) -> bool:
        """Asks, while a run goes on, what is to become of it. False: the window stays."""
        self.controller.tick()
        if not self.controller.running:
            return True
        question = self.controller.closing_question
        answer = AskWindow(self._window, self._tools, tr("A run goes on"), question, (STOP, GO_ON, CANCEL)).ask()
        if answer == STOP:
            self.controller.pause_queue()
            try:
                self.controller.ask("stop")
            except OSError as error:
                self._say(tr("The run cannot be asked to stop: {error}", error=error))
                return False
        return answer in (STOP, GO_ON)

    def _tick(self) -> None:
        self._window.after(TICK_MS, self._tick)
        self.controller.secrets = self._session.secrets
        if self.controller.tick():
            self._news()
