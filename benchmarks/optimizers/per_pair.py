"""Stiefel-LoRA and LoRA-RITE written straight from their equations, one LoRA after the other: peers for the speed.

Each factor is decomposed by itself with torch.linalg's routines, as the public implementations do.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


def pairs_of(parameters: Iterable[nn.Parameter]) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
    """(down, up) of every LoRA, by the names in `parameter_info`."""
    by_name = {parameter.parameter_info.name: parameter for parameter in parameters}
    for parameter in by_name.values():
        if parameter.parameter_info.role == "LORA_DOWN":
            yield parameter, by_name[parameter.parameter_info.pair]


class PerPair(torch.optim.Optimizer):
    """A step for each LoRA, `step_pair`, with `self.state[down]` as memory of the pair."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, **options: Any) -> None:
        super().__init__(params, {"lr": lr, **options})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for down, up in pairs_of(group["params"]):
                state = self.state[down]
                state["step"] = state.get("step", 0) + 1
                self.step_pair(down, up, state, group)

    def step_pair(self, down: nn.Parameter, up: nn.Parameter, state: dict[str, Any], group: dict[str, Any]) -> None:
        raise NotImplementedError


class PerPairStiefel(PerPair):
    """Stiefel-LoRA (arXiv 2508.17901) with Adam's moments and the sizes of steps that our rule has."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(params, lr, betas=(0.9, 0.999), eps=1e-8)

    def step_pair(self, down: nn.Parameter, up: nn.Parameter, state: dict[str, Any], group: dict[str, Any]) -> None:
        u_down, u_up = (self._adam(p, state.setdefault(name, {}), state["step"], group)
                        for name, p in (("down", down), ("up", up)))  # fmt: skip
        inner = up.T @ u_up
        u_up = u_up - up @ (inner + inner.T) / 2
        rate = group["lr"] * max(1.0, len(up) / len(down)) ** 0.25
        down.sub_(u_down, alpha=rate * (len(up) / down.shape[1]) ** 0.5 / _norm(u_down))
        q, r = torch.linalg.qr(up - rate / _norm(u_up) * u_up)
        up.copy_(q * r.diagonal().sign())

    @staticmethod
    def _adam(p: nn.Parameter, state: dict[str, Tensor], step: int, group: dict[str, Any]) -> Tensor:
        first, second = group["betas"]
        if not state:
            state |= {"m": torch.zeros_like(p), "v": torch.zeros_like(p)}
        m, v = state["m"].lerp_(p.grad, 1 - first), state["v"].mul_(second).addcmul_(p.grad, p.grad, value=1 - second)
        return (m / (1 - first**step)) / ((v / (1 - second**step)).sqrt() + group["eps"])


def _norm(x: Tensor) -> float:
    return float(torch.linalg.matrix_norm(x, 2))


class PerPairRite(PerPair):
    """LoRA-RITE (arXiv 2410.20625): QR of each factor, its pseudo-inverse, eigenvalues for the root and the mass."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(params, lr, betas=(0.9, 0.999), eps=1e-8)

    def step_pair(self, down: nn.Parameter, up: nn.Parameter, state: dict[str, Any], group: dict[str, Any]) -> None:
        factors = {"a": (up, down.T, up.grad), "b": (down.T, up, down.grad.T)}
        steps = {
            name: self._direction(other, gradient, state.setdefault(name, {}), state["step"], group)
            for name, (_, other, gradient) in factors.items()
        }
        for name, (own, _, _) in factors.items():
            own.sub_(steps[name], alpha=group["lr"])

    @staticmethod
    def _direction(
        other: Tensor, gradient: Tensor, state: dict[str, Tensor], step: int, group: dict[str, Any]
    ) -> Tensor:
        u, r = torch.linalg.qr(other)
        inverse = torch.linalg.pinv(r)
        g = gradient @ inverse
        beta1, beta2 = (beta * (1 - beta ** (step - 1)) / (1 - beta**step) for beta in group["betas"])
        if not state:
            rank = r.shape[0]
            state |= {"u": u, "m": torch.zeros_like(g), "v": g.new_zeros(rank, rank), "rho": g.new_zeros(())}
        p = u.T @ state["u"]
        carried = p @ state["v"] @ p.T
        lost = (torch.linalg.eigvalsh(state["v"]) - torch.linalg.eigvalsh(carried)).abs().max()
        v = beta2 * carried + (1 - beta2) * g.T @ g
        rho = beta2 * (state["rho"] + lost)
        values, vectors = torch.linalg.eigh(v)
        root = vectors / ((values.clamp(min=0) + rho).sqrt() + group["eps"]) @ vectors.T
        m = beta1 * state["m"] @ p.T + (1 - beta1) * g @ root
        state |= {"u": u, "m": m, "v": v, "rho": rho}
        return m @ inverse.T
