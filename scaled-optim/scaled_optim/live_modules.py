"""Finds the models that parameters belong to, for programs that hand an optimizer parameters and nothing else."""

import gc
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from scaled_optim.description import describe
from scaled_optim.roles import parameter_info

from torch import nn


class LiveDescriptions:
    """Describes parameters by the structure of the models that they are part of, among all that are in memory.

    Called with a parameter: its `parameter_info`, else what `describe` says of the largest model that holds it, else
    None. Models are looked for once for all parameters that `look_for` is given.
    """

    def __init__(self) -> None:
        self._found: dict[nn.Parameter, Any] = {}

    def __call__(self, parameter: nn.Parameter) -> Any:
        info = parameter_info(parameter)
        return self._found.get(parameter) if info is None else info

    def look_for(self, parameters: Iterable[nn.Parameter]) -> None:
        """Finds the models of those parameters that are not known yet; takes a fraction of a second."""
        wanted = [p for p in parameters if isinstance(p, nn.Parameter) and parameter_info(p) is None]
        wanted = [p for p in wanted if p not in self._found]
        if not wanted:
            return
        self._found |= dict.fromkeys(wanted)
        for model in _models_of(wanted):
            for parameter, info in describe(model).items():
                if parameter in self._found and self._found[parameter] is None:
                    self._found[parameter] = info


def _models_of(parameters: Iterable[nn.Parameter]) -> list[nn.Module]:
    """The outermost modules that hold any of the parameters, those with most of them first."""
    ids = {id(parameter) for parameter in parameters}
    # `type` asks nothing of the object, as proxies that load what they stand for would answer `isinstance` by loading
    modules = [thing for thing in gc.get_objects() if issubclass(type(thing), nn.Module)]
    parents: dict[int, list[nn.Module]] = defaultdict(list)
    owners: dict[int, int] = {}
    for module in modules:
        # a module that is being made has none of these yet
        for child in (module.__dict__.get("_modules") or {}).values():
            parents[id(child)].append(module)
        held = sum(id(parameter) in ids for parameter in (module.__dict__.get("_parameters") or {}).values())
        if held:
            owners[id(module)] = held
    by_id = {id(module): module for module in modules}
    counts: dict[int, int] = defaultdict(int)
    for owner, held in owners.items():
        for top in _tops(owner, parents):
            counts[top] += held
    order = sorted(counts, key=lambda top: (-counts[top], type(by_id[top]).__qualname__))
    return [by_id[top] for top in order]


def _tops(start: int, parents: dict[int, list[nn.Module]]) -> set[int]:
    """Ids of the modules without parents that hold a module, itself if nothing does."""
    found, seen, open_ids = set(), set(), [start]
    while open_ids:
        here = open_ids.pop()
        if here in seen:
            continue
        seen.add(here)
        above = parents.get(here, [])
        if not above:
            found.add(here)
        open_ids += [id(module) for module in above]
    return found
