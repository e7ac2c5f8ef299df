from pathlib import Path
from typing import TYPE_CHECKING

from modules.ui.AskWindow import AskWindow
from modules.viewModel.RunController import RunController
from modules.viewModel.Session import RUNS

if TYPE_CHECKING:
    from modules.ui.App import App

TICK_MS = 250
STOP, GO_ON, CANCEL = "Stop and save", "Let it go on", "Cancel"


class RunFollower:
    """Looks after runs as long as the window is open, whichever tab is shown.

    Args:
        app: the window.
        root: below it stands what runs leave behind for the window.

    Attributes:
        controller: starts runs and the queue.
    """

    def __init__(self, app: "App", root: Path) -> None:
        self._app = app
        self.controller = RunController(root / RUNS)
        app.after(TICK_MS, self._tick)

    def may_close(self) -> bool:
        """Asks, while a run goes on, what is to become of it. False: the window stays."""
        self.controller.tick()
        if not self.controller.running:
            return True
        question = self.controller.closing_question
        answer = AskWindow(self._app, self._app.tools, "A run goes on", question, (STOP, GO_ON, CANCEL)).ask()
        if answer == STOP:
            self.controller.pause_queue()
            try:
                self.controller.ask("stop")
            except OSError as error:
                self._app.say(f"The run cannot be asked to stop: {error}")
                return False
        return answer in (STOP, GO_ON)

    def _tick(self) -> None:
        app = self._app
        app.after(TICK_MS, self._tick)
        self.controller.secrets = app.session.secrets
        if not self.controller.tick():
            return
        _, view = app.views.get("run", (None, None))
        if view is not None and view.winfo_exists():
            view.news()
        if app.tabs.current != "run":
            app.say(self.controller.model.line)
