"""scaled-optim's optimizers and adapters inside an unmodified OneTrainer: see the README of the distribution.

Nothing here loads torch before OneTrainer does: importing this package is part of every start of Python.
"""

# the environment variable that switches the plugin off
SWITCH = "SCALED_ONETRAINER"


def __getattr__(name: str) -> str:
    # importlib.metadata takes longer than all the rest of Python's start
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("scaled-onetrainer")
    except PackageNotFoundError:
        # read from a folder that was not installed
        return "unknown"
