"""Which parameters are stepped together: stacks of one kind, and pairs of stacks for rules that see a LoRA as one."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scaled_optim.ParameterBatch import ParameterBatch
from scaled_optim.roles import ROLES, default_role, described_role, matrix_shape
from scaled_optim.rules.Rule import Rule
from scaled_optim.shards import is_shard
from scaled_optim.sharing import Sharing

import torch
from torch import nn

# Elements of a stack. On a CPU its gradients, parameters, state and temporaries should stay in cache from the first
# operation to the last; on a GPU it bounds the temporaries and is large enough that launches do not count.
CHUNK = {"cpu": 1 << 18}
GPU_CHUNK = 1 << 25
# Rules of LoRA pairs take many small operations on r × r matrices for each stack, and go through large stacks in blocks
# that fit into cache (`StackStep.blocks`). Processor ms of a step, SDXL at rank 16, in turns on a busy machine, stacks
# of 2^18, 2^20, 2^22, 2^24: LoRA-RITE 677, 438, 369, 355; Stiefel-LoRA 351, 305, 279, 273.
PAIRED_CHUNK = {"cpu": 1 << 22}
PAIRED_GPU_CHUNK = 1 << 27
DOWN, UP = "LORA_DOWN", "LORA_UP"


@dataclass(frozen=True, eq=False)
class Member:
    """A parameter of the optimizer and what is known of it.

    `pair` names its partner; `named` is false where nobody gave it a name.
    """

    place: int
    group: int
    parameter: nn.Parameter
    role: str
    name: str
    pair: str | None
    scale: float
    named: bool = True
    model_width: float | None = None
    adapter: bool = False

    @property
    def matrix(self) -> tuple[int, int]:
        return matrix_shape(tuple(self.parameter.shape))

    def kind(self, device: torch.device | None) -> tuple:
        """What all members of a stack have in common; `device`: of all state, None: that of the parameter."""
        parameter, device = self.parameter, device or self.parameter.device
        facts = self.scale, self.model_width, self.adapter, is_shard(parameter)
        return self.group, self.role, tuple(parameter.shape), parameter.dtype, device, *facts


def members_of(groups: Sequence[Mapping[str, Any]], describe: Callable[[nn.Parameter], Any]) -> list[Member]:
    """All parameters in the order of their places.

    A name is that of the description, else that in the group's `param_names`, else the place.
    """
    found: list[Member] = []
    for g, group in enumerate(groups):
        given = group.get("param_names") or [None] * len(group["params"])
        for parameter, name in zip(group["params"], given, strict=True):
            info = describe(parameter)
            found.append(
                Member(
                    len(found),
                    g,
                    parameter,
                    described_role(info) if info is not None else default_role(tuple(parameter.shape)),
                    info.name if info is not None else name or f"parameter {len(found)}",
                    getattr(info, "pair", None),
                    getattr(info, "forward_scale", 1.0),
                    info is not None or name is not None,
                    getattr(info, "model_width", None),
                    getattr(info, "adapter", False),
                )
            )
    return found


def partners_of(members: Sequence[Member]) -> dict[Member, Member]:
    """Each factor of a LoRA with the other one, where they name each other and can be stepped together.

    They must be a down and an up factor of one rank, in one group, of one dtype and on one device. A name that two
    parameters have tells nothing.
    """
    by_name: dict[str, list[Member]] = defaultdict(list)
    for member in members:
        by_name[member.name].append(member)
    alone = {name: found[0] for name, found in by_name.items() if len(found) == 1}
    partners = {}
    for down in alone.values():
        up = alone.get(down.pair or "")
        if up is None or up.pair != down.name or (down.role, up.role) != (DOWN, UP):
            continue
        if not down.parameter.numel() or not up.parameter.numel():
            continue
        same = all(getattr(down.parameter, key) == getattr(up.parameter, key) for key in ("dtype", "device"))
        if same and down.group == up.group and down.matrix[0] == up.matrix[1]:
            partners[down], partners[up] = up, down
    return partners


@dataclass(frozen=True)
class Batching:
    """Makes batches of parameters.

    Attributes:
        rule: of the optimizer.
        groups: its parameter groups.
        seed: of random numbers.
        chunk: largest number of elements of a stack; None: by device.
        device: of all state; None: that of each parameter.
        sharing: of the processes that step a part each; None: this one steps all.
        owners: parameter -> the process that has its state already; None: each that of its rows.
    """

    rule: Rule
    groups: Sequence[dict[str, Any]]
    seed: int
    chunk: int | None
    device: torch.device | None = None
    sharing: Sharing | None = None
    owners: Mapping[nn.Parameter, int | None] = field(default_factory=dict)

    def batches(self, members: Sequence[Member], known: Mapping[nn.Parameter, Any]) -> Iterator[ParameterBatch]:
        """Batches of all members whose parameters are not in `known`; those of a pair follow each other."""
        partners = partners_of(members)
        kinds: dict[tuple, list[tuple[Member, ...]]] = defaultdict(list)
        for member in members:
            if member.parameter in known:
                continue
            if member.parameter.is_meta:
                raise ValueError(
                    f"{member.name}: found on the meta device, which holds no numbers; expected a parameter with "
                    "memory. Call model.to_empty(device=…), load its weights, and then make the optimizer of it."
                )
            partner = partners.get(member)
            rule, _ = self._rule_for(member, partner)
            if partner is not None and rule.paired:
                # a pair is entered once, in the place of its down factor
                if member.role == DOWN:
                    kinds[rule.name, member.kind(self.device), partner.kind(self.device)].append((member, partner))
                continue
            kinds[rule.name, member.kind(self.device), partner and partner.matrix].append((member,))
        for units in kinds.values():
            first = units[0]
            elements = sum(math.prod(member.matrix) for member in first)
            device = self.device or first[0].parameter.device
            if self.rule.needs_pairs and first[0] in partners:
                usual = PAIRED_CHUNK.get(device.type, PAIRED_GPU_CHUNK)
            else:
                usual = CHUNK.get(device.type, GPU_CHUNK)
            size = max(1, (self.chunk or usual) // max(1, elements))
            for start in range(0, len(units), size):
                chunk = units[start : start + size]
                owner = self._owner(chunk[0][0], partners, len(chunk) * elements)
                halves = [self._batch([unit[k] for unit in chunk], partners, owner) for k in range(len(first))]
                if len(halves) == 2:
                    halves[0].partner, halves[1].partner = halves[1], halves[0]
                yield from halves

    def _owner(self, first: Member, partners: Mapping[Member, Member], elements: int) -> int | None:
        parameter, known = first.parameter, self.owners.get(first.parameter)
        if is_shard(parameter):
            rule, options = self._rule_for(first, partners.get(first))
            role = ROLES[first.role]
            if not elements or rule.by_element(options, role, first.matrix, parameter.dtype):
                return None
        elif self.sharing is None or not self.sharing.replicated:
            return None
        return self.sharing.owner(elements) if known is None else known

    def _rule_for(self, member: Member, partner: Member | None) -> tuple[Rule, Mapping[str, Any]]:
        options = {key: self.groups[member.group][key] for key in self.rule.defaults}
        if not member.parameter.numel():
            # nothing is done to it, so no rule need know what to do with its shape
            return self.rule, options
        return self.rule.for_parameter(
            ROLES[member.role], member.matrix, member.name, options, partner and partner.matrix
        )

    def _batch(self, members: Sequence[Member], partners: Mapping[Member, Member], owner: int | None) -> ParameterBatch:
        first = members[0]
        partner = partners.get(first)
        rule, options = self._rule_for(first, partner)
        named = [(member.place, member.name, member.parameter) for member in members]
        parameters, values = [member.parameter for member in members], None
        held, role = owner is None or owner == self.sharing.rank, ROLES[first.role]
        if owner is not None and is_shard(first.parameter):
            # what reads the parameters' start needs all of it; all processes take part in bringing it together
            slots = rule.slots(options, role, *first.matrix)
            if rule.orthonormal_up or any(slot.codec is None for slot in slots):
                values = self.sharing.start_values(owner, parameters)
        batch = ParameterBatch(
            self.groups[first.group], rule, options, role, first.matrix, named, self.seed, first.scale,
            partner and partner.matrix, self.device, first.model_width, first.adapter, owner, held, values,
        )  # fmt: skip
        if not batch.empty and (values is not None or not batch.sharded):
            rule.check_start(batch.names, [value.detach() for value in values or parameters], options, batch.role)
        return batch


def unpaired_note(rule: Rule, batches: Sequence[ParameterBatch]) -> str | None:
    """For a rule of LoRA pairs, one line on the parameters that are none; None where all are."""
    others: dict[str, list[str]] = defaultdict(list)
    for batch in batches:
        if rule.needs_pairs and batch.rule.name != rule.name:
            others[batch.role.name] += batch.names
    if not others:
        return None
    lists = [
        f"{len(names)} {role} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        for role, names in others.items()
    ]
    aux = next(batch.rule.name for batch in batches if batch.rule.name != rule.name)
    return f"{rule.name} steps the two factors of LoRAs only; to the auxiliary {aux} go {'; '.join(lists)}."
