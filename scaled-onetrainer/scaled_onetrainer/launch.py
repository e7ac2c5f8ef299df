"""Runs OneTrainer's training script with the plugin at work, for environments without its `.pth`.

A module of its own: children that torch.multiprocessing spawns import it by its name once more, and so start the
plugin, too. They would not import a package's `__main__`.
"""

import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import scaled_onetrainer.startup
from scaled_onetrainer.command import CommandError


def train(root: Path, arguments: list[str]) -> None:
    """Trains as OneTrainer's own script does.

    Args:
        root: of the checkout.
        arguments: of the script, as `--config-path X`.

    Raises:
        CommandError: the environment switches the plugin off.
    """
    if scaled_onetrainer.startup.switched_off():
        raise CommandError(
            f"The environment variable {scaled_onetrainer.SWITCH} switches the plugin off: unset it, or run "
            "OneTrainer's own scripts/train.py."
        )
    scaled_onetrainer.startup.start()
    os.chdir(root)
    script = root / "scripts" / "train.py"
    # the script finds its helpers beside it, as if it had been started
    sys.path.insert(0, str(script.parent))
    sys.argv = [str(script), *arguments]
    spec = spec_from_file_location("train", script)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main()


if __name__ == "__main__":
    # `__main__` has made sure of the folder
    train(Path(sys.argv[1]), sys.argv[2:])
