from collections.abc import Callable, Mapping
from typing import Any

from scaled_optim.batched_optimizer import BatchedOptimizer
from scaled_optim.loading import FRESH, MARK, facts_of, saved_names

import torch
from torch import nn

# what upstream's backups add to an optimizer's state
OPTIMIZERS = "param_group_optimizer_mapping"
SHOWN = 4


class PluginOptimizer(BatchedOptimizer):
    """A `BatchedOptimizer` that keeps to what OneTrainer asks of one.

    It makes no state before its first step, as OneTrainer asks for the state before the weights are where they are
    trained. It takes from a backup what was saved under its parameters' names, and says what it did not; learning rates
    and options are those of now. It closes a step in `zero_grad`, as nobody calls `step` after a fused backward pass
    with a gradient scaler.

    Args:
        title: the name that it has in OneTrainer; None: the rule's.
        say: takes one line for the person who trains; None: prints it, of several processes the first alone.
        Others: see `BatchedOptimizer`.
    """

    def __init__(
        self, *args: Any, title: str | None = None, say: Callable[[str], None] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.title, self.say = title or self.rule.name, say or _print_once
        self._kept: dict[str, Any] | None = None
        self._has_state = False
        self._open_step = False
        self._said: set[str] = set()

    # -- steps ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        self._start()
        self._open_step = False
        return super().step(closure)

    @torch.no_grad()
    def step_parameter(
        self, parameter: nn.Parameter, group: dict[str, Any] | None = None, i: int | None = None
    ) -> None:
        self._start()
        self._open_step = True
        super().step_parameter(parameter, group, i)

    def zero_grad(self, set_to_none: bool = True) -> None:
        if self._open_step:
            # gradients that were stepped are gone by now; what is left has not overflowed and may be stepped
            self.step()
        super().zero_grad(set_to_none)

    def _start(self) -> None:
        """Takes over the kept state and makes the rest, before the first step."""
        if self._has_state:
            return
        kept, self._kept = self._kept, None
        self._has_state = True
        if kept is not None:
            rates = [group["lr"] for group in self.param_groups]
            super().load_state_dict(kept, missing=FRESH)
            for group, lr in zip(self.param_groups, rates, strict=True):
                group["lr"] = lr
        for note in self.notes:
            self._tell(note)

    def _tell(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self.say(line)

    # -- state ----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """As ever; before the first step what was loaded, or groups without state."""
        if self._has_state:
            return super().state_dict()
        if self._kept is not None:
            return dict(self._kept)
        groups, place = [], 0
        for group in self.param_groups:
            count = len(group["params"])
            rest = {key: value for key, value in group.items() if key != "params"}
            groups.append({**rest, "params": list(range(place, place + count))})
            place += count
        return {"state": {}, "param_groups": groups}

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any], *, missing: str = FRESH) -> None:
        """Keeps the state for the first step, if it is of this rule; a line says so if it is not.

        Raises:
            ValueError: it is of another version of the engine.
        """
        saved = sorted(set(state_dict.get(OPTIMIZERS) or ()))
        if not state_dict["state"]:
            return
        rule = facts_of(state_dict)["rule"] if _marked(state_dict) else "another optimizer"
        if rule != self.rule.name:
            whose = ", ".join(saved) or rule
            self._tell(f"The backup's optimizer state is that of {whose}: {self.title} begins with a new one.")
            return
        self._kept, self._has_state = dict(state_dict), False
        self._tell_changes(state_dict)

    def _tell_changes(self, state_dict: Mapping[str, Any]) -> None:
        """One line on options that are no longer those of the backup; learning rates are changed by schedules."""
        old = {}
        for group, names in zip(state_dict["param_groups"], saved_names(state_dict), strict=True):
            old |= dict.fromkeys(names, group)
        changes: dict[str, None] = {}
        for member in self._members():
            saved, now = old.get(member.name), self.param_groups[member.group]
            for key in self.rule.defaults if saved else ():
                if key in saved and saved[key] != now[key]:
                    changes[f"{key} {saved[key]} → {now[key]}"] = None
        if changes:
            shown = list(changes)
            more = f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
            self._tell(f"Options of {self.title} changed since the backup: {', '.join(shown[:SHOWN])}{more}.")


def _print_once(line: str) -> None:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not distributed or torch.distributed.get_rank() == 0:
        print(line)


def _marked(state_dict: Mapping[str, Any]) -> bool:
    """Whether the engine wrote a state."""
    return "version" in state_dict or any(MARK in group for group in state_dict["param_groups"])
