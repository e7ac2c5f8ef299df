import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scaled_optim.batching import Batching, Member, members_of
from scaled_optim.loading import MARK, VERSION
from scaled_optim.ParameterBatch import ParameterBatch, layout_of
from scaled_optim.regrouping import check_carried
from scaled_optim.rules.registry import owners_of, rule_options
from scaled_optim.rules.Rule import Rule
from scaled_optim.sharing import Sharing
from scaled_optim.statistics import RoleStatistics

import torch
from torch import Tensor, nn


class OptimizerBatches(torch.optim.Optimizer):
    """The groups of an optimizer and the batches of their parameters: made when needed, made anew when they change.

    Attributes:
        rule: of all parameters.
        describe: says what a parameter is, see `BatchedOptimizer`.
        seed: of random numbers.
        chunk: largest number of elements of a stack; None: by device.
        compile: whether steps are compiled.
        state_device: of all state; None: that of each parameter.
        sharing: of processes that step a part each; None: this one steps all.
        watch: whether steps take notes.
        statistics: the notes by role.
    """

    rule: Rule
    describe: Callable[[nn.Parameter], Any]
    seed: int
    chunk: int | None
    compile: bool
    state_device: torch.device | None
    sharing: Sharing | None

    def _begin(self) -> None:
        """What there is before the first parameter."""
        self.watch, self.sharing = False, None
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
        self.sharing = Sharing.over_shards(added["params"], self.sharing)
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
            owners = {parameter: batch.owner for parameter, (batch, _) in old.items()}
            batching = Batching(
                self.rule, self.param_groups, self.seed, self.chunk, self.state_device, self.sharing, owners
            )
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
            stale += [batch.partner for batch in stale if batch.partner is not None and id(batch.partner) not in known]
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
