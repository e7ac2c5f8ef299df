import math
from collections.abc import Mapping, Sequence
from typing import Any

from scaled_optim.arithmetic import product, sum_of_products, transposed_product, zero_length
from scaled_optim.features.moments import FIRST, moment_slot
from scaled_optim.features.unmagnified import eigen_beside, eigenvalues, inverse_roots, unit_basis
from scaled_optim.features.weight_decay import decay_slots
from scaled_optim.roles import Role, Shape
from scaled_optim.rules.AdamWAdv import AdamWAdv
from scaled_optim.rules.Rule import COMMON, Rule
from scaled_optim.scaling import COHERENT, subspace_gain
from scaled_optim.StackStep import Slot, StackStep

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
    are products of factors and gradients with each other and r × r matrices. U is turned at the end of each step so
    that V is diagonal; beside N are kept Bₜ₋₁, that U's W, V's diagonal, and ρ.
    Two things differ from the paper's equations: running means instead of sums, with decays β·(1 − βᵗ⁻¹)/(1 − βᵗ) that
    need no bias correction (`use_bias_correction` false: β itself), and √(V + ρ) + ε. Along directions that B lacks, as
    at a start from zero, A's step is zero.

    `rite_scale`: "sum" as above, or "mean" with V the mean of ḡᵀḡ over the factor's m rows, which makes steps √m
    larger, as those of the authors' code are (docs/lora_rite.md).
    `clip_unmagnified_grad`: largest Frobenius norm of each ḡ; 0: any. `scaled_optm`: each factor's step changes H, the
    layer's `[out, in]` matrix, by √(out/in)·η in the spectral norm, as `HIDDEN`'s scaled steps do, times the gain of
    the partner's space (`subspace_gain`) and √(1 + 1/rank), which are 1 with `scale_law` variance. Other parameters,
    the DoRA scale too, go to the auxiliary AdamW with the same options. OrthoGrad and cautious decay are not invariant.
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
        "rite_scale": "sum",
    }

    def for_parameter(
        self, role: Role, shape: Shape, name: str, options: Mapping[str, Any], partner_shape: Shape | None = None
    ) -> tuple[Rule, Mapping[str, Any]]:
        if partner_shape is None:
            shared = {key: value for key, value in options.items() if key in AdamWAdv.defaults}
            return AdamWAdv(), {**AdamWAdv.defaults, **shared}
        return self, {**options, "partner_shape": partner_shape}

    def moments(self, options: Mapping[str, Any]) -> list[str]:
        return [FIRST]

    def slots(self, options: Mapping[str, Any], role: Role, rows: int, cols: int) -> list[Slot]:
        partner_shape, rank = options["partner_shape"], rows if role.name == DOWN else cols

        def create(p: Tensor, keys: Tensor) -> dict[str, Tensor]:
            b = p.shape[0]
            sizes = {"factor": partner_shape, "inverse": (rank, rank), "values": (rank,), "escaped": (1,)}
            return {key: p.new_zeros(b, *size) for key, size in sizes.items()}

        first = moment_slot(FIRST, options, role, rows, cols)
        return [first, Slot(SPACE, create=create), *decay_slots(options, role)]

    def numbers(self, options: Mapping[str, Any], step: int) -> dict[str, Any]:
        """With β₁ and β₂ of this step."""
        numbers = super().numbers(options, step)
        for name in ("beta1", "beta2"):
            beta = options[name]
            corrected = beta * (1 - beta ** (step - 1)) / (1 - beta**step)
            numbers[name] = corrected if options["use_bias_correction"] else beta
        return numbers

    def direction(self, s: StackStep) -> Tensor:
        return self.directions([s])[0]

    def directions(self, steps: Sequence[StackStep]) -> list[Tensor]:
        """The steps N, the momentum itself where nothing scales them; small matrices of both factors at once."""
        sizes = [s.shape[0] for s in steps]
        gram, away, squares = (torch.cat(pieces) for pieces in zip(*map(self._products, steps), strict=True))
        inverse, values, escaped = (
            torch.cat([s.store(SPACE)[key] for s in steps]) for key in ("inverse", "values", "escaped")
        )
        runner = steps[0].runner
        w, r = unit_basis(gram, runner)
        squares = product(product(w.mT, squares), w)
        limit, fresh = steps[0].options["clip_unmagnified_grad"], _column(steps, "beta1", complement=True)
        if limit:
            share = clipped_share(squares, limit)
            squares, fresh = squares * share.square(), fresh * share
        if steps[0].options["rite_scale"] == "mean":
            long_sides = [s.shape[2] if s.role.name == DOWN else s.shape[1] for s in steps]
            squares = torch.cat([piece / side for piece, side in zip(squares.split(sizes), long_sides, strict=True)])
        # UₜᵀXₜ₋₁
        seen = r + product(w.mT, away)
        p = product(seen, inverse)
        beta2 = _column(steps, "beta2")
        carried = product(p * values.unsqueeze(1), p.mT)
        moment = carried * beta2 + squares * _column(steps, "beta2", complement=True)
        before = values
        values, vectors, remaining = eigen_beside(moment, carried, runner)
        lost = (before - remaining).abs_().amax(1, keepdim=True)
        escaped = (escaped + lost) * beta2.squeeze(2)
        inverse = product(w, vectors)
        roots = inverse_roots(values, escaped, steps[0].options["eps"])
        new = product(inverse * roots.unsqueeze(1), inverse.mT) * fresh
        kept = product(w, seen) * _column(steps, "beta1")
        found, bases = [], []
        small = (x.split(sizes) for x in (kept, new, r, inverse, values, escaped))
        for s, kept, new, r, *remembered in zip(steps, *small, strict=True):
            for key, value in zip(("inverse", "values", "escaped"), remembered, strict=True):
                s.store(SPACE)[key].copy_(value)
            found.append(self._momentum(s, kept, new))
            bases.append(r)
        places = [place for place, s in enumerate(steps) if s.options["scaled_optm"]]
        if places:
            sized = self._sized(*([x[place] for place in places] for x in (steps, found, bases)))
            for place, u in zip(places, sized, strict=True):
                found[place] = u
        return found

    def _products(self, s: StackStep) -> tuple[Tensor, Tensor, Tensor]:
        """BₜᵀBₜ, Bₜᵀ·(Bₜ₋₁ − Bₜ) and ∇Aᵀ·∇A `[b, r, r]`; Bₜ₋₁ becomes Bₜ.

        Of the small difference little is lost to rounding, of Bₜ₋₁ itself κ(B)²·ε would be.
        """
        found = []
        for start, stop in s.blocks():
            now, moved = s.partners.slice(start, stop), s.store(SPACE)["factor"][start:stop]
            difference = moved.sub_(now)
            gram, away = (transposed_product(now, x, s.role.name != DOWN) for x in (now, difference))
            moved.copy_(now)
            g = s.gradients.slice(start, stop)
            found.append((gram, away, transposed_product(g, g, s.role.name == DOWN)))
        return tuple(torch.cat(pieces) for pieces in zip(*found, strict=True))

    def _momentum(self, s: StackStep, kept: Tensor, new: Tensor) -> Tensor:
        """N ← N·keptᵀ + ∇A·new, with new symmetric; returns N."""
        m = s.read(FIRST)
        for start, stop in s.blocks():
            before, g, k, n = m[start:stop], s.gradients.slice(start, stop), kept[start:stop], new[start:stop]
            # a down factor and its gradient are seen transposed
            factors = (k, before, n, g) if s.role.name == DOWN else (before, k.mT, g, n)
            before.copy_(sum_of_products(*factors))
        s.write(FIRST, m)
        return m

    def _sized(self, steps: Sequence[StackStep], found: Sequence[Tensor], bases: Sequence[Tensor]) -> list[Tensor]:
        """The steps N with σ₁(N·Bᵀ) = √(out/in), from R `[b, r, r]` of B = U·R."""
        grams = []
        for s, u, r in zip(steps, found, bases, strict=True):
            gram = product(u, u.mT) if s.role.name == DOWN else product(u.mT, u)
            # of M = N·Rᵀ
            grams.append(product(product(r, gram), r.mT))
        largest = eigenvalues(torch.cat(grams), steps[0].runner)[:, -1:, None].clamp(min=0).sqrt()
        pieces = largest.split([len(gram) for gram in grams])
        return [
            u * (_size(s) / piece.clamp(min=zero_length(u.dtype)))
            for s, u, piece in zip(steps, found, pieces, strict=True)
        ]

    def scaled(self, s: StackStep, u: Tensor) -> Tensor:
        """u as it is: `direction` has given it its size."""
        return u


def _size(s: StackStep) -> float:
    """σ₁ of a scaled step of H = A·Bᵀ for a learning rate of 1."""
    partner_shape = s.options["partner_shape"]
    if s.role.name == DOWN:
        outputs, inputs, ranks = partner_shape[0], s.shape[2], s.shape[1]
    else:
        outputs, inputs, ranks = s.shape[1], partner_shape[1], s.shape[2]
    # the step of H stays in the columns of B, or in the rows of A
    side = outputs if s.role.name == DOWN else inputs
    law = s.options["scale_law"]
    size = math.sqrt(outputs / inputs) * subspace_gain(side, ranks, law)
    # measured: without it the best rate of one rank is half as high again as that of many
    return size * math.sqrt(1 + 1 / ranks) if law == COHERENT else size


def clipped_share(gram: Tensor, limit: float) -> Tensor:
    """What is left of each gradient, `[b, 1, 1]`, when its Frobenius norm is limited; 1 for a limit of 0.

    Args:
        gram: of the gradients, `[b, r, r]`.
    """
    norm = gram.diagonal(dim1=1, dim2=2).sum(1)[:, None, None].clamp(min=0).sqrt()
    if not limit:
        return torch.ones_like(norm)
    return (limit / norm.clamp(min=torch.finfo(gram.dtype).tiny)).clamp(max=1)


def _column(steps: Sequence[StackStep], name: str, complement: bool = False) -> Tensor:
    """A number of each step, or one minus it, for each of its matrices: `[b, 1, 1]` of all stacks together."""
    columns = []
    for s in steps:
        number = 1 - s.n[name] if complement else s.n[name]
        size = s.shape[0], 1, 1
        # filled on the device: a copy from the host would wait for it
        columns.append(
            number.to(s.dtype).expand(size)
            if isinstance(number, Tensor)
            else torch.full(size, number, dtype=s.dtype, device=s.device)
        )
    return torch.cat(columns)
