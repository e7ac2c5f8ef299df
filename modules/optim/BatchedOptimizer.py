import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from modules.optim.advance import advance
from modules.optim.batching import Batching, members_of, unpaired_note
from modules.optim.noise import uniform_bits
from modules.optim.ParameterBatch import ParameterBatch, equal_runs
from modules.optim.rounding import round_to_bfloat16
from modules.optim.rules.registry import RULES, owners_of, rule_options
from modules.optim.rules.Rule import Rule
from modules.optim.Stack import Stack
from modules.optim.StackStep import StackStep
from modules.optim.statistics import RoleStatistics

import torch
from torch import Tensor, nn

VERSION = 1
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
        lr: learning rate, at least 0, a number or a 0-dim tensor. `group["initial_lr"]` keeps the configured one: with
            `scaled_optm`, decay is `weight_decay · lr/initial_lr` a step and so independent of the learning rate;
            otherwise `weight_decay · lr`.
        describe: gives each parameter an object with `role` (a name of `ROLES`), `name`, for a factor of a LoRA the
            other factor's name as `pair` and, where its forward pass multiplies an OFT block first, that factor as
            `forward_scale`; or None. By default the attribute `parameter_info`. Without: matrices are HIDDEN, anything
            smaller VECTOR.
        seed: of stochastic rounding and of other random numbers, which depend on seed, place and step only.
        chunk: largest number of elements that are stepped together; None: by device. Results do not depend on it.
        compile: compiles the step of each kind of stack with torch.compile.
        options: of the rule, by config key, see docs/optimizers.md.

    Raises:
        ValueError: an option that the rule has not, or values that are wrong; the message begins with the option.
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
        self.describe, self.seed, self.chunk = describe, seed, chunk
        self.watch = False
        self.statistics: dict[str, RoleStatistics] = {}
        self.compile = compile
        self._compiled: dict[tuple, Callable[..., list[Tensor | None]]] = {}
        self._batches: list[ParameterBatch] = []
        self._batch_of: dict[nn.Parameter, tuple[ParameterBatch, int]] = {}
        self._totals: dict[str, Tensor] = {}
        self._scratch: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}
        # gradients that a fused backward pass has brought of one factor of a pair, until the other's comes
        self._waiting: dict[nn.Parameter, Tensor] = {}
        self._closed = 0
        super().__init__(params, {"lr": lr, **rule_options(self.rule, options)})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        foreign = {key for key in param_group if key not in self.rule.defaults and owners_of(key)}
        rule_options(self.rule, dict.fromkeys(sorted(foreign)))
        group = {**self.defaults, **param_group}
        rates = {key: checked_rate(key, group[key]) for key in ("lr", "initial_lr") if key in group}
        self.rule.check(self._options(group))
        super().add_param_group(param_group)
        # a copy: a schedule may change a tensor in place
        self.param_groups[-1]["initial_lr"] = rates.get("initial_lr", rates["lr"])

    # -- batches --------------------------------------------------------------------------------------------------

    def _options(self, group: Mapping[str, Any]) -> dict[str, Any]:
        return {key: group[key] for key in self.rule.defaults}

    def _prepare(self) -> None:
        """Makes batches of the parameters that are in none yet, state included."""
        before = len(self._batches)
        members = members_of(self.param_groups, self.describe)
        for batch in Batching(self.rule, self.param_groups, self.seed, self.chunk).batches(members, self._batch_of):
            self._batches.append(batch)
            for index, parameter in enumerate(batch.parameters):
                self._batch_of[parameter] = batch, index
        if len(self._batches) > before:
            self._share()

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
        """What a run should be told of once: the parameters that a rule of LoRA pairs leaves to its auxiliary one."""
        note = unpaired_note(self.rule, self._ready())
        return [] if note is None else [note]

    # -- steps ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Steps every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for batch in self._ready():
            if batch.mate is None:
                for start, stop in batch.runs():
                    self._step_run([batch], start, stop)
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
        self._ready()
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

    def _step_pairs(self, lead: ParameterBatch, first: int, last: int) -> None:
        """Steps pairs of factors, or the one that has a gradient; neighbours of the same case together."""
        cases: list[tuple[int | None, ...] | None] = []
        for index in range(first, last):
            counts = tuple(
                None if self._gradient(half.parameters[index]) is None else half.steps[index]
                for half in (lead, lead.mate)
            )
            cases.append(None if counts == (None, None) else counts)
        for start, stop in equal_runs(cases):
            halves = [half for half, count in zip((lead, lead.mate), cases[start], strict=True) if count is not None]
            self._step_run(halves, first + start, first + stop)

    def _step_run(self, batches: Sequence[ParameterBatch], start: int, stop: int) -> None:
        """Steps neighbours of one batch, or the same ones of the two batches of a pair."""
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
        step = batch.steps[start] + 1
        rule, options = self.rule.for_parameter(
            batch.role, batch.rows, batch.cols, batch.names[0], self._options(batch.group), batch.partner
        )
        numbers = self._numbers(rule, options, batch, step)
        found = [self._gradient(p) for p in members]
        for p in members:
            self._waiting.pop(p, None)
        gradients = self._stack(batch, "gradients", found)
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
        return StackStep(
            gradients, parameters, (stop - start, batch.rows, batch.cols), batch.dtype, batch.role, options, numbers,
            batch.slots, stores, keys, at, first=step == 1, kernel=batch.kernel,
            places=batch.places if whole else batch.places[start:stop], totals=self._totals,
            one_pass=batch.device.type == "cpu" and not self.compile, watched=self.watch,
        )  # fmt: skip

    def _finish(self, batch: ParameterBatch, s: StackStep, u: Tensor | None, start: int, stop: int) -> None:
        """Brings the stack's new values to its parameters, and counts the step."""
        members = batch.parameters[start:stop]
        if u is not None:
            if s.parameters.stacked and s.parameters.value.data_ptr() != members[0].data_ptr():
                torch._foreach_copy_(members, s.parameters.views_of(self._rounded(batch, s, s.parameters.value)))
            if self.watch:
                self.statistics.setdefault(batch.role.name, RoleStatistics()).add(s, u, [p.detach() for p in members])
        batch.steps[start:stop] = [batch.steps[start] + 1] * (stop - start)

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
        lr, initial, own = batch.group["lr"], batch.group["initial_lr"], options.get("own_lr")
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

    def state_dict(self) -> dict[str, Any]:
        """State by the parameter's place, groups, and what all share. Its tensors are the state, not copies."""
        self._ready()
        groups, place, state = [], 0, {}
        for group in self.param_groups:
            count = len(group["params"])
            rest = {key: value for key, value in group.items() if key != "params"}
            groups.append({**rest, "params": list(range(place, place + count))})
            for parameter in group["params"]:
                batch, index = self._batch_of[parameter]
                state[place] = batch.state_of(index)
                place += 1
        return {
            "version": VERSION,
            "rule": self.rule.name,
            "seed": self.seed,
            "closed": self._closed,
            # parts of sums that are not closed yet are zero between steps
            "totals": {name: x for name, x in self._totals.items() if not x.ndim or bool(x.any())},
            "state": state,
            "param_groups": groups,
        }

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over state and the groups' learning rates, to the bit. Options stay as they were given to this one, and
        so does the configured rate.

        Raises:
            ValueError: it is of another version, rule or model, or was saved with other options; then nothing changed.
        """
        self._check_state_dict(state_dict)
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            lr = saved["lr"]
            group["lr"] = lr.clone() if isinstance(lr, Tensor) else lr
            for place, parameter in zip(saved["params"], group["params"], strict=True):
                batch, index = self._batch_of[parameter]
                batch.load_state_of(index, state_dict["state"][place])
        self.seed, self._closed = state_dict["seed"], state_dict["closed"]
        self._waiting.clear()
        for batch in self._batches:
            batch.reseed(self.seed)
        for name, own in self._totals.items():
            own.copy_(state_dict["totals"].get(name, torch.zeros_like(own)))

    def _check_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        if state_dict.get("version") != VERSION:
            raise ValueError(f"optimizer state: found version {state_dict.get('version')}, expected {VERSION}.")
        if state_dict["rule"] != self.rule.name:
            raise ValueError(f"optimizer state: found that of {state_dict['rule']}, expected {self.rule.name}.")
        sizes = [len(group["params"]) for group in self.param_groups]
        found = [len(group["params"]) for group in state_dict["param_groups"]]
        if sizes != found:
            raise ValueError(f"optimizer state: found groups of {found} parameters, expected {sizes}.")
        self._ready()
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for place, parameter in zip(saved["params"], group["params"], strict=True):
                batch, index = self._batch_of[parameter]
                if place not in state_dict["state"]:
                    raise ValueError(f"optimizer state: found nothing of {batch.names[index]}, parameter {place}.")
                batch.check_state(index, state_dict["state"][place])
        found, expected = ({name: list(x.shape) for name, x in t.items()} for t in (state_dict["totals"], self._totals))
        needed = {name for name, shape in expected.items() if not shape}
        if not needed <= found.keys() or any(expected.get(name) != shape for name, shape in found.items()):
            raise ValueError(f"optimizer state, totals: found {found}, expected {expected}.")


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
