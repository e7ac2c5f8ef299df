from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from scaled_optim.features.decay_portions import NAME as DEBT
from scaled_optim.noise import base_key
from scaled_optim.roles import Role, matrix_shape
from scaled_optim.rules.Rule import Rule
from scaled_optim.shards import is_shard, local_part, rows_of
from scaled_optim.StackStep import Slot

import torch
from torch import Tensor, nn


class ParameterBatch:
    """Parameters of one group, role, shape, dtype and device, whose state is held as stacks `[b, rows, cols]`.

    The parameters themselves stay where they are; a step copies them into a stack that fits into cache and back.

    Attributes:
        group: the parameter group, whose learning rate counts.
        rule: of these parameters.
        role: of all of them.
        parameters: b of them.
        places: `[b]` int64, their places among all parameters of the optimizer.
        names: of the parameters.
        partner_shape: `(rows, cols)` of each factor's partner, where the parameters are factors of LoRAs.
        partner: the batch of the partners in the same order, where the rule steps both together.
        steps: how many steps each has had.
        empty: whether they have no elements: then only their steps are counted.
        owner: number of the process that steps them, where several share the work; None: each steps what it has.
        held: whether this process steps them. If not, their steps are counted here, and there is no state.
        sharded: whether each process has some rows of each. With an owner, that steps them as a whole; else `rows`,
            `cols` and state are those of this process' rows.
        matrix: (rows, cols) of a whole parameter.
        stand_ins: in a step, what is stepped in the place of each parameter, with its gradient; None: they themselves.
        excess: launches that another order would have saved since they were last put in order.
        layout: what the options say of the state, see `layout_of`.
        slots: what is remembered, by name.
    """

    def __init__(
        self,
        group: dict[str, Any],
        rule: Rule,
        options: Mapping[str, Any],
        role: Role,
        matrix: tuple[int, int],
        members: Sequence[tuple[int, str, nn.Parameter]],
        seed: int,
        forward_scale: float = 1.0,
        partner_shape: tuple[int, int] | None = None,
        device: torch.device | None = None,
        model_width: float | None = None,
        adapter: bool = False,
        owner: int | None = None,
        held: bool = True,
        values: Sequence[Tensor] | None = None,
    ) -> None:
        self.owner, self.held, self.matrix = owner, held, matrix
        self.stand_ins: dict[nn.Parameter, Tensor] | None = None
        self.partner_shape = partner_shape
        self.partner: ParameterBatch | None = None
        self.group, self.rule, self.role = group, rule, role
        self.forward_scale, self.model_width, self.adapter = forward_scale, model_width, adapter
        self.names = [name for _, name, _ in members]
        self.parameters = [parameter for *_, parameter in members]
        self.sharded = is_shard(self.parameters[0])
        first = local_part(self.parameters[0]) if self.sharded and owner is None else self.parameters[0]
        self.rows, self.cols = matrix_shape(tuple(first.shape))
        self.shape, self.device, self.format = first.shape, device or first.device, first.dtype
        # parameters may then be elsewhere between their steps
        self.apart = device is not None
        self.empty = not first.numel()
        self.excess = 0
        self.layout: Mapping[str, Any] | None = None
        self.kernel = first.ndim > 2
        self.dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
        self.places = torch.tensor([place for place, *_ in members], device=self.device)
        self.reseed(seed)
        self.steps = [0] * len(members)
        slots = [] if self.idle else rule.slots(options, role, self.rows, self.cols)
        self.slots: dict[str, Slot] = {slot.name: slot for slot in slots}
        self._stores = self._fresh_stores(values)
        self._noted = 0

    @property
    def stores(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of each slot, each with leading axis b."""
        if self._noted:
            self._stores[DEBT]["sum"].add_(self._noted)
            self._noted = 0
        return self._stores

    def note_decay(self, debt: int) -> None:
        """Adds to what every parameter owes, see `portion`; a number costs less than a call of torch at each step."""
        self._noted += debt

    def stores_as_noted(self) -> dict[str, dict[str, Tensor]]:
        """`stores` without what was noted since they were last read."""
        return self._stores

    @property
    def idle(self) -> bool:
        """Whether nothing is to be done with them here but to count their steps."""
        return self.empty or not self.held

    def __len__(self) -> int:
        return len(self.parameters)

    def reseed(self, seed: int) -> None:
        """Sets the seed of every later random number."""
        keys = [base_key(seed, place, 0) for place in self.places.tolist()]
        self.keys = torch.tensor(keys, dtype=torch.int32, device=self.device)

    def _fresh_stores(self, values: Sequence[Tensor] | None) -> dict[str, dict[str, Tensor]]:
        size = (len(self), self.rows, self.cols)
        start: Tensor | None = None
        stores = {}
        for slot in self.slots.values():
            if slot.codec is not None:
                stores[slot.name] = slot.codec.create(size, self.device, slot.signed, self.dtype)
                continue
            if start is None:
                values = [local_part(p) for p in self.parameters] if values is None else values
                start = self.stacked([value.detach().to(self.device) for value in values]).to(self.dtype)
            stores[slot.name] = slot.create(start, self.keys)
        return stores

    def members(self, start: int, stop: int) -> list[Tensor]:
        """What is stepped of some parameters, with its gradients: they themselves, or what stands for them."""
        own = self.parameters[start:stop]
        return own if self.stand_ins is None else [self.stand_ins[parameter] for parameter in own]

    def counts(self) -> list[int | None]:
        """How many steps each has had that has a gradient now; None for the others."""
        counts = zip(self.parameters, self.steps, strict=True)
        return [None if parameter.grad is None else count for parameter, count in counts]

    @property
    def moved(self) -> bool:
        """Whether a parameter is on another device or of another dtype than when the state was made.

        This is asked of every parameter at every step, so it has to be cheap: of devices other than a CPU, one is told
        from another by the first and the last parameter only.
        """
        dtypes = [p.dtype for p in self.parameters]
        if dtypes.count(self.format) < len(self):
            return True
        if self.apart:
            return False
        ends = self.parameters[0].device, self.parameters[-1].device
        hosts = [p.is_cpu for p in self.parameters]
        return ends != (self.device, self.device) or hosts.count(self.device.type == "cpu") < len(self)

    @torch.no_grad()
    def reorder(self, order: Sequence[int]) -> None:
        """Puts the parameters in another order, which changes no result.

        Args:
            order: the present index of each.
        """
        self.parameters, self.names, self.steps = (
            [values[index] for index in order] for values in (self.parameters, self.names, self.steps)
        )
        # without waiting for the device
        index = torch.tensor(order).to(self.device, non_blocking=True)
        self.places, self.keys = self.places[index], self.keys[index]
        for store in self.stores.values():
            for key, tensor in store.items():
                # not every format of one byte can be indexed
                plain = tensor.view(torch.uint8) if tensor.dtype.itemsize == 1 else tensor
                store[key] = plain.index_select(0, index).view(tensor.dtype)

    @property
    def leads(self) -> bool:
        """Whether it stands for its pair where both are stepped: the down factors do."""
        return self.role.name == "LORA_DOWN"

    def stacked(self, tensors: list[Tensor], out: Tensor | None = None) -> Tensor:
        """`[b, rows, cols]` in the tensors' dtype; the only one of a batch is not copied if it is contiguous.

        Args:
            out: flat scratch memory for the copy, of the same dtype.
        """
        size = (len(tensors), self.rows, self.cols)
        if len(tensors) == 1 and tensors[0].is_contiguous():
            return tensors[0].view(size)
        if out is None:
            return torch.stack([tensor.reshape(self.rows, self.cols) for tensor in tensors])
        if not self.shape:
            tensors = [tensor.view(1) for tensor in tensors]
        flat = out[: len(tensors) * self.rows * self.cols]
        tall = flat.view(-1, *self.shape[1:]) if self.shape else flat
        torch.cat(tensors, out=tall)
        return flat.view(size)

    def state_of(self, index: int) -> dict[str, Any]:
        """The state of one parameter; its tensors are views of the stacks."""
        slots = {name: {key: tensor[index] for key, tensor in store.items()} for name, store in self.stores.items()}
        return {"step": self.steps[index], "slots": slots}

    def check_state(self, index: int, state: Mapping[str, Any]) -> None:
        """Whether `load_state_of` can take it.

        Raises:
            ValueError: it was saved with other options, or for another parameter.
        """
        if not self.held or (self.sharded and self.empty):
            return
        state = self._own_part(state)
        name, saved = self.names[index], state.get("slots", {})
        later = {slot for slot in self.stores if self.slots[slot].later}
        if saved.keys() | later != self.stores.keys():
            raise ValueError(
                f"the optimizer state of {name} holds {', '.join(sorted(saved)) or 'nothing'}, "
                f"expected {', '.join(sorted(self.stores)) or 'nothing'}: it was saved with other options"
            )
        for slot, store in self.stores.items():
            if slot not in saved:
                continue
            for key in sorted(saved[slot].keys() - store.keys()):
                raise ValueError(
                    f"the optimizer state of {name}, {slot}: found {key}, expected only {', '.join(sorted(store))}: "
                    "it was saved with other options"
                )
            for key, tensor in store.items():
                value = saved[slot].get(key)
                if value is None or value.shape != tensor.shape[1:] or value.dtype != tensor.dtype:
                    found = "nothing" if value is None else f"{list(value.shape)} {value.dtype}"
                    raise ValueError(
                        f"the optimizer state of {name}, {slot}.{key}: found {found}, expected "
                        f"{list(tensor.shape[1:])} {tensor.dtype}: it was saved with other options or another model"
                    )

    @torch.no_grad()
    def load_state_of(self, index: int, state: Mapping[str, Any]) -> None:
        """Takes over the state of one parameter, which `check_state` found good, as it was, to the bit."""
        state = self._own_part(state)
        for slot, store in self.stores.items():
            saved = state["slots"].get(slot)
            for key, tensor in store.items():
                tensor[index].zero_() if saved is None else tensor[index].copy_(saved[key])
        self.steps[index] = state["step"]

    def joined(self, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The state of a whole parameter from that of each process' rows, by their ranks."""
        filled = [part for part in parts if part["slots"]]
        slots = {
            name: {
                key: torch.cat([part["slots"][name][key].flatten() for part in filled]).view(self.matrix)
                if self.slots[name].codec is not None
                else value
                for key, value in store.items()
            }
            for name, store in (filled[0]["slots"] if filled else {}).items()
        }
        return {**parts[0], "slots": slots}

    def _own_part(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Of the state of a whole parameter, that of this process' rows where each process steps its own."""
        if not self.sharded or self.owner is not None or not self.shape:
            return state
        whole = self.parameters[0]
        before = sum(rows_of(whole.shape[0], whole.device_mesh.size())[: whole.device_mesh.get_local_rank()])
        first, count = before * whole.shape[1:].numel(), self.rows * self.cols

        def own(slot: str, value: Tensor) -> Tensor:
            # what has another form is a number for the whole parameter
            if slot not in self.slots or self.slots[slot].codec is None or value.numel() != whole.numel():
                return value
            return value.flatten()[first : first + count].view(self.rows, self.cols)

        slots = {
            slot: {key: own(slot, value) for key, value in store.items()}
            for slot, store in state.get("slots", {}).items()
        }
        return {**state, "slots": slots}

    @torch.no_grad()
    def carry(self, index: int, other: "ParameterBatch", at: int) -> None:
        """Takes over what another batch knows of the same parameter, in the format of this one.

        What the other does not have, or in a form that can't be turned into that of this one, starts afresh.
        """
        self.steps[index] = other.steps[at]
        for name, store in self.stores.items():
            if name not in other.stores:
                continue
            known = {key: tensor[at : at + 1] for key, tensor in other.stores[name].items()}
            one = {key: tensor[index : index + 1] for key, tensor in store.items()}
            codec, old = self.slots[name].codec, other.slots[name].codec
            same = known.keys() == one.keys() and all(known[key].shape == one[key].shape for key in one)
            if codec is old and same:
                for key, tensor in one.items():
                    tensor.copy_(known[key])
            elif codec is not None and old is not None:
                codec.encode(one, old.decode(known, self.dtype).to(self.device).contiguous(), None)


def layout_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """What of the options may change which state there is: of a number with a fraction, only whether it is 0.

    So a schedule of a decay or of a momentum leaves the state alone.
    """
    return {name: value != 0 if isinstance(value, float) else value for name, value in options.items()}


def equal_runs(values: Sequence[Any]) -> Iterator[tuple[int, int]]:
    """Ranges of neighbours with equal values, without those that are None."""
    start = 0
    for end in range(1, len(values) + 1):
        if end == len(values) or values[end] != values[start]:
            if values[start] is not None:
                yield start, end
            start = end
