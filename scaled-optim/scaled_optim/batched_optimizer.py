import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from scaled_optim.advance import advance
from scaled_optim.arithmetic import widest
from scaled_optim.batching import unpaired_note
from scaled_optim.features.decay_portions import debt_of, decay_period
from scaled_optim.features.decay_rates import decay_share, decoupled
from scaled_optim.kernels.Runner import Runner, runner_of
from scaled_optim.kernels.trial import trial
from scaled_optim.noise import uniform_bits
from scaled_optim.OptimizerBatches import betas_of
from scaled_optim.OptimizerState import OptimizerState
from scaled_optim.ParameterBatch import ParameterBatch
from scaled_optim.regrouping import better_order, joined_counts, runs_of
from scaled_optim.roles import parameter_info
from scaled_optim.rounding import round_to_bfloat16
from scaled_optim.rules.registry import RULES, rule_options
from scaled_optim.rules.Rule import Rule
from scaled_optim.scaling import rank_gain, scaled_role, width_gain
from scaled_optim.sharing import Sharing
from scaled_optim.Stack import Stack
from scaled_optim.StackStep import StackStep
from scaled_optim.statistics import RoleStatistics

import torch
from torch import Tensor, nn

# What one kind of stack is compiled for at most: the first step and the others, and the sizes that stacks of it have.
RECOMPILES = 64
# Older versions of torch have one limit for all kinds together.
COMPILING = {
    name: value
    for name, value in (("isolate_recompiles", True), ("recompile_limit", RECOMPILES))
    if name in inspect.signature(torch.compile).parameters
}


class BatchedOptimizer(OptimizerState):
    """Steps parameters of equal role and shape together: one rule, its features, and the state of all of them.

    Use it as any optimizer of torch. `step()` steps every parameter that has a gradient. For a fused backward pass,
    call `step_parameter(p)` from each parameter's gradient hook and free the gradient. Then call `step()` as usual: it
    steps the remaining parameters and closes the step.

    Decay per step is `weight_decay · lr`. With `scaled_optm` or `scaled_wd` it is `weight_decay · lr/configured_lr`,
    which does not depend on the learning rate. `group["configured_lr"]` keeps the rate that the group was made with (or
    its `initial_lr`); no schedule writes it.

    `state`, hooks, `copy.deepcopy`, `pickle`, torch.distributed.checkpoint and names of parameters work as in torch's
    optimizers, see docs/optimizers.md. Options may be changed in `param_groups` at any time; state that they need is
    made in the next step. Where the rule has `beta1`, each group has `betas`, too, for schedules that write them. The
    one that was changed last counts.

    Args:
        params: parameters or groups, as torch's optimizers take them. A group may have its own value of every option.
        rule: a name of `RULES`, or a rule.
        lr: learning rate, at least 0, a number or a 0-dim tensor.
        describe: called with a parameter, returns its description or None. By default the description is the
            parameter's attribute `parameter_info`. Without one a matrix is HIDDEN, anything smaller a VECTOR. A
            description is an object with `role`, a name of `ROLES`, and `name`. It may have `pair`, the name of the
            partner of a LoRA's factor; `forward_scale`, by which the forward pass multiplies an OFT block first; and
            `model_width`, the width of its model, with which scaled steps grow.
        seed: of stochastic rounding and other random numbers. They depend on seed, place and step alone.
        chunk: largest number of elements that are stepped together; None: by device. Results do not depend on it.
        compile: compiles the step of each kind of stack with torch.compile.
        state_device: device of all state, for programs that move parameters away between steps, as offloaded layers.
            A parameter and its gradient must be there when they are stepped. None: state is on the device of its
            parameter, and follows it.
        kernels: "auto": on a GPU with Triton, fused kernels of our own, where they serve and agreed with torch's
            operations in a trial, see docs/optimizers.md. "never": torch's operations alone.
        shared: for several processes that have the same parameters and gradients, as with DistributedDataParallel. Each
            steps a part of the parameters, holds the state of that part alone, and gets the others' results; they are
            those of a single process, to the bit. A process group, or True for all processes. Then `state_dict()` is
            whole in no process: see `whole_state_dict()`. Parameters that `torch.distributed.fsdp.fully_shard` has
            divided need no option: what looks at whole matrices gets them, in turns, and state is held once.
        options: of the rule, by config key, see docs/optimizers.md.

    Raises:
        ValueError: the rule has no such option, or a value is wrong; the message begins with the option. Or a parameter
            can't be stepped; the message begins with its name.
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
        kernels: str | Runner = "auto",
        state_device: torch.device | str | None = None,
        shared: Any = False,
        **options: Any,
    ) -> None:
        self.state_device = None if state_device is None else torch.device(state_device)
        self.rule = RULES[rule] if isinstance(rule, str) else rule
        self.describe, self.seed, self.chunk, self.compile = describe, seed, chunk, compile
        self._begin()
        if shared:
            self.sharing = Sharing(None if shared is True else shared)
        self.kernels, self._runner = kernels, runner_of(kernels)
        defaults = {"lr": lr, **rule_options(self.rule, options)}
        super().__init__(params, {**defaults, **betas_of(defaults)})

    @property
    def notes(self) -> list[str]:
        """What a run should be told of once: the parameters that a rule of LoRA pairs leaves to its auxiliary one,
        what `load_state_dict` did not find, and kernels that are not used because they did not agree.
        """
        found = [unpaired_note(self.rule, self._ready()), self._load_note]
        return [note for note in found if note is not None] + (self._runner.notes if self._runner else [])

    # -- steps ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Steps every parameter that has a gradient, and closes the step.

        Args:
            closure: computes the loss again, with gradients; called first.

        Returns:
            What `closure` returned; None without one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        batches = self._settle()
        if self.sharing is None:
            self._step_batches(batches)
        else:
            for some in self.sharing.rounds(batches):
                self.sharing.bring(some)
                self._step_batches(some)
                self.sharing.take_back(some)
            self.sharing.exchange(batches)
            self.sharing.add_up(self._totals, batches)
        self._closed += 1
        if self._totals:
            self.rule.close(self._totals, self._options(self.param_groups[0]), self._closed)
        return loss

    @torch.no_grad()
    def step_parameter(
        self, parameter: nn.Parameter, group: dict[str, Any] | None = None, i: int | None = None
    ) -> None:
        """Steps one parameter, with the result that `step` would give it; nothing happens without a gradient.

        Some rules step a LoRA's factor and its partner together. The gradient of the first is then kept until the
        partner's comes, or until `step()`, which steps the first alone.

        Args:
            parameter: one of a group.
            group, i: ignored; programs with a fused backward pass hand them on.

        Raises:
            ValueError: the parameter is in no group, or the optimizer is `shared`.
        """
        if self.sharing is not None:
            raise ValueError(
                "shared: found a fused backward pass, whose steps are not together, as those of processes have to be "
                "that share the work or hold weights in parts. Set it to false."
            )
        if parameter.grad is None:
            return
        if self._settled != self._closed:
            self._settle()
        self._ready()
        try:
            batch, index = self._batch_of[parameter]
        except KeyError:
            raise ValueError(
                f"found a parameter of shape {list(parameter.shape)} that is in no group of this optimizer; expected "
                "one of them. Add it with add_param_group."
            ) from None
        if batch.partner is None:
            self._step_run([batch], index, index + 1)
            return
        lead = batch if batch.leads else batch.partner
        if parameter in self._waiting:
            self._step_run([batch], index, index + 1)
        self._waiting[parameter] = parameter.grad
        if batch.partner.parameters[index] in self._waiting:
            self._step_pairs(lead, index, index + 1)

    def _step_batches(self, batches: Sequence[ParameterBatch]) -> None:
        for batch in batches:
            if batch.partner is None:
                self._step_batch(batch)
            elif batch.leads:
                self._step_pairs(batch, 0, len(batch))

    def _gradient(self, parameter: nn.Parameter) -> Tensor | None:
        return self._waiting.get(parameter, parameter.grad)

    def _step_batch(self, batch: ParameterBatch) -> None:
        """Steps what has a gradient: neighbours with the same numbers together, usually all."""
        counts = batch.counts()
        if not self.compile and len(set(counts)) > 1:
            rule, options = self._rule_of(batch)
            counts = joined_counts(counts, rule, options, self._decay_period(rule, options, batch))
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
        both = lead, lead.partner
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
        if batches[0].idle:
            for batch in batches:
                batch.steps[start:stop] = [count + 1 for count in batch.steps[start:stop]]
            return
        steps = [self._open(batch, start, stop) for batch in batches]
        for batch, s in zip(batches, steps, strict=True):
            if batch.partner is not None:
                # a stack of their own, so that the partners themselves may be stepped where they are
                partners = [parameter.detach() for parameter in batch.partner.members(start, stop)]
                s.partners = self._stack(batch.partner, "partners", partners)
                if self.compile:
                    s.partners.value  # noqa: B018, as in `_open`
        directions = self._advance(batches)(batches[0].rule, *steps)
        for batch, s, u in zip(batches, steps, directions, strict=True):
            self._finish(batch, s, u, start, stop)

    def _open(self, batch: ParameterBatch, start: int, stop: int) -> StackStep:
        members, whole = batch.members(start, stop), stop - start == len(batch)
        counts = batch.steps[start:stop]
        step = counts[0] + 1
        rule, options = self._rule_of(batch)
        numbers = self._numbers(rule, options, batch, step)
        gradients = self._stack(batch, "gradients", *self._taken(batch, members))
        parameters = self._stack(batch, "parameters", [p.detach() for p in members])
        if self.compile:
            gradients.value, parameters.value  # noqa: B018, stacked outside of what is compiled
        if numbers["portions"]:
            numbers["noted"] = whole and self._note_decay(batch, numbers)
        stores = batch.stores_as_noted() if numbers["noted"] else batch.stores
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
            one_pass=batch.device.type in ("cpu", "cuda") and not self.compile, watched=self.watch,
            runner=None if self.compile else self._runner, trial=TRIAL,
        )  # fmt: skip

    def _taken(self, batch: ParameterBatch, members: Sequence[nn.Parameter]) -> tuple[list[Tensor], bool]:
        """The gradients of some parameters, dense and of one dtype, and whether all are contiguous."""
        if self._waiting:
            found = [self._gradient(p) for p in members]
            for p in members:
                self._waiting.pop(p, None)
        else:
            found = [p.grad for p in members]
        # a sparse one is never contiguous; this is asked of every gradient, so it has to be cheap
        contiguous = all([g.is_contiguous() for g in found])
        if not contiguous:
            found = [g if g.layout == torch.strided else g.to_dense() for g in found]
        if len(found) > 1 and [g.dtype for g in found].count(found[0].dtype) < len(found):
            found = [g.to(batch.dtype) for g in found]
        return found, contiguous

    def _rule_of(self, batch: ParameterBatch) -> tuple[Rule, Mapping[str, Any]]:
        options = self._options(batch.group)
        if batch.empty:
            return self.rule, options
        return self.rule.for_parameter(batch.role, batch.matrix, batch.names[0], options, batch.partner_shape)

    def _finish(self, batch: ParameterBatch, s: StackStep, u: Tensor | None, start: int, stop: int) -> None:
        """Brings the stack's new values to its parameters, and counts the step."""
        members = batch.members(start, stop)
        # without a rate nothing moved
        moved = s.rate is not None and s.parameters.stacked
        if moved and s.parameters.value.data_ptr() != members[0].data_ptr():
            torch._foreach_copy_(members, s.parameters.views_of(self._rounded(batch, s, s.parameters.value)))
        if self.watch and u is not None and (self.sharing is None or self.sharing.counts(batch)):
            self.statistics.setdefault(batch.role.name, RoleStatistics()).add(s, u, [p.detach() for p in members])
        batch.steps[start:stop] = [count + 1 for count in batch.steps[start:stop]]

    def _advance(self, batches: Sequence[ParameterBatch]) -> Callable[..., list[Tensor | None]]:
        """The step, compiled for each kind of stack by itself, so that no kind counts towards the limit of another."""
        if not self.compile:
            return advance
        kind = tuple(
            (id(batch.group), batch.role, batch.shape, batch.parameters[0].dtype, batch.device, batch.partner_shape)
            for batch in batches
        )
        if kind not in self._compiled:
            self._compiled[kind] = torch.compile(advance, dynamic=False, **COMPILING)
        return self._compiled[kind]

    def _numbers(self, rule: Rule, options: Mapping[str, Any], batch: ParameterBatch, step: int) -> dict[str, Any]:
        """What changes between steps; tensors in a compiled step, as numbers would be part of its code."""
        lr, initial, own = batch.group["lr"], batch.group["configured_lr"], options.get("own_lr")
        if own is not None and initial:
            lr, initial = lr * (own / initial), own
        decay = (lr / initial if initial else 0.0) if decoupled(options) else lr
        decay = decay * decay_share(options, batch.role, batch.rows, batch.cols, batch.partner_shape)
        # a rule that finds its rate finds that of width and rank as well
        if options["scaled_optm"] and not rule.rate_found:
            role, law = scaled_role(batch.role.name, batch.kernel), options["scale_law"]
            lr = lr * width_gain(batch.model_width, role, law, batch.adapter)
            lr = lr * rank_gain(role, batch.rows, batch.cols, law)
        numbers = {"lr": lr, "decay": decay, "forward_scale": batch.forward_scale, **rule.numbers(options, step)}
        period = self._decay_period(rule, options, batch)
        through = rule.rate_found and not decoupled(options)
        numbers |= {"portions": period > 1, "pays": step % period == 0, "noted": False, "through": through}
        if not self.compile:
            return numbers
        # filled on the device: a copy from the host would wait for it
        return {
            key: value
            if isinstance(value, bool | Tensor)
            else torch.full((), value, dtype=widest(batch.device), device=batch.device)
            for key, value in numbers.items()
        }

    def _note_decay(self, batch: ParameterBatch, numbers: Mapping[str, Any]) -> bool:
        """Notes the decay of a step that pays none as a number, where it is one and all of a batch owe it."""
        if numbers["pays"] or not isinstance(numbers["decay"], int | float):
            return False
        batch.note_decay(debt_of(numbers["decay"]))
        return True

    @staticmethod
    def _decay_period(rule: Rule, options: Mapping[str, Any], batch: ParameterBatch) -> int:
        own = options.get("own_lr")
        rate = batch.group["configured_lr"] if own is None else own
        unit = decay_share(options, batch.role, batch.rows, batch.cols, batch.partner_shape)
        if decoupled(options):
            return decay_period(options, batch.role, unit, batch.dtype)
        return 1 if rule.rate_found else decay_period(options, batch.role, unit * rate, batch.dtype)

    def _stack(self, batch: ParameterBatch, name: str, tensors: list[Tensor], contiguous: bool | None = None) -> Stack:
        """A stack in the compute dtype; the parameter or gradient itself where there is only one.

        Args:
            contiguous: whether all tensors are; None: not known.
        """
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

        if contiguous is None:
            contiguous = all([tensor.is_contiguous() for tensor in tensors])
        direct = dtype == batch.dtype and contiguous
        return Stack(tensors, make, direct, contiguous)

    def _rounded(self, batch: ParameterBatch, s: StackStep, p: Tensor) -> Tensor:
        if batch.parameters[0].dtype != torch.bfloat16 or not s.options["stochastic_rounding"]:
            return p
        bits = uniform_bits(s.noise(0), batch.rows * batch.cols)
        return round_to_bfloat16(p.flatten(1), bits).view(p.shape)

    def read_statistics(self) -> dict[str, float]:
        """What the steps since the last call did, and what is shared now; waits for the device. Where several processes
        share the steps, it is to be called in all of them.

        `update_rms/ROLE` and, where it moves, `beta2/ROLE` while `watch` is on; `d` of Prodigy.
        """
        statistics = self.statistics if self.sharing is None else self.sharing.joined(self.statistics)
        found = {f"{name}/{role}": value for role, sums in statistics.items() for name, value in sums.read().items()}
        self.statistics = {}
        if "d" in self._totals:
            found["d"] = float(self._totals["d"])
        return found


# of fused kernels, with optimizers like this one
TRIAL = partial(trial, BatchedOptimizer)
