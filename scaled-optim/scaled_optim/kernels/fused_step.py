"""Steps of a whole stack by kernels of our own: first the sums that it needs, if any, then one launch for all of it.

Moments and direction are computed anew for each of the sums, which costs their reading, instead of being kept, which
would cost their writing and reading. Which rules and options are served says `fits`; all else goes the way of single
operations. Axes: b parameters of `[rows, cols]`; units as in `roles`.
"""

from collections.abc import Mapping
from typing import Any

from scaled_optim.arithmetic import zero_length
from scaled_optim.codecs import CODECS, near_square
from scaled_optim.features.decay_portions import portion
from scaled_optim.features.decay_rates import decay_rates, decoupled
from scaled_optim.features.kourkoutas import NAME as KOURKOUTAS
from scaled_optim.features.moments import FIRST, SECOND, SLOW
from scaled_optim.features.weight_decay import NAME as ANCHOR
from scaled_optim.features.weight_decay import plain_decay
from scaled_optim.noise import step_hash
from scaled_optim.roles import PER_COLUMN, PER_ROW, WHOLE
from scaled_optim.rules.AdamWAdv import AdamWAdv, epsilon
from scaled_optim.rules.AdoptAdv import AdoptAdv
from scaled_optim.rules.LionAdv import LionAdv
from scaled_optim.rules.ProdigyAdv import DISTANCE, ProdigyAdv, beta3
from scaled_optim.rules.Rule import Rule
from scaled_optim.rules.SignSGDAdv import SignSGDAdv
from scaled_optim.scaling import NAME as SPECTRAL
from scaled_optim.scaling import largest_singular_value, matrix_size, squarings_for, step_size
from scaled_optim.StackStep import StackStep

import torch
from torch import Tensor

# The numbers by which the kernels know rules, codecs, units and anchors.
PREFIXES = (("m", FIRST), ("v", SECOND), ("slow", SLOW))
FACTORS = CODECS["factored"]
KINDS: Mapping[type[Rule], int] = {AdamWAdv: 0, AdoptAdv: 1, ProdigyAdv: 2, LionAdv: 3, SignSGDAdv: 4}
UNITS = {WHOLE: 1, PER_ROW: 2, PER_COLUMN: 3}
ANCHOR_KINDS = {"full": 1, "int8": 2}
FP32, BF16, INT8, UINT8, FACTORED = range(5)
NO_DECAY, PLAIN, WEIGHED = range(3)
# elements of a program: the block of an 8-bit state, and at most of a tile
BLOCK, TILE = 1024, 4096
# groups of 32 threads for each; so many that none keeps its values in slow memory
STEP_WARPS, SUM_WARPS = 4, 8
# of options, what the kernels don't know
OTHERS = ("l1_adaptive", "freeze_on_flip", "geometric_wd", "stochastic_sign", "snr_cond")
# by the kernels' numbers; second moments in 8 bits have one of their own
SERVED_CODECS = {CODECS["fp32"]: FP32, CODECS["bf16_sr"]: BF16, CODECS["int8_sr"]: INT8, CODECS["factored"]: FACTORED}
SERVED_FORMATS = (torch.float32, torch.bfloat16, torch.float16)


def fits(rule: Rule, s: StackStep) -> bool:
    """Whether the kernels know all that this step asks for."""
    o = s.options
    if s.runner is None or not s.runner.serves(s.device) or type(rule) not in KINDS or s.partners is not None:
        return False
    if any(o.get(name) for name in OTHERS) or (o.get("auto_kappa_p") and s.kernel):
        return False
    if o["orthogonal_gradient"] == "iterative":
        return False
    if isinstance(rule, SignSGDAdv) and o["normed_momentum"] and o["nesterov"]:
        return False
    # portions of decay are rounded at random, once in many steps
    if s.n["portions"] and s.n["pays"]:
        return False
    if s.dtype != torch.float32 or isinstance(s.step, Tensor) or (s.first and isinstance(rule, AdoptAdv)):
        return False
    if any(isinstance(s.n.get(name), Tensor) for name in ("lr", "decay", "gain")):
        return False
    stacks = s.gradients, s.parameters
    if not all(stack.contiguous and stack.tensors[0].dtype in SERVED_FORMATS for stack in stacks):
        return False
    if any(s.codec_of(name) not in SERVED_CODECS for name in (FIRST, SLOW, SECOND) if s.has(name)):
        return False
    return not s.has(ANCHOR) or o["centered_wd_mode"] in ANCHOR_KINDS


def fused_step(rule: Rule, s: StackStep) -> Tensor | None:
    """Steps state and parameters of a stack that `fits`; returns the direction if someone watches."""
    return _FusedStep(rule, s).run()


class _FusedStep:
    """One step of one stack: what the kernels are told, and what each launch touches."""

    def __init__(self, rule: Rule, s: StackStep) -> None:
        self.rule, self.s, self.kind = rule, s, KINDS[type(rule)]
        self.b, self.rows, self.cols = s.shape
        parameters, gradients = s.parameters.tensors, s.gradients.tensors
        self.parameters, self.gradients = parameters, gradients
        # Prodigy's d is 1 for all others; its decay takes part in it, unless steps are scaled
        self.d = s.totals["d"] if isinstance(rule, ProdigyAdv) else None
        self.states = {name: s.store(name) for name in (FIRST, SECOND, SLOW) if s.has(name)}
        table = s.runner.table(("step", s.keys.data_ptr(), self.b), [*parameters, *gradients])
        self.table = {
            "table": table,
            "b": self.b,
            "rows": self.rows,
            "cols": self.cols,
            "P": parameters[0].dtype,
            "G": gradients[0].dtype,
            "ALIGNED": s.elements % 16 == 0 and s.runner.aligned(("step", s.keys.data_ptr(), self.b)),
        }

    def run(self) -> Tensor | None:
        s, o = self.s, self.s.options
        fisher, masked, scaled = o.get("fisher_wd", False), o.get("use_cautious", False), o["scaled_optm"]
        decays = any(decay_rates(o, s.role)) and not s.n["portions"]
        self._read_gradients()
        if isinstance(self.rule, ProdigyAdv) and s.n["estimates"]:
            self._measure()
        self.element = {**self.table, **self._state_arguments(), **self._numbers(), **self._switches()}
        self.element |= {"N": s.elements, "side": near_square(s.elements)[1], "MASKED": masked}
        large = scaled and s.has(SPECTRAL)
        factor, factor_unit, shrink = None, 0, None
        if (scaled and not large) or masked or (fisher and decays):
            factor, factor_unit, shrink = self._direction_sums(scaled and not large, fisher and decays)
        if large:
            u = self._step(out=True, moves=False)
            size = step_size(s, largest_singular_value(u, s.store(SPECTRAL)))
            factor, factor_unit = size, 1
        renewed = self._factor_sums()
        u = self._step(factor=factor, factor_unit=factor_unit, shrink=shrink, out=s.watched, moves=True)
        for name, sums in renewed.items():
            FACTORS.renew(self.states[name], *(partial.sum(1) for partial in sums))
        return u

    # -- sums ---------------------------------------------------------------------------------------------------------

    def _read_gradients(self) -> None:
        """What the orthogonal gradient and Kourkoutas-β need to know of gradients, and the numbers that come of it."""
        s, o = self.s, self.s.options
        mode, kourkoutas = o["orthogonal_gradient"], o.get("kourkoutas_beta", False)
        self.along: Tensor | None = None
        self.length: Tensor | None = None
        self.weights: Tensor | None = None
        self.ortho_unit = self.beta2_unit = 0
        if mode == "disabled" and not kourkoutas:
            return
        dims = s.role.unit if kourkoutas or mode == "per_rank" else WHOLE
        unit, ortho = UNITS[dims], {"disabled": 0, "flattened": 1, "per_rank": 2}[mode]
        sums, splits, count = self._gradient_sums(unit, ortho > 0)
        if ortho:
            self.along, self.length = (self._empty(self.b, 1 if ortho == 1 else count) for _ in range(2))
            self.ortho_unit = 1 if ortho == 1 else unit
        store = s.store(KOURKOUTAS) if kourkoutas else {}
        if kourkoutas:
            self.weights, self.beta2_unit = self._empty(self.b, *s.role.unit_shape(self.rows, self.cols)), unit
        arguments = {
            **sums, "table": self.table["table"], "along_out": self.along, "length_out": self.length,
            "last": store.get("last_norm"), "mean": store.get("mean_norm"), "weights_out": self.weights,
            "splits": splits, "count": count, "numel": s.elements, **self._spike_numbers(), "ORTHO": ortho,
            "KOURKOUTAS": kourkoutas, "U": max(16, _power_above(count)), "num_warps": STEP_WARPS,
        }  # fmt: skip
        made = [x for x in (self.along, self.length, self.weights) if x is not None]
        reads = [x for x in sums.values() if x is not None] + list(store.values())
        s.runner.launch("units", (self.b,), arguments, reads, made + list(store.values()))
        if kourkoutas and s.watched:
            s.beta2 = 1 - self.weights

    def _measure(self) -> None:
        """Adds up this stack's share of both of Prodigy's sums."""
        s, o = self.s, self.s.options
        store, totals = s.store(DISTANCE), s.totals
        arguments = {
            **self.table, "along": self.along, "length": self.length, "d_at": self.d, "start": store["start"],
            "sums": store["sum"], "places": s.places, "numerators": totals["numerators"],
            "denominators": totals["denominators"], "count": store["sum"].shape[1], "stride": o["slice_p"],
            "rate": s.n["lr"], "beta3": beta3(o), "d0": o["d0"], "ORTHO_UNIT": self.ortho_unit,
            "SAFEGUARD": o["safeguard_warmup"], "BLOCK": BLOCK, "num_warps": STEP_WARPS,
        }  # fmt: skip
        # of gradients and parameters as many numbers as there are in the sum
        more = store["sum"].numel() * (self.parameters[0].itemsize + self.gradients[0].itemsize)
        s.runner.launch("distances", (self.b,), arguments, list(store.values()), [store["sum"]], more)

    def _spike_numbers(self) -> dict[str, float]:
        """Of Kourkoutas-β, and what of an orthogonal gradient is only rounding."""
        o, n = self.s.options, self.s.n
        high, ema = o.get("beta2", 0.0), o.get("ema_alpha", 0.0)
        return {
            "ema": ema, "rest_ema": 1 - ema, "high": high, "tiny": o.get("tiny_spike", 0.0),
            "span": (high - o.get("beta2_min", 0.0)) * n.get("kourkoutas_share", 0.0),
            "least": torch.finfo(self.s.dtype).eps ** 0.5,
        }  # fmt: skip

    def _gradient_sums(self, unit: int, needs_p: bool) -> tuple[dict[str, Tensor | None], int, int]:
        """Partial sums of g², g·p and p², float64, how many there are of each, and how many units."""
        tiles, units = self._tiles(unit)
        names = {"squares": True, "products": needs_p, "lengths": needs_p}
        partials = {key: self._partials(tiles, unit, units, torch.float64) if on else None for key, on in names.items()}
        arguments = {**self.table, **tiles, **partials, "UNIT": unit, "NEEDS_P": needs_p}
        reads = [*self.gradients, *(self.parameters if needs_p else [])]
        self._launch("gradient_sums", tiles, arguments, reads, [x for x in partials.values() if x is not None])
        return partials, partials["squares"].shape[1], units

    def _direction_sums(self, scaled: bool, fisher: bool) -> tuple[Tensor | None, int, Tensor | None]:
        """What multiplies the direction, for which unit, and what multiplies Fisher's decay `[b]`."""
        s, masked = self.s, self.element["MASKED"]
        role = "HIDDEN" if s.role.name == "INPUT" and s.kernel else s.role.name
        matrix = s.role.matrix or role == "HIDDEN"
        gram = (1 if self.rows <= self.cols else 2) if scaled and matrix else 0
        size_unit = 0 if not scaled or matrix else (2 if role in ("OFT", "INPUT") else 1)
        tiles, units = self._tiles(size_unit or 1, gram)
        partials: dict[str, Tensor | None] = dict.fromkeys(("sizes", "grams", "agreeing", "weighed"))
        if size_unit:
            partials["sizes"] = self._partials(tiles, size_unit, units, torch.float32)
        if gram:
            side = tiles["TR" if gram == 1 else "TC"]
            partials["grams"] = self._empty(self.b, tiles["row_tiles"] * tiles["col_tiles"], side, side)
        if masked:
            partials["agreeing"] = self._partials(tiles, 1, 1, torch.float32)
        if fisher:
            partials["weighed"] = self._partials(tiles, 1, 1, torch.float32)
        arguments = {**self.element, **tiles, **partials, "SIZE_UNIT": size_unit, "GRAM": gram, "FISHER": fisher}
        arguments["NEEDS_P"] = fisher or self.ortho_unit > 0
        reads = self._touched_state() + self.gradients + (self.parameters if arguments["NEEDS_P"] else [])
        self._launch("direction_sums", tiles, arguments, reads, [x for x in partials.values() if x is not None])
        shrink = None
        if fisher:
            shrink = 1 / (partials["weighed"].sum(1) / s.elements).sqrt_().clamp_(min=1)
        if gram:
            return self._spectral_sizes(partials["grams"]), 1, shrink
        if size_unit:
            return step_size(s, partials["sizes"].sum(1).sqrt_()), size_unit, shrink
        if masked:
            return 1 / (partials["agreeing"].sum(1) / s.elements).clamp_(min=1e-3), 1, shrink
        return None, 0, shrink

    def _factor_sums(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Partial sums of |x| along both sides, of every moment in factored state, by its name."""
        s = self.s
        factored = {name: store for name, store in self.states.items() if s.codec_of(name) is FACTORS}
        if not factored:
            return {}
        n, m = near_square(s.elements)
        wide = min(TILE, max(16, _power_above(m)))
        tiles = {"TR": TILE // wide, "TC": wide, "row_tiles": -(-n // (TILE // wide)), "col_tiles": -(-m // wide)}
        sums = {
            name: (self._empty(self.b, tiles["col_tiles"], n), self._empty(self.b, tiles["row_tiles"], m))
            for name in factored
        }
        partials = {}
        for prefix, name in PREFIXES:
            partials[f"{prefix}_rows"], partials[f"{prefix}_cols"] = sums.get(name, (None, None))
        arguments = {**self.element, **tiles, **partials, "NEEDS_P": self.ortho_unit > 0}
        del arguments["MASKED"]
        reads = self._touched_state() + self.gradients + (self.parameters if self.ortho_unit else [])
        self._launch("factor_sums", tiles, arguments, reads, [partial for both in sums.values() for partial in both])
        return sums

    def _spectral_sizes(self, grams: Tensor) -> Tensor:
        side, sizes = min(self.rows, self.cols), self._empty(self.b)
        arguments = {
            "table": self.table["table"], "grams": grams, "sizes": sizes, "splits": grams.shape[1], "m": side,
            "wanted": matrix_size(self.s), "floor": zero_length(self.s.dtype),
            "SQUARINGS": squarings_for(side), "R": grams.shape[2], "num_warps": STEP_WARPS,
        }  # fmt: skip
        self.s.runner.launch("spectral_sizes", (self.b,), arguments, [grams], [sizes])
        return sizes

    def _tiles(self, unit: int, gram: int = 0) -> tuple[dict[str, int], int]:
        """How a parameter is cut for sums over units, and how many units it has."""
        rows, cols = self.rows, self.cols
        if unit == 1 and not gram and self.element_free_of_units:
            rows, cols = 1, rows * cols
        if gram == 1:
            high = max(16, _power_above(rows))
            wide = TILE // high
        elif gram == 2 or unit == 3:
            wide = max(16, _power_above(cols)) if gram else min(TILE, _power_above(cols))
            high = TILE // wide
        else:
            wide = min(TILE, _power_above(cols))
            high = min(TILE // wide, _power_above(rows))
        tiles = {"row_tiles": -(-rows // high), "col_tiles": -(-cols // wide), "TR": high, "TC": wide}
        return tiles | {"rows": rows, "cols": cols}, {1: 1, 2: rows, 3: cols}[unit]

    @property
    def element_free_of_units(self) -> bool:
        """Whether nothing of an element depends on its row or column, so that a parameter may be cut anywhere."""
        return max(self.ortho_unit, self.beta2_unit) < 2

    def _partials(self, tiles: Mapping[str, int], unit: int, units: int, dtype: torch.dtype) -> Tensor:
        count = {1: tiles["row_tiles"] * tiles["col_tiles"], 2: tiles["col_tiles"], 3: tiles["row_tiles"]}[unit]
        return self._empty(self.b, count, units, dtype=dtype)

    def _empty(self, *size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(size, dtype=dtype, device=self.s.device)

    def _launch(
        self, name: str, tiles: Mapping[str, int], arguments: dict[str, Any], reads: list[Tensor], writes: list[Tensor]
    ) -> None:
        arguments["num_warps"] = SUM_WARPS
        self.s.runner.launch(name, (self.b * tiles["row_tiles"] * tiles["col_tiles"],), arguments, reads, writes)

    # -- what the kernels are told ------------------------------------------------------------------------------------

    def _switches(self) -> dict[str, Any]:
        o, kind = self.s.options, self.kind
        return {
            "RULE": kind,
            "FIRST": FIRST in self.states,
            "SECOND": SECOND in self.states,
            "SLOW": SLOW in self.states,
            "M": self._codec(FIRST if FIRST in self.states else SLOW),
            "V": self._codec(SECOND),
            "NESTEROV": o.get("nesterov", False),
            "SIMPLIFIED": o.get("Simplified_AdEMAMix", False),
            "NORMED": o.get("normed_momentum", False),
            "ATAN": o.get("use_atan2", False),
            "GRAMS": o.get("use_grams", False),
            "ORTHO_UNIT": self.ortho_unit,
            "BETA2_UNIT": self.beta2_unit,
        }

    def _codec(self, name: str) -> int:
        if name not in self.states:
            return FP32
        codec = SERVED_CODECS[self.s.codec_of(name)]
        return UINT8 if codec == INT8 and name == SECOND else codec

    def _numbers(self) -> dict[str, float]:
        s, o, n = self.s, self.s.options, self.s.n
        beta1 = o["momentum"] if "momentum" in o else o["beta1"]
        beta2, coefficient = o.get("beta2", 0.0), o.get("nesterov_coef")
        numbers = {
            "beta1": beta1, "rest1": 1 - beta1, "beta2": beta2, "rest2": 1 - beta2,
            "eps": epsilon(s) if "eps" in o else 0.0, "root": n.get("root", 1.0), "clip": n.get("clip", 0.0),
            "nesterov": beta1 if coefficient is None else coefficient, "ahead": o.get("alpha_grad", 0.0),
            "slow_weight": n.get("slow_weight", 0.0), "rest3": 1 - o.get("beta3_ema", 1.0),
        }  # fmt: skip
        # whole numbers would become part of the code
        return {key: 1.0 * value for key, value in numbers.items()}

    def _state_arguments(self) -> dict[str, Tensor | None]:
        found: dict[str, Tensor | None] = {"along": self.along, "length": self.length, "weights": self.weights}
        found["d_at"] = self.d
        for prefix, name in PREFIXES:
            store = self.states.get(name, {})
            found[f"{prefix}_at"] = store.get("value", store.get("code", store.get("rows")))
            found[f"{prefix}_scale"] = store.get("scale", store.get("cols"))
            if prefix != "v":
                found[f"{prefix}_sign"] = store.get("sign")
        return found

    def _touched_state(self) -> list[Tensor]:
        return [tensor for store in self.states.values() for tensor in store.values()] + [
            x for x in (self.along, self.length, self.weights) if x is not None
        ]

    # -- the step -----------------------------------------------------------------------------------------------------

    def _step(
        self,
        *,
        factor: Tensor | None = None,
        factor_unit: int = 0,
        shrink: Tensor | None = None,
        out: bool,
        moves: bool,
    ) -> Tensor | None:
        s = self.s
        u = self._empty(*s.shape) if out else None
        anchor = s.store(ANCHOR) if moves and s.has(ANCHOR) else {}
        decay = self._decay() if moves else {"DECAY": NO_DECAY, "TO_ZERO": False, "ANCHOR": 0}
        rate = s.n["lr"] * (1.0 if s.options["scaled_optm"] else s.n["gain"])
        rounds = moves and self.parameters[0].dtype == torch.bfloat16 and s.options["stochastic_rounding"]
        blocks = -(-s.elements // BLOCK)
        arguments = {
            **self.element, "NEEDS_P": moves or self.ortho_unit > 0, "keys": s.keys, "factor": factor,
            "fisher": shrink, "anchor": anchor.get("value", anchor.get("code")), "anchor_step": anchor.get("step"),
            "out": u, "blocks": blocks, "rate": rate, "keep": 1.0, "plain": 0.0, "centered": 0.0, **decay,
            **{f"stream_{key}": step_hash(s.streams.get(name, 0)) for key, name in
               (("m", FIRST), ("v", SECOND), ("slow", SLOW))},
            "stream_p": step_hash(0), "step_hash": step_hash(s.step), "FACTOR_UNIT": factor_unit, "MOVES": moves,
            "FISHER": shrink is not None, "ROUNDS": rounds, "OUT": out, "BLOCK": BLOCK, "num_warps": STEP_WARPS,
            "CAUTIOUS": s.options["cautious_wd"], "DECAY_D": self.d is not None and not decoupled(s.options),
        }  # fmt: skip
        touched = self._touched_state()
        reads = touched + self.gradients + [x for x in (factor, shrink, *anchor.values()) if x is not None]
        reads += self.parameters if arguments["NEEDS_P"] else []
        writes = (
            [tensor for store in self.states.values() for tensor in store.values()] + self.parameters if moves else []
        )
        self.s.runner.launch("step", (self.b * blocks,), arguments, reads, writes + ([u] if out else []))
        s.rate = rate if self.d is None else rate * self.d
        return u

    def _decay(self) -> dict[str, Any]:
        s = self.s
        plain, centered = decay_rates(s.options, s.role)
        if s.n["portions"]:
            portion(s)
            return {"DECAY": NO_DECAY, "TO_ZERO": False, "ANCHOR": 0}
        share, rate = plain_decay(s), s.n["decay"]
        if share is not None:
            return {
                "DECAY": PLAIN if share else NO_DECAY,
                "keep": 1 - share,
                "plain": share,
                "TO_ZERO": False,
                "ANCHOR": 0,
            }
        return {
            "DECAY": WEIGHED, "plain": plain * rate, "centered": centered * rate, "TO_ZERO": plain > 0,
            "ANCHOR": ANCHOR_KINDS[s.options["centered_wd_mode"]] if centered else 0,
        }  # fmt: skip


def _power_above(x: int) -> int:
    """The smallest power of two that is at least x."""
    return 1 << (x - 1).bit_length()
