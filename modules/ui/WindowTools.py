from dataclasses import dataclass

from modules.ui.ChoicePopup import ChoicePopup
from modules.ui.DropTargets import DropTargets
from modules.ui.Theme import Theme
from modules.ui.Tooltip import Tooltip


@dataclass
class WindowTools:
    """What every view of a window shares."""

    theme: Theme
    tooltip: Tooltip
    popup: ChoicePopup
    drops: DropTargets
