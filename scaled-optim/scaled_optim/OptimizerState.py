import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from scaled_optim.batching import Member
from scaled_optim.copying import packed, unpack
from scaled_optim.loading import (
    FRESH,
    MARK,
    STRICT,
    VERSION,
    Plan,
    check_groups,
    entries_by_name,
    entry_of,
    facts_of,
    plan_by_name,
)
from scaled_optim.OptimizerBatches import OptimizerBatches
from scaled_optim.StateView import StateView

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from typing import Self


class OptimizerState(OptimizerBatches):
    """What an optimizer remembers: read by programs, saved, loaded and copied."""

    @property
    def state(self) -> StateView:
        """`step` and `slots` of each parameter, made when read. Assigning an empty mapping forgets all state."""
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        return StateView(parameters, self._entry, self._forget)

    @state.setter
    def state(self, value: Mapping[nn.Parameter, Any]) -> None:
        if value:
            raise ValueError("state: found entries, expected an empty mapping; load_state_dict() sets state.")
        self._forget()

    def _entry(self, parameter: nn.Parameter) -> dict[str, Any]:
        self._ready()
        batch, index = self._batch_of[parameter]
        return batch.state_of(index)

    def _forget(self) -> None:
        """As before the first step; statistics and what was compiled stay."""
        self._batches, self._batch_of, self._totals, self._layouts = [], {}, {}, []
        self._waiting.clear()
        self._closed, self._settled = 0, -1

    def whole_state_dict(self) -> dict[str, Any] | None:
        """`state_dict()` of all parameters where processes share them or hold parts of them, in the first process; None
        in the others.

        To be called in all of them. It is what one process alone would have, and any number of them loads it.
        """
        own = self.state_dict()
        if self.sharing is None:
            return own
        state = self.sharing.whole_state(self._batches)
        return None if state is None else {**own, "state": state}

    def state_dict(self) -> dict[str, Any]:
        """State by the parameter's place, groups, and what all share. Its tensors are the state, not copies.

        A group holds `param_names` where names are known, and under `engine` what all share, too.
        """
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        self._ready()
        facts = {
            "version": VERSION,
            "rule": self.rule.name,
            "seed": self.seed,
            "closed": self._closed,
            # partial sums that are not closed yet are zero between steps
            "totals": {name: x for name, x in self._totals.items() if not x.ndim or bool(x.any())},
        }
        groups, place, state, members = [], 0, {}, self._members()
        for group in self.param_groups:
            count = len(group["params"])
            rest = {key: value for key, value in group.items() if key != "params"}
            mine = members[place : place + count]
            if "param_names" not in rest and any(member.named for member in members):
                rest["param_names"] = [member.name for member in mine]
            groups.append({**rest, MARK: dict(facts), "params": list(range(place, place + count))})
            state |= {member.place: self._entry(member.parameter) for member in mine}
            place += count
        found = {**facts, "state": state, "param_groups": groups}
        for hook in self._optimizer_state_dict_post_hooks.values():
            changed = hook(self, found)
            found = found if changed is None else changed
        return found

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any], *, missing: str = STRICT) -> None:
        """Takes over state and the groups' learning rates, to the bit. Options stay as they were given to this one, and
        so does the configured rate.

        Args:
            missing: "error": the state must be that of these parameters in these groups. "fresh": each parameter takes
                the state that was saved under its name, if it fits; the others begin as new ones, and one line in
                `notes` says which. State of another rule fits nowhere.

        Raises:
            ValueError: it is of another version, rule or model, or was saved with other options; then nothing changed.
        """
        if missing not in (STRICT, FRESH):
            raise ValueError(f'missing: found {missing!r}, expected "{STRICT}" or "{FRESH}".')
        state_dict = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            changed = hook(self, state_dict)
            state_dict = state_dict if changed is None else changed
        facts = facts_of(state_dict)
        plan = self._strict_plan(state_dict, facts) if missing == STRICT else self._fresh_plan(state_dict, facts)
        for number, lr in plan.rates.items():
            self.param_groups[number]["lr"] = lr.clone() if isinstance(lr, Tensor) else lr
        for member in self._members():
            if member.place in plan.entries:
                batch, index = self._batch_of[member.parameter]
                batch.load_state_of(index, plan.entries[member.place])
        self._load_note = plan.note
        self._waiting.clear()
        if facts["rule"] == self.rule.name:
            self._load_facts(facts, sums=missing == STRICT)
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def _load_facts(self, facts: Mapping[str, Any], sums: bool) -> None:
        """Takes over what all parameters share; `sums`: the partial sums by place, too."""
        self.seed, self._closed, self._settled = facts["seed"], facts["closed"], -1
        for batch in self._batches:
            batch.reseed(self.seed)
        for name, own in self._totals.items():
            saved = facts.get("totals", {}).get(name) if sums or not own.ndim else None
            if saved is not None:
                own.copy_(saved)
            elif sums or own.ndim:
                own.zero_()

    def _strict_plan(self, state: Mapping[str, Any], facts: Mapping[str, Any]) -> Plan:
        if facts["rule"] != self.rule.name:
            raise ValueError(f"optimizer state: found that of {facts['rule']}, expected {self.rule.name}.")
        members = self._members()
        names = [[m.name if m.named else None for m in members if m.group == g] for g in range(len(self.param_groups))]
        check_groups(state, names)
        self._settle()
        plan, keys = Plan(), [key for group in state["param_groups"] for key in group["params"]]
        for member, key in zip(members, keys, strict=True):
            batch, index = self._batch_of[member.parameter]
            entry = entry_of(state, key)
            if entry is not None:
                batch.check_state(index, entry)
                plan.entries[member.place] = entry
            elif member.parameter.requires_grad:
                raise ValueError(f"optimizer state: found nothing of {member.name}, parameter {key}.")
        found, expected = (
            {name: list(x.shape) for name, x in t.items()} for t in (facts.get("totals", {}), self._totals)
        )
        needed = {name for name, shape in expected.items() if not shape}
        if not needed <= found.keys() or any(expected.get(name) != shape for name, shape in found.items()):
            raise ValueError(f"optimizer state, totals: found {found}, expected {expected}.")
        plan.rates = {number: group["lr"] for number, group in enumerate(state["param_groups"])}
        return plan

    def _fresh_plan(self, state: Mapping[str, Any], facts: Mapping[str, Any]) -> Plan:
        members = self._members()
        saved = entries_by_name(state, [member.name if member.named else None for member in members])
        before = self._batches, self._batch_of, self._totals, self._layouts, self._closed, self._settled
        self._forget()
        try:
            self._settle()
        except Exception:
            self._batches, self._batch_of, self._totals, self._layouts, self._closed, self._settled = before
            raise

        def fits(member: Member, entry: Mapping[str, Any]) -> bool:
            batch, index = self._batch_of[member.parameter]
            try:
                batch.check_state(index, entry)
            except ValueError:
                return False
            return True

        same_rule = facts["rule"] == self.rule.name
        return plan_by_name(members, saved, fits if same_rule else lambda *_: False, state, facts["rule"])

    # -- copies ---------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        return packed(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._begin()
        unpack(self, state)
        super().__setstate__({})

    def __deepcopy__(self, memo: dict[int, Any]) -> "Self":
        # a function need not be one that can be written to a file here
        twin = memo[id(self)] = type(self).__new__(type(self))
        twin.__setstate__({**copy.deepcopy(packed(self), memo), "describe": self.describe})
        return twin
