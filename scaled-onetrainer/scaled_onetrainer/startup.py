"""Starts the plugin. `scaled_onetrainer.pth` imports this with every Python of the environment, so it loads nothing."""

import os
import sys

from scaled_onetrainer import SWITCH

# the values of the variable that switch it off
OFF = ("0", "off", "false", "no")


def switched_off() -> bool:
    """Whether the environment says that OneTrainer is to run without the plugin."""
    return os.environ.get(SWITCH, "").strip().lower() in OFF


def start() -> None:
    """Puts the finder first in line, unless it is there or the plugin is switched off."""
    if switched_off():
        return
    from scaled_onetrainer.HookFinder import HookFinder

    if not any(isinstance(finder, HookFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, HookFinder())


start()
