from types import ModuleType


def apply(module: ModuleType) -> None:
    return
