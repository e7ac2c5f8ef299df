"""Runs a kind of fused step beside the single operations, on small random parameters, before it is trusted."""

from collections.abc import Callable, Hashable
from types import SimpleNamespace
from typing import Any

from scaled_optim.kernels.Runner import Runner
from scaled_optim.ParameterBatch import layout_of
from scaled_optim.rules.Rule import Rule
from scaled_optim.scaling import GRAM_LIMIT
from scaled_optim.StackStep import StackStep

import torch
from torch import Tensor, nn

COUNT, STEPS = 3, 3
# Of numbers that may lie further off than this part of the largest: where rounding or a sign tips over. Wrong noise or
# a wrong formula moves most of them.
TOLERANCE, TIPPED = 1e-4, 0.01


class _Trusting(Runner):
    """Launches what is on trial, as the runner does that wants to know."""

    def __init__(self, runner: Runner) -> None:
        super().__init__(runner.devices)
        self._runner = runner

    def serves(self, device: torch.device) -> bool:
        return self._runner.serves(device)

    def launch(self, name: str, *rest: Any) -> None:
        self._runner.launch(name, *rest)

    def trusted(self, kind: Hashable, check: Any) -> bool:
        return True


def kind_of(rule: Rule, s: StackStep) -> Hashable:
    """What a trial says something about: all that becomes part of the kernels' code."""
    rows, cols = s.shape[1:]
    formats = s.parameters.tensors[0].dtype, s.gradients.tensors[0].dtype
    return (
        rule.name,
        repr(layout_of(s.options)),
        s.role.name,
        s.kernel,
        rows <= cols,
        min(rows, cols) > GRAM_LIMIT,
        formats,
    )


def trial(make: Callable[..., Any], rule: Rule, s: StackStep) -> str | None:
    """What is wrong with the kernels for steps like this one; None if they agree. Waits for the device.

    Args:
        make: `BatchedOptimizer`, which this is a part of.
    """
    options = {key: s.options[key] for key in rule.defaults}
    format, gradient_format = s.parameters.tensors[0].dtype, s.gradients.tensors[0].dtype
    found = []
    for kernels in ("never", _Trusting(s.runner)):
        generator = torch.Generator().manual_seed(1)
        parameters = []
        for index in range(COUNT):
            value = torch.randn(_shape(s), generator=generator)
            parameters.append(nn.Parameter(value.to(s.device, format)))
            parameters[-1].parameter_info = SimpleNamespace(role=s.role.name, name=str(index))
        optimizer = make(parameters, rule, 0.01, kernels=kernels, **options)
        for _ in range(STEPS):
            for parameter in parameters:
                gradient = torch.randn(parameter.shape, generator=generator)
                parameter.grad = gradient.to(s.device, format)
                if gradient_format != format:
                    parameter.grad = None
                    parameter.grad_dtype = gradient_format
                    parameter.grad = gradient.to(s.device, gradient_format)
            optimizer.step()
        slots = [store for p in parameters for store in optimizer.state[p]["slots"].values()]
        tensors = [*(p.detach() for p in parameters), *(tensor for store in slots for tensor in store.values())]
        found.append(tensors)
    tipped = [_tipped(a, b) for a, b in zip(*found, strict=True) if a.numel()]
    # of the parameters all, of numbers that few share the most
    worst = max(tipped)
    return None if worst <= TIPPED else f"{worst:.1%} of its numbers are others"


def _tipped(a: Tensor, b: Tensor) -> float:
    a, b = a.double(), b.double()
    size = torch.nan_to_num(b).abs().max()
    return float(((a - b).abs() <= TOLERANCE * size).logical_not().double().mean())


def _shape(s: StackStep) -> tuple[int, ...]:
    """A shape as small as may be that takes the same way through the kernels."""
    _, rows, cols = s.shape
    if s.role.name == "OFT":
        return 50, 28
    if rows == 1:
        return (min(cols, 1500),)
    if min(rows, cols) > GRAM_LIMIT:
        shape = (70, 81)
    else:
        shape = (rows, max(rows, 1500 // rows)) if rows <= cols else (max(cols, 1500 // cols), cols)
    return (*shape, 1, 1) if s.kernel else shape
