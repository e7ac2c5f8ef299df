"""scaled-optim's optimizers and adapters inside an unmodified OneTrainer: see the README of the distribution.

Nothing here loads torch before OneTrainer does: importing this package is part of every start of Python.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("scaled-onetrainer")
except PackageNotFoundError:
    # read from a folder that was not installed
    __version__ = "unknown"
