import math
from collections.abc import Mapping
from typing import Any

from modules.optim.arithmetic import product, sum_of_products
from modules.optim.features.moments import FIRST, moment_slot
from modules.optim.features.unmagnified import eigen, eigenvalues, inverse_root, unit_basis
from modules.optim.features.weight_decay import anchor_slots
from modules.optim.roles import Role
from modules.optim.rules.AdamWAdv import AdamWAdv
from modules.optim.rules.Rule import COMMON, Rule
from modules.optim.StackStep import Slot, StackStep

import torch
from torch import Tensor

DOWN = "LORA_DOWN"
SPACE = "partner_space"


class LoRARite(Rule):
    """LoRA-RITE (arXiv 2410.20625): the step of H = A·Bᵀ is the same however H is split into its factors.

    For the factor A `[m, r]` beside B `[n, r]` = U·R with orthonormal columns U, W = R⁻¹, and B symmetric:
    ḡ = ∇A·W, P = Uₜᵀ·Uₜ₋₁, V ← β₂·P·V·Pᵀ + (1 − β₂)·ḡᵀḡ, ρ ← β₂·(ρ + max|λ(V) − λ(P·V·Pᵀ)|) with the V before,
    S = ḡ·(V + ρ)^(−1/2), M ← β₁·M·Pᵀ + (1 − β₁)·S, A ← A − η·M·Wᵀ.

    M is kept as N = M·Wᵀ, the last step, so that M·Pᵀ·Wᵀ = N·Bₜ₋₁ᵀ·Bₜ·W·Wᵀ, and ḡ is never formed: all that it takes
    are products of factors and gradients with each other and r × r matrices. Beside N are kept Bₜ₋₁ and V, ρ, W.
    Differs from the paper's equations: running means instead of sums, with decays
    β·(1 − βᵗ⁻¹)/(1 − βᵗ) that need no bias correction (`use_bias_correction` false: β itself), and √(V + ρ) + ε. Of
    directions that B has not, as at a start from zero, A's step is zero.

    `clip_unmagnified_grad`: largest Frobenius norm of each ḡ; 0: any. `scaled_optm`: each factor's step changes H, the
    layer's `[out, in]` matrix, by √(out/in)·η in the spectral norm, as `HIDDEN`'s scaled steps do. All that is no
    factor of a LoRA pair, the DoRA scale too, goes to the auxiliary AdamW with the same options. OrthoGrad and cautious
    decay are not invariant.
    """

    name = "LORA_RITE"
    needs_pairs = True
    paired = True
    defaults = {
        **COMMON,
        "beta1": 0.9,
        "beta2": 0.999,
        "eps": 1e-8,
        "use_bias_correction": True,
        "clip_unmagnified_grad": 0.0,
    }

    def for_parameter(
        self,
        role: Role,
        rows: int,
        cols: int,
        name: str,
        options: Mapping[str, Any],
        partner: tuple[int, int] | None = None,
    ) -> tuple[Rule, Mapping[str, Any]]:
        if partner is None:
            shared = {key: value for key, value in options.items() if key in AdamWAdv.defaults}
            return AdamWAdv(), {**AdamWAdv.defaults, **shared}
        return self, {**options, "partner": partner}

    def moments(self, options: Mapping[str, Any]) -> list[str]:
        return [FIRST]

    def slots(self, options: Mapping[str, Any], role: Role, rows: int, cols: int) -> list[Slot]:
        partner, rank = options["partner"], rows if role.name == DOWN else cols

        def create(p: Tensor, keys: Tensor) -> dict[str, Tensor]:
            b = p.shape[0]
            sizes = {
                "factor": partner, "inverse": (rank, rank), "moment": (rank, rank), "values": (rank,), "escaped": (1,)
            }  # fmt: skip
            return {key: p.new_zeros(b, *size) for key, size in sizes.items()}

        first = moment_slot(FIRST, options, role, rows, cols)
        return [first, Slot(SPACE, create=create), *anchor_slots(options, role)]

    def numbers(self, options: Mapping[str, Any], step: int) -> dict[str, Any]:
        """With β₁ and β₂ of this step."""
        numbers = super().numbers(options, step)
        for name in ("beta1", "beta2"):
            beta = options[name]
            corrected = beta * (1 - beta ** (step - 1)) / (1 - beta**step)
            numbers[name] = corrected if options["use_bias_correction"] else beta
        return numbers

    def direction(self, s: StackStep) -> Tensor:
        o, space, beta1 = s.options, s.store(SPACE), s.n["beta1"]
        # a down factor and its gradient are seen transposed; its mate, an up factor, is tall as it is
        wide = s.role.name == DOWN
        now, moved = s.mates.value, space["factor"]
        moved.sub_(now)
        if not wide:
            now, moved = now.mT, moved.mT
        gram = product(now.mT, now)
        w, r = unit_basis(gram)
        # BₜᵀD with Bₜ₋₁ = Bₜ + D: of the small D little is lost to rounding, of Bₜ₋₁ κ(B)²·ε would be
        away = product(now.mT, moved)
        squares = product(s.g, s.g.mT) if wide else product(s.g.mT, s.g)
        squares = product(product(w.mT, squares), w)
        share = clipped_share(squares, o["clip_unmagnified_grad"])
        p = product(r + product(w.mT, away), space["inverse"])
        root = self._preconditioner(s, p, squares * share.square())
        inverse = product(w, w.mT)
        kept = (product(r.mT, w.mT) + product(away.mT, inverse)) * beta1
        new = product(product(w, root), w.mT) * (share * (1 - beta1))
        m = s.read(FIRST)
        u = sum_of_products(kept.mT, m, new.mT, s.g) if wide else sum_of_products(m, kept, s.g, new)
        s.write(FIRST, u)
        space["factor"].copy_(s.mates.value)
        space["inverse"].copy_(w)
        return self._sized(s, u, r) if o["scaled_optm"] else u

    def _preconditioner(self, s: StackStep, p: Tensor, gram: Tensor) -> Tensor:
        """(V + ρ)^(−1/2) `[b, r, r]` after V and ρ have been carried to the new basis by P and the step's ḡᵀḡ added."""
        space, beta2 = s.store(SPACE), s.n["beta2"]
        carried = product(product(p, space["moment"]), p.mT)
        lost = (space["values"] - eigenvalues(carried)).abs_().amax(1, keepdim=True)
        moment = carried * beta2 + gram * (1 - beta2)
        moment = (moment + moment.mT).mul_(0.5)
        values, vectors = eigen(moment)
        space["moment"].copy_(moment)
        space["values"].copy_(values)
        space["escaped"].add_(lost).mul_(beta2)
        return inverse_root(values, vectors, space["escaped"], s.options["eps"])

    def _sized(self, s: StackStep, u: Tensor, r: Tensor) -> Tensor:
        """The step N with σ₁(N·Bᵀ) = √(out/in), from R `[b, r, r]` of B = U·R."""
        partner = s.options["partner"]
        if s.role.name == DOWN:
            outputs, inputs, gram = partner[0], s.shape[2], product(u, u.mT)
        else:
            outputs, inputs, gram = s.shape[1], partner[1], product(u.mT, u)
        # the Gram matrix of M = N·Rᵀ
        largest = eigenvalues(product(product(r, gram), r.mT))[:, -1:, None].clamp(min=0).sqrt()
        floor = 1000 * math.sqrt(torch.finfo(u.dtype).tiny)
        return u.mul_(math.sqrt(outputs / inputs) / largest.clamp(min=floor))

    def scaled(self, s: StackStep, u: Tensor) -> Tensor:
        """u as it is: `direction` has given it its size."""
        return u


def clipped_share(gram: Tensor, limit: float) -> Tensor:
    """What is left of each gradient, `[b, 1, 1]`, when its Frobenius norm is limited; 1 for a limit of 0.

    Args:
        gram: of the gradients, `[b, r, r]`.
    """
    norm = gram.diagonal(dim1=1, dim2=2).sum(1)[:, None, None].clamp(min=0).sqrt()
    if not limit:
        return torch.ones_like(norm)
    return (limit / norm.clamp(min=torch.finfo(gram.dtype).tiny)).clamp(max=1)
