"""Runs hooks, and says in one line what a checkout has no place for."""

from importlib import import_module
from pathlib import Path
from types import ModuleType

from scaled_onetrainer import SWITCH, __version__
from scaled_onetrainer.checkout import short_commit
from scaled_onetrainer.hook_table import CORE, FEATURE, Hook

# One line for each feature that this checkout has no place for; the factory stops a run that would need it.
BROKEN: dict[str, str] = {}
# The same line of every hook that failed and let the program go on, windows' too.
LOST: dict[str, str] = {}


class HookError(RuntimeError):
    """OneTrainer is not as a hook expects it. The message says what was looked for and not found."""


def place(owner: object, name: str) -> object:
    """An attribute that a hook takes hold of.

    Raises:
        HookError: there is none.
    """
    try:
        return getattr(owner, name)
    except AttributeError:
        raise HookError(f"found no {name} in {getattr(owner, '__name__', owner)}") from None


def run_hook(hook: Hook, module: ModuleType, root: Path) -> None:
    """Runs a hook on a module that was just loaded.

    Raises:
        HookError: nothing would run rightly without the hook.
    """
    try:
        import_module(f"scaled_onetrainer.hooks.{hook.name}").apply(module)
    except HookError as error:
        where = Path(str(module.__file__))
        where = where.relative_to(root) if where.is_relative_to(root) else where
        line = (
            f"scaled-onetrainer {__version__}, OneTrainer {short_commit(root)}, {where}: {error}; this takes "
            f"{hook.gives}. Update scaled-onetrainer, or run without it: {SWITCH}=0."
        )
        if hook.kind == CORE:
            raise HookError(line) from None
        LOST[hook.name] = line
        if hook.kind == FEATURE:
            BROKEN[hook.name] = line
        print(line)
