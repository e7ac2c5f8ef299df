from __future__ import annotations

import sys

# typing alone takes a third of Python's start; those who check types read this as true
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType


class HookFinder:
    """Finds the modules of OneTrainer that the plugin adds to, so that its hooks run right after they were loaded.

    It is part of every start of Python: whatever takes longer than a look at a name is imported when it is needed.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith("modules."):
            return None
        from scaled_onetrainer.HookedLoader import hooked_spec

        return hooked_spec(fullname, path, target)


def remove() -> None:
    """Takes the finder out of line again; what hooks have done stays."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, HookFinder)]
