import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from modules.optim.advance import advance
from modules.optim.batching import Batching, Member, members_of, unpaired_note
from modules.optim.copying import packed, unpack
from modules.optim.loading import (
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
from modules.optim.noise import uniform_bits
from modules.optim.ParameterBatch import ParameterBatch, layout_of
from modules.optim.regrouping import better_order, check_carried, joined_counts, runs_of
from modules.optim.rounding import round_to_bfloat16
from modules.optim.rules.registry import RULES, owners_of, rule_options
from modules.optim.rules.Rule import Rule
from modules.optim.Stack import Stack
from modules.optim.StackStep import StackStep
from modules.optim.StateView import StateView
from modules.optim.statistics import RoleStatistics

import torch
from torch import Tensor, nn

# What one kind of stack is compiled for at most: the first step and the others, and the sizes that stacks of it have.
RECOMPILES = 64


def parameter_info(parameter: nn.Parameter) -> Any:
    """What the program attached to a parameter as `parameter_info`, with `role` and `name`; None: nothing."""
    return getattr(parameter, "parameter_info", None)


class BatchedOptimizer(torch.optim.Optimizer):
    """Steps parameters of equal role and shape together: one rule, its features, and the state of all of them.

    Use it as any optimizer of torch. `step()` steps everything that has a gradient. For a fused backward pass call
    `step_parameter(p)` from each parameter's gradient hook, free the gradient, and call `step()` at the end as ever: it
    steps what is left and closes the step.

    Args:
        params: parameters or groups, as torch's. A group may have its own value of every option.
        rule: a name of `RULES`, or a rule.
        lr: learning rate, at least 0, a number or a 0-dim tensor. `group["configured_lr"]` keeps the one of now (or the
            group's `initial_lr`), which no schedule writes: with `scaled_optm`, decay is
            `weight_decay · lr/configured_lr` a step and so independent of the learning rate; otherwise
            `weight_decay · lr`.
        describe: gives each parameter an object with `role` (a name of `ROLES`), `name`, for a factor of a LoRA the
            other factor's name as `pair` and, where its forward pass multiplies an OFT block first, that factor as
            `forward_scale`; or None. By default the attribute `parameter_info`. Without: matrices are HIDDEN, anything
            smaller VECTOR.
        seed: of stochastic rounding and of other random numbers, which depend on seed, place and step only.
        chunk: largest number of elements that are stepped together; None: by device. Results do not depend on it.
        compile: compiles the step of each kind of stack with torch.compile.
        options: of the rule, by config key, see docs/optimizers.md.

    In other programs: `state`, hooks, `copy.deepcopy`, `pickle`, torch.distributed.checkpoint and names of parameters
    are as with torch's optimizers, see docs/optimizers.md. Options may be changed in `param_groups` at any time; state
    that they need is made in the next step. Where the rule has `beta1`, each group has `betas`, too, for schedules that
    write them; whichever was changed last counts.

    Raises:
        ValueError: an option that the rule has not, or values that are wrong; the message begins with the option. Or a
            parameter that can't be stepped; the message begins with its name.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        rule: str | Rule,
        lr: float = 1e-3,
        *,
        describe: Callable[[nn.Parameter], Any] = parameter_info,
        seed: int = 0,
        chunk: int | None = None,
        compile: bool = False,
        **options: Any,
    ) -> None:
        self.rule = RULES[rule] if isinstance(rule, str) else rule
        self.describe, self.seed, self.chunk, self.compile = describe, seed, chunk, compile
        self._begin()
        defaults = {"lr": lr, **rule_options(self.rule, options)}
        super().__init__(params, {**defaults, **betas_of(defaults)})

    def _begin(self) -> None:
        """What there is before the first parameter."""
        self.watch = False
        self.statistics: dict[str, RoleStatistics] = {}
        self._compiled: dict[tuple, Callable[..., list[Tensor | None]]] = {}
        self._batches: list[ParameterBatch] = []
        self._batch_of: dict[nn.Parameter, tuple[ParameterBatch, int]] = {}
        self._totals: dict[str, Tensor] = {}
        self._scratch: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}
        # gradients that a fused backward pass has brought of one factor of a pair, until the other's comes
        self._waiting: dict[nn.Parameter, Tensor] = {}
        self._closed = 0
        # the number of the step that was looked at for changes in groups and parameters; what was found of each group
        self._settled = -1
        self._layouts: list[dict[str, Any]] = []
        self._betas: list[Any] = []
        # of copies: what the parameters are, as a copied parameter has lost its attributes
        self._descriptions: dict[nn.Parameter, Any] = {}
        self._load_note: str | None = None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        foreign = {key for key in param_group if key not in self.rule.defaults and owners_of(key)}
        rule_options(self.rule, dict.fromkeys(sorted(foreign)))
        if not isinstance(param_group["params"], Tensor | set):
            param_group["params"] = list(param_group["params"])
            self._check_parameters(param_group["params"])
        if "betas" in param_group and "beta1" in self.rule.defaults:
            param_group.update(zip(("beta1", "beta2"), param_group["betas"], strict=False))
        group = {**self.defaults, **param_group}
        rates = {key: checked_rate(key, group[key]) for key in ("lr", "initial_lr", "configured_lr") if key in group}
        self.rule.check(self._options(group))
        super().add_param_group(param_group)
        added = self.param_groups[-1]
        # a copy: a schedule may change a tensor in place
        added["initial_lr"] = rates.get("initial_lr", rates["lr"])
        added["configured_lr"] = rates.get("configured_lr", added["initial_lr"])
        added.update(betas_of(added))
        added[MARK] = {"version": VERSION, "rule": self.rule.name}

    def _check_parameters(self, given: Sequence[Any]) -> None:
        seen = set()
        for place, item in enumerate(given, sum(len(group["params"]) for group in self.param_groups)):
            name, parameter = item if isinstance(item, tuple) else (None, item)
            if not isinstance(parameter, Tensor):
                continue
            info = self._describe(parameter)
            name = getattr(info, "name", None) or name or f"parameter {place}"
            if parameter.is_complex():
                raise ValueError(
                    f"{name}: found {parameter.dtype}, expected real numbers. Keep torch.view_as_real of it as the "
                    "parameter, and use torch.view_as_complex in the forward pass."
                )
            if parameter in seen:
                raise ValueError(f"{name}: found twice in one group, expected once. Leave one of them out.")
            seen.add(parameter)

    def _describe(self, parameter: nn.Parameter) -> Any:
        return self._descriptions[parameter] if parameter in self._descriptions else self.describe(parameter)

    # -- batches --------------------------------------------------------------------------------------------------

    def _options(self, group: Mapping[str, Any]) -> dict[str, Any]:
        return {key: group[key] for key in self.rule.defaults}

    def _members(self) -> list[Member]:
        return members_of(self.param_groups, self._describe)

    def _prepare(self, stale: Sequence[ParameterBatch] = ()) -> None:
        """Makes batches of the parameters that are in none yet, state included, and anew of those in `stale`.

        If that fails, everything is as before.
        """
        before = self._batches, self._batch_of, self._totals
        old = {parameter: self._batch_of[parameter] for batch in stale for parameter in batch.parameters}
        gone = {id(batch) for batch in stale}
        self._batches = [batch for batch in self._batches if id(batch) not in gone]
        self._batch_of = {parameter: at for parameter, at in self._batch_of.items() if parameter not in old}
        try:
            self._layouts = [self._layout(number) for number in range(len(self.param_groups))]
            layouts = {id(group): layout for group, layout in zip(self.param_groups, self._layouts, strict=True)}
            batching = Batching(self.rule, self.param_groups, self.seed, self.chunk)
            made = 0
            for batch in batching.batches(self._members(), dict(self._batch_of)):
                made += 1
                batch.layout = layouts[id(batch.group)]
                self._batches.append(batch)
                for index, parameter in enumerate(batch.parameters):
                    self._batch_of[parameter] = batch, index
                    if parameter in old:
                        check_carried(old[parameter][0], batch)
                        batch.carry(index, *old[parameter])
            if made:
                self._share()
        except Exception:
            self._batches, self._batch_of, self._totals = before
            raise

    def _layout(self, number: int) -> dict[str, Any]:
        """What a group's options say of its state; the same object as long as that stays the same."""
        options = self._options(self.param_groups[number])
        layout, known = layout_of(options), self._layouts[number] if number < len(self._layouts) else None
        if layout == known:
            return known
        if known is not None:
            self.rule.check(options)
        return layout

    def _settle(self) -> list[ParameterBatch]:
        """All batches, after a look at what was changed in groups and parameters since the last step."""
        self._settled = self._closed
        for number, group in enumerate(self.param_groups):
            self._follow_betas(number, group)
        self._ready()
        layouts = {id(group): self._layout(number) for number, group in enumerate(self.param_groups)}
        stale = [batch for batch in self._batches if batch.layout is not layouts[id(batch.group)] or batch.moved]
        if stale:
            known = {id(batch) for batch in stale}
            stale += [batch.mate for batch in stale if batch.mate is not None and id(batch.mate) not in known]
            self._prepare(stale)
        return self._batches

    def _follow_betas(self, number: int, group: dict[str, Any]) -> None:
        """Brings `betas` of a group and `beta1`, `beta2` together: what was changed since the last step counts."""
        own, given = betas_of(group).get("betas"), group.get("betas")
        if own is None or given is None:
            return
        known = self._betas[number] if number < len(self._betas) else own
        if tuple(given) != own and own == known:
            group.update(zip(("beta1", "beta2"), given, strict=False))
            own = betas_of(group)["betas"]
        group["betas"] = own
        self._betas[number : number + 1] = [own]

    def _share(self) -> None:
        """Makes what all parameters share, or makes room in it for parameters that were added."""
        count, device = sum(len(group["params"]) for group in self.param_groups), self._batches[0].device
        totals = self.rule.totals(self._options(self.param_groups[0]), count, device)
        if totals and any(batch.device != device for batch in self._batches):
            raise ValueError(f"{self.rule.name} measures all parameters together; expected all on one device.")
        for name, known in self._totals.items():
            totals[name][: len(known)].copy_(known) if known.ndim else totals[name].copy_(known)
        self._totals = totals

    def _ready(self) -> list[ParameterBatch]:
        if len(self._batch_of) < sum(len(group["params"]) for group in self.param_groups):
            self._prepare()
        return self._batches

    @property
    def notes(self) -> list[str]:
        """What a run should be told of once: the parameters that a rule of LoRA pairs leaves to its auxiliary one, and
        what `load_state_dict` did not find.
        """
        return [note for note in (unpaired_note(self.rule, self._ready()), self._load_note) if note is not None]

    # -- steps ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Steps every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for batch in self._settle():
            if batch.mate is None:
                self._step_batch(batch)
            elif batch.leads:
                self._step_pairs(batch, 0, len(batch))
        self._closed += 1
        if self._totals:
            self.rule.close(self._totals, self._options(self.param_groups[0]), self._closed)
        return loss

    @torch.no_grad()
    def step_parameter(
        self, parameter: nn.Parameter, group: dict[str, Any] | None = None, i: int | None = None
    ) -> None:
        """Steps one parameter, with the result that `step` would give it; nothing happens without a gradient.

        Where a rule steps the two factors of a LoRA together, the gradient of the first is kept until the other's
        comes, or until `step()`, which steps the first alone.

        Args:
            group, i: as other optimizers of this kind take them; the parameter says all.
        """
        if parameter.grad is None:
            return
        if self._settled != self._closed:
            self._settle()
        self._ready()
        if parameter not in self._batch_of:
            raise ValueError(
                f"found a parameter of shape {list(parameter.shape)} that is in no group of this optimizer; expected "
                "one of them. Add it with add_param_group."
            )
        batch, index = self._batch_of[parameter]
        if batch.mate is None:
            self._step_run([batch], index, index + 1)
            return
        lead = batch if batch.leads else batch.mate
        if parameter in self._waiting:
            self._step_run([batch], index, index + 1)
        self._waiting[parameter] = parameter.grad
        if batch.mate.parameters[index] in self._waiting:
            self._step_pairs(lead, index, index + 1)

    def _gradient(self, parameter: nn.Parameter) -> Tensor | None:
        return self._waiting.get(parameter, parameter.grad)

    def _step_batch(self, batch: ParameterBatch) -> None:
        """Steps what has a gradient: neighbours with the same numbers together, usually all."""
        counts = batch.counts()
        if not self.compile and len(set(counts)) > 1:
            rule, options = self._rule_of(batch)
            counts = joined_counts(counts, rule, options)
        runs, late = runs_of([batch], counts, at_once=True)
        if late:
            counts = self._reorder([batch], counts)
            runs, _ = runs_of([batch], counts, at_once=False)
        for start, stop in runs:
            self._step_run([batch], start, stop)

    def _reorder(self, halves: Sequence[ParameterBatch], cases: Sequence[Any]) -> list[Any]:
        order = better_order(cases)
        for half in halves:
            half.reorder(order)
            half.excess = 0
            for index, parameter in enumerate(half.parameters):
                self._batch_of[parameter] = half, index
        return [cases[index] for index in order]

    def _step_pairs(self, lead: ParameterBatch, first: int, last: int) -> None:
        """Steps pairs of factors, or the one that has a gradient; neighbours of the same case together."""
        both = lead, lead.mate
        cases: list[tuple[int | None, ...] | None] = []
        for index in range(first, last):
            counts = tuple(
                None if self._gradient(half.parameters[index]) is None else half.steps[index] for half in both
            )
            cases.append(None if counts == (None, None) else counts)
        runs, late = runs_of(both, cases, at_once=last - first == len(lead))
        if late:
            cases = self._reorder(both, cases)
            runs, _ = runs_of(both, cases, at_once=False)
        for start, stop in runs:
            halves = [half for half, count in zip(both, cases[start], strict=True) if count is not None]
            self._step_run(halves, first + start, first + stop)

    def _step_run(self, batches: Sequence[ParameterBatch], start: int, stop: int) -> None:
        """Steps neighbours of one batch, or the same ones of the two batches of a pair."""
        if batches[0].empty:
            batches[0].steps[start:stop] = [count + 1 for count in batches[0].steps[start:stop]]
            return
        steps = [self._open(batch, start, stop) for batch in batches]
        for batch, s in zip(batches, steps, strict=True):
            if batch.mate is not None:
                # a stack of their own, so that the mates themselves may be stepped where they are
                mates = [parameter.detach() for parameter in batch.mate.parameters[start:stop]]
                s.mates = self._stack(batch.mate, "mates", mates)
                if self.compile:
                    s.mates.value  # noqa: B018, as in `_open`
        directions = self._advance(batches)(batches[0].rule, *steps)
        for batch, s, u in zip(batches, steps, directions, strict=True):
            self._finish(batch, s, u, start, stop)

    def _open(self, batch: ParameterBatch, start: int, stop: int) -> StackStep:
        members, whole = batch.parameters[start:stop], stop - start == len(batch)
        counts = batch.steps[start:stop]
        step = counts[0] + 1
        rule, options = self._rule_of(batch)
        numbers = self._numbers(rule, options, batch, step)
        gradients = self._stack(batch, "gradients", self._taken(batch, members))
        parameters = self._stack(batch, "parameters", [p.detach() for p in members])
        if self.compile:
            gradients.value, parameters.value  # noqa: B018, stacked outside of what is compiled
        stores = batch.stores
        if not whole:
            stores = {
                name: {key: tensor[start:stop] for key, tensor in store.items()} for name, store in stores.items()
            }
        keys = batch.keys if whole else batch.keys[start:stop]
        at = torch.full((), step, dtype=torch.int64, device=batch.device) if self.compile else step
        if counts.count(counts[0]) < len(counts):
            # without waiting for the device
            at = torch.tensor(counts).add_(1).to(batch.device, non_blocking=True)
        return StackStep(
            gradients, parameters, (stop - start, batch.rows, batch.cols), batch.dtype, batch.role, options, numbers,
            batch.slots, stores, keys, at, first=step == 1, kernel=batch.kernel,
            places=batch.places if whole else batch.places[start:stop], totals=self._totals,
            one_pass=batch.device.type == "cpu" and not self.compile, watched=self.watch,
        )  # fmt: skip

    def _taken(self, batch: ParameterBatch, members: Sequence[nn.Parameter]) -> list[Tensor]:
        """The gradients of some parameters, dense and of one dtype."""
        if self._waiting:
            found = [self._gradient(p) for p in members]
            for p in members:
                self._waiting.pop(p, None)
        else:
            found = [p.grad for p in members]
        if len({(g.dtype, g.layout) for g in found}) > 1 or found[0].layout != torch.strided:
            found = [g if g.layout == torch.strided else g.to_dense() for g in found]
        if len({g.dtype for g in found}) > 1:
            found = [g.to(batch.dtype) for g in found]
        return found

    def _rule_of(self, batch: ParameterBatch) -> tuple[Rule, Mapping[str, Any]]:
        options = self._options(batch.group)
        if batch.empty:
            return self.rule, options
        return self.rule.for_parameter(batch.role, batch.rows, batch.cols, batch.names[0], options, batch.partner)

    def _finish(self, batch: ParameterBatch, s: StackStep, u: Tensor | None, start: int, stop: int) -> None:
        """Brings the stack's new values to its parameters, and counts the step."""
        members = batch.parameters[start:stop]
        if u is not None:
            if s.parameters.stacked and s.parameters.value.data_ptr() != members[0].data_ptr():
                torch._foreach_copy_(members, s.parameters.views_of(self._rounded(batch, s, s.parameters.value)))
            if self.watch:
                self.statistics.setdefault(batch.role.name, RoleStatistics()).add(s, u, [p.detach() for p in members])
        batch.steps[start:stop] = [count + 1 for count in batch.steps[start:stop]]

    def _advance(self, batches: Sequence[ParameterBatch]) -> Callable[..., list[Tensor | None]]:
        """The step, compiled for each kind of stack by itself, so that no kind counts towards the limit of another."""
        if not self.compile:
            return advance
        kind = tuple(
            (id(batch.group), batch.role, batch.shape, batch.parameters[0].dtype, batch.device, batch.partner)
            for batch in batches
        )
        if kind not in self._compiled:
            self._compiled[kind] = torch.compile(
                advance, dynamic=False, isolate_recompiles=True, recompile_limit=RECOMPILES
            )
        return self._compiled[kind]

    def _numbers(self, rule: Rule, options: Mapping[str, Any], batch: ParameterBatch, step: int) -> dict[str, Any]:
        """What changes between steps; tensors in a compiled step, as numbers would be part of its code."""
        lr, initial, own = batch.group["lr"], batch.group["configured_lr"], options.get("own_lr")
        if own is not None and initial:
            lr, initial = lr * (own / initial), own
        scaled = options["scaled_optm"]
        decay = (lr / initial if initial else 0.0) if scaled else lr
        numbers = {"lr": lr, "decay": decay, "forward_scale": batch.forward_scale, **rule.numbers(options, step)}
        if not self.compile:
            return numbers
        # filled on the device: a copy from the host would wait for it
        return {
            key: value
            if isinstance(value, bool | Tensor)
            else torch.full((), value, dtype=torch.float64, device=batch.device)
            for key, value in numbers.items()
        }

    def _stack(self, batch: ParameterBatch, name: str, tensors: list[Tensor]) -> Stack:
        """A stack in the compute dtype; the parameter or gradient itself where there is only one."""
        dtype = tensors[0].dtype

        def make(tensors: list[Tensor]) -> Tensor:
            if len(tensors) == 1:
                return batch.stacked(tensors).to(batch.dtype)
            # the two halves of a pair are stacked at the same time
            key = f"{name} {batch.leads}", batch.device, dtype
            needed = len(tensors) * batch.rows * batch.cols
            if key not in self._scratch or self._scratch[key].numel() < needed:
                self._scratch[key] = torch.empty(needed, dtype=dtype, device=batch.device)
            return batch.stacked(tensors, self._scratch[key]).to(batch.dtype)

        direct = dtype == batch.dtype and all(tensor.is_contiguous() for tensor in tensors)
        return Stack(tensors, make, direct)

    def _rounded(self, batch: ParameterBatch, s: StackStep, p: Tensor) -> Tensor:
        if batch.parameters[0].dtype != torch.bfloat16 or not s.options["stochastic_rounding"]:
            return p
        bits = uniform_bits(s.noise(0), batch.rows * batch.cols)
        return round_to_bfloat16(p.flatten(1), bits).view(p.shape)

    def read_statistics(self) -> dict[str, float]:
        """What the steps since the last call did, and what is shared now; waits for the device.

        `update_rms/ROLE` and, where it moves, `beta2/ROLE` while `watch` is on; `d` of Prodigy.
        """
        found = {
            f"{name}/{role}": value for role, sums in self.statistics.items() for name, value in sums.read().items()
        }
        self.statistics = {}
        if "d" in self._totals:
            found["d"] = float(self._totals["d"])
        return found

    # -- state ----------------------------------------------------------------------------------------------------

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
            # parts of sums that are not closed yet are zero between steps
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
        """Takes over what all parameters share; `sums`: the parts of sums by place, too."""
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

    def __deepcopy__(self, memo: dict[int, Any]) -> "BatchedOptimizer":
        # a function need not be one that can be written to a file here
        twin = memo[id(self)] = type(self).__new__(type(self))
        twin.__setstate__({**copy.deepcopy(packed(self), memo), "describe": self.describe})
        return twin


def betas_of(options: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
    """`betas` for schedules that know momentum by that name; nothing for rules without β₁."""
    betas = tuple(options[name] for name in ("beta1", "beta2") if name in options)
    return {"betas": betas} if "beta1" in options else {}


def checked_rate(name: str, rate: float | Tensor) -> float:
    """A learning rate as a number of its own.

    Raises:
        ValueError: it is negative, infinite, no number, or a tensor with dimensions.
    """
    if isinstance(rate, Tensor) and rate.ndim:
        raise ValueError(f"{name}: found a tensor of shape {list(rate.shape)}, expected a number or a 0-dim tensor.")
    value = float(rate)
    if not 0 <= value < math.inf:
        raise ValueError(f"{name}: found {value}, expected a finite number of at least 0.")
    return value
