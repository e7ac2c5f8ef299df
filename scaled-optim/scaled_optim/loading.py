"""Which saved entry belongs to which parameter, strictly by place or by name, and what is said of it."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scaled_optim.batching import Member

VERSION = 1
# of a parameter group: the mark of the engine, and in a saved one what all groups share
MARK = "engine"
STRICT, FRESH = "error", "fresh"
SHOWN = 3


@dataclass
class Plan:
    """What is to be taken from a saved state.

    Attributes:
        entries: saved entry by the parameter's place.
        rates: learning rate by the group's number, for those groups that take one.
        note: one line on what was taken and what not; None if all was.
    """

    entries: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    rates: dict[int, Any] = field(default_factory=dict)
    note: str | None = None


def facts_of(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """What all parameters share: `version`, `rule`, `seed`, `closed`, `totals`.

    torch.distributed.checkpoint keeps nothing but `state` and `param_groups`, so each group has them, too.

    Raises:
        ValueError: it is the state of another optimizer, or of another version.
    """
    groups = state.get("param_groups") or [{}]
    facts = state if "version" in state else groups[0].get(MARK)
    if facts is None:
        raise ValueError(
            "optimizer state: found no mark of this engine, expected what its own state_dict() gave: it is another "
            "optimizer's. Start without it, or load it into the optimizer that saved it."
        )
    if facts.get("version") != VERSION:
        raise ValueError(f"optimizer state: found version {facts.get('version')}, expected {VERSION}.")
    return facts


def entry_of(state: Mapping[str, Any], key: int | str) -> Mapping[str, Any] | None:
    """The saved entry of a parameter; None: there is none.

    torch.distributed.checkpoint loads tensors in place, but puts a number of `state[0]` under `state["0"]`.
    """
    entries = state["state"]
    texts = entries.get(str(key)) if isinstance(key, int) else None
    if key not in entries:
        return texts
    return entries[key] if texts is None else merged(entries[key], texts)


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Both, at every depth; where both have a value that of `new`."""
    both = {
        key: merged(old[key], value) if isinstance(value, Mapping) and key in old else value
        for key, value in new.items()
    }
    return {**old, **both}


def saved_names(state: Mapping[str, Any]) -> list[list[str | None]]:
    """Names of the parameters of each saved group, None where the file knows none."""
    found = []
    for group in state["param_groups"]:
        keys = group["params"]
        if all(isinstance(key, str) for key in keys):
            # a helper has put names in the place of numbers
            found.append(list(keys))
        elif len(group.get("param_names") or ()) == len(keys):
            found.append(list(group["param_names"]))
        else:
            # states of before named each entry, and those without a name by their place
            entries = [entry_of(state, key) or {} for key in keys]
            names = [entry.get("name") for entry in entries]
            found.append([None if name == f"parameter {key}" else name for key, name in zip(keys, names, strict=True)])
    return found


def check_groups(state: Mapping[str, Any], names: Sequence[Sequence[str | None]]) -> None:
    """ValueError unless the saved groups are those of the optimizer, whose parameters have these names."""
    found = saved_names(state)
    sizes, expected = [len(group) for group in found], [len(group) for group in names]
    saved, own = ([name for group in groups for name in group] for groups in (found, names))
    known = None not in saved and None not in own
    if sizes != expected:
        changes = f" {difference(own, saved)}" if known else ""
        raise ValueError(
            f"optimizer state: found groups of {sizes} parameters, expected {expected}.{changes} "
            f'load_state_dict(…, missing="{FRESH}") takes what fits by name.'
        )
    if known and saved != own and set(saved) == set(own):
        raise ValueError(
            f"optimizer state: found the same parameters in another order ({listed(saved)}), expected "
            f'{listed(own)}. load_state_dict(…, missing="{FRESH}") goes by name.'
        )


def difference(own: Sequence[str], saved: Sequence[str]) -> str:
    """One line on which names are new and which are gone."""
    new, gone = [n for n in own if n not in set(saved)], [n for n in saved if n not in set(own)]
    texts = [f"{word}: {listed(names)}" for word, names in (("new", new), ("gone", gone)) if names]
    return f"{'; '.join(texts)}." if texts else ""


def listed(names: Sequence[str]) -> str:
    """The first few of them."""
    return f"{', '.join(names[:SHOWN])}{f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''}"


def entries_by_name(state: Mapping[str, Any], own: Sequence[str | None]) -> dict[str, tuple[int, Mapping[str, Any]]]:
    """The saved group and entry of each name.

    Raises:
        ValueError: a parameter has no name here or there, or two have the same.
    """
    found: dict[str, tuple[int, Mapping[str, Any]]] = {}
    names = saved_names(state)
    for where, given in (("here", list(own)), ("in the file", [name for group in names for name in group])):
        twice = {name for name in given if given.count(name) > 1} if len(set(given)) < len(given) else set()
        if None in given or twice:
            what = f"parameter {given.index(None)} without a name" if None in given else f"{sorted(twice)[0]} twice"
            raise ValueError(
                f'optimizer state, missing="{FRESH}": it goes by name, found {what} {where}. Make the optimizer of '
                "model.named_parameters(), and save with that."
            )
    for number, (group, given) in enumerate(zip(state["param_groups"], names, strict=True)):
        for key, name in zip(group["params"], given, strict=True):
            entry = entry_of(state, key)
            if entry is not None:
                found[name] = number, entry
    return found


def plan_by_name(
    members: Sequence[Member],
    saved: Mapping[str, tuple[int, Mapping[str, Any]]],
    fits: Callable[[Member, Mapping[str, Any]], bool],
    state: Mapping[str, Any],
    rule: str,
) -> Plan:
    """What parameters find under their names. A group takes the rate of the saved one that all it found was in."""
    plan, sources, other = Plan(), defaultdict(set), []
    for member in members:
        if member.name not in saved:
            continue
        number, entry = saved[member.name]
        if fits(member, entry):
            plan.entries[member.place] = entry
            sources[member.group].add(number)
        else:
            other.append(member.name)
    for group, numbers in sources.items():
        if len(numbers) == 1:
            plan.rates[group] = state["param_groups"][numbers.pop()]["lr"]
    changes = difference([member.name for member in members], list(saved))
    if changes or other:
        misfit = f" of another rule or with other options, so begun afresh: {listed(other)};" if other else ""
        plan.note = (
            f"optimizer state of {rule}: taken for {len(plan.entries)} of {len(members)} parameters;{misfit} {changes}"
        ).rstrip("; ")
    return plan
