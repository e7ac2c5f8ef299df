"""What the window of pictures asks before something is moved, replaced or lost."""

import tkinter as tk

from modules.ui.AskWindow import AskWindow
from modules.ui.WindowTools import WindowTools
from modules.util.texts import tr
from modules.viewModel.PictureEditor import PictureEditor

MINE, THEIRS = "mine", "theirs"


def may_move(parent: tk.Misc, tools: WindowTools, question: str) -> bool:
    """Whether a picture is moved aside, with what belongs to it."""
    move, stay = tr("Move it"), tr("Leave it")
    return AskWindow(parent, tools, tr("Move aside"), question, (stay, move)).ask() == move


def which_counts(parent: tk.Misc, tools: WindowTools, editor: PictureEditor) -> str:
    """Another program has changed the caption that is edited: MINE, THEIRS, or "" for none yet."""
    back, mine, other = tr("Go back"), tr("Keep mine"), tr("Take that one")
    answer = AskWindow(parent, tools, tr("Two captions"), editor.conflict(), (back, mine, other)).ask()
    return {mine: MINE, other: THEIRS}.get(answer, "")


def may_lose(parent: tk.Misc, tools: WindowTools, name: str) -> bool:
    """Whether a caption that could not be saved is given up."""
    stay, lose = tr("Go back"), tr("Lose it")
    question = tr("The caption of {name} is not saved.", name=name)
    return AskWindow(parent, tools, tr("The caption"), question, (stay, lose)).ask() == lose
