from collections.abc import Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from scaled_onetrainer.checkout import is_onetrainer, root_of
from scaled_onetrainer.hook_table import HOOKS, Hook


class HookedLoader(Loader):
    """Loads a module as its own loader does, and then runs the hook.

    Args:
        loader: of the module.
        hook: for it.
        root: of the checkout.
    """

    def __init__(self, loader: Any, hook: Hook, root: Path) -> None:
        self._loader, self._hook, self._root = loader, hook, root

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        # torch and the rest are loaded by OneTrainer's module itself, at the latest
        from scaled_onetrainer.run_hook import run_hook

        run_hook(self._hook, module, self._root)

    def __getattr__(self, name: str) -> Any:
        # what tracebacks, inspect and pickle ask of a loader
        return getattr(self._loader, name)


def hooked_spec(
    fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
) -> ModuleSpec | None:
    """How a module is loaded that has a hook, None: it has none, or is no module of OneTrainer."""
    hook = HOOKS.get(fullname)
    if hook is None:
        return None
    spec = PathFinder.find_spec(fullname, path, target)
    if spec is None or spec.origin is None or spec.loader is None:
        return None
    root = root_of(spec.origin, fullname)
    if not is_onetrainer(root):
        return None
    spec.loader = HookedLoader(spec.loader, hook, root)
    return spec
