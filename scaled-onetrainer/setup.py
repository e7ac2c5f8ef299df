"""Puts the file that starts the plugin with Python beside the package; everything else is said in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

STARTER = "scaled_onetrainer.pth"


class BuildWithStarter(build_py):
    """A wheel installs what lies at the top of it into site-packages, where Python reads `.pth` files."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            Path(self.build_lib).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(STARTER, Path(self.build_lib) / STARTER)


setup(cmdclass={"build_py": BuildWithStarter})
