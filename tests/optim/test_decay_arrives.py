"""Decay arrives, however small it is against the rounding of the parameters.

Of a start x, with and without decay, d = ⟨p₀ − p, x⟩/⟨x, x⟩ is what decay took away, in the mean over N numbers. It
is held against 1 − Π(1 − c). Rounding to steps of r = 2⁻²³ or 2⁻⁷ of a number, up or down at random, changes a number
with probability total/r by r, so d is off by √(total·r/N); the tolerances are five of that and 1 %. Rates and decays
are dealt out between float32, which sees the smallest, and bfloat16; with `--long` both have all.
"""

import copy
import functools
import io
import math
from types import SimpleNamespace

from scaled_optim.batched_optimizer import BatchedOptimizer
from scaled_optim.features.decay_portions import PERIOD

import torch
from torch import Tensor, nn

import pytest

RATES = [1e-7, 1e-6, 3e-6, 1e-5, 1e-4, 1e-3, 1e-2]
DECAY = 0.01
STEPS = 2 * PERIOD
SHAPE = (300, 600)
STEP_OF = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7}


@functools.lru_cache(maxsize=32)
def normal(*shape: int, seed: int) -> Tensor:
    """The same tensor each time; nobody may change it."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def trained(
    rule: str, dtype: torch.dtype, rate: float, away: float = 0.0, scheduled: bool = False, **options
) -> Tensor:
    """The parameters after `STEPS` steps along random gradients, from a start that was moved away by x·`away`."""
    x = normal(*SHAPE, seed=0).to(dtype)
    p = nn.Parameter(x.clone())
    if rule == "PRODIGY_ADV":
        # a rate that stays where it begins
        rate, options = 1.0, {**options, "d0": rate, "prodigy_steps": 1}
    optimizer = BatchedOptimizer([p], rule, rate, **options)
    if away:
        # the start is noted at the first step
        p.grad = torch.zeros_like(p)
        optimizer.param_groups[0]["lr"] = 0.0
        optimizer.step()
        p.data.mul_(1 + away)
    for step in range(STEPS):
        share = (step + 1) / STEPS if scheduled else 1.0
        optimizer.param_groups[0]["lr"] = rate * share
        p.grad = normal(*SHAPE, seed=1 + step % 8).to(dtype)
        optimizer.step()
    return p.detach().double()


def arrived(rule: str, dtype: torch.dtype, rate: float, away: float = 0.0, **options) -> float:
    """d: what decay took away, of the parameters or, where they were moved away, of that distance."""
    x = normal(*SHAPE, seed=0).to(dtype).double()
    off = {**options, **{key: 0.0 for key in ("weight_decay", "centered_wd") if key in options}}
    difference = trained(rule, dtype, rate, away, **off) - trained(rule, dtype, rate, away, **options)
    return ((difference * x).sum() / x.square().sum()).item() / (away or 1.0)


def dealt(values: list[float], dtype: torch.dtype, long: bool) -> list[float]:
    """Every second of the values, from the first for float32 and from the second for bfloat16; or all."""
    return values if long else values[dtype == torch.bfloat16 :: 2]


def tolerance(total: float, dtype: torch.dtype, away: float = 1.0) -> float:
    return 0.01 * total + 5 * math.sqrt(total * STEP_OF[dtype] / away / math.prod(SHAPE))


@pytest.mark.parametrize("dtype", STEP_OF, ids=str)
@pytest.mark.parametrize("rule", ["ADAMW_ADV", "LION_ADV", "PRODIGY_ADV"])
def test_decay_arrives_at_every_learning_rate(rule, dtype, long):
    # in Prodigy decay is rounded together with the step, which is below rounding itself at the lowest
    for rate in dealt(RATES[1:] if rule == "PRODIGY_ADV" else RATES, dtype, long):
        total = 1 - (1 - rate * DECAY) ** STEPS
        found = arrived(rule, dtype, rate, weight_decay=DECAY)
        assert found == pytest.approx(total, abs=tolerance(total, dtype)), rate


@pytest.mark.parametrize("options", [{"cautious_wd": True}, {"geometric_wd": True}], ids=str)
def test_other_kinds_arrive_too(options):
    """Cautious decay of the numbers along whose step it goes, which are half of them here."""
    for rate in (1e-6, 1e-4):
        total = rate * DECAY * STEPS * (0.5 if "cautious_wd" in options else 1.0)
        # signs have √(2/π) of a normal number's length along it
        total *= math.sqrt(2 / math.pi) if "geometric_wd" in options else 1.0
        found = arrived("LION_ADV", torch.float32, rate, weight_decay=DECAY, **options)
        assert found == pytest.approx(total, rel=0.03)


@pytest.mark.parametrize("dtype", STEP_OF, ids=str)
def test_decay_that_is_free_of_the_rate_arrives(dtype, long):
    for decay in dealt([1e-8, 1e-6, 1e-4, 1e-2], dtype, long):
        total = 1 - (1 - decay) ** STEPS
        found = arrived("ADAMW_ADV", dtype, 1e-5, weight_decay=decay, scaled_optm=True)
        assert found == pytest.approx(total, abs=tolerance(total, dtype)), decay


@pytest.mark.parametrize("dtype", STEP_OF, ids=str)
@pytest.mark.parametrize("rule", ["ADAMW_ADV", "LION_ADV"])
def test_centered_decay_arrives(rule, dtype, long):
    """At a tenth of the parameters' size away from the start, which makes it a tenth as large against rounding."""
    for rate in dealt([1e-6, 1e-5, 1e-4, 1e-3], dtype, long):
        total = 1 - (1 - rate * DECAY) ** STEPS
        found = arrived(rule, dtype, rate, away=0.125, centered_wd=DECAY)
        assert found == pytest.approx(total, abs=tolerance(total, dtype, 0.125)), rate


def test_portions_are_the_sum_of_what_a_schedule_said():
    """The rate rises to the end: the sum is half of what the last rate would make."""
    for rule in ("ADAMW_ADV", "PRODIGY_ADV"):
        total = 1e-6 * DECAY * (STEPS + 1) / 2
        found = arrived(rule, torch.float32, 1e-6, weight_decay=DECAY, scheduled=True)
        assert found == pytest.approx(total, abs=tolerance(total, torch.float32))


# -- the same, however it is stepped ---------------------------------------------------------------------------------

KINDS = [("HIDDEN", (6, 9), 5), ("LORA_DOWN", (3, 7), 4), ("VECTOR", (5,), 3), ("HIDDEN", (4, 3, 3, 3), 2)]
CASES = {
    "plain": ("ADAMW_ADV", {"weight_decay": DECAY}),
    "centered, cautious": ("LION_ADV", {"centered_wd": DECAY, "cautious_wd": True}),
    "Prodigy": ("PRODIGY_ADV", {"weight_decay": DECAY}),
    "pairs": ("LORA_RITE", {"weight_decay": DECAY}),
}
LONG = 2 * PERIOD + 5


def model() -> list[nn.Parameter]:
    found = []
    for role, shape, count in KINDS:
        for index in range(count):
            found.append(nn.Parameter(normal(*shape, seed=len(found)).clone()))
            found[-1].parameter_info = SimpleNamespace(role=role, name=f"{role}{shape}{index}", pair=None)
    return found


def gradients(made: list[nn.Parameter], step: int) -> None:
    """Every parameter is absent at times, so that they pay at different times."""
    for place, p in enumerate(made):
        there = (step + place) % 11 and not (place == 3 and step < 20)
        p.grad = normal(*p.shape, seed=1000 * step + place) if there else None


def run(made: list[nn.Parameter], optimizer: BatchedOptimizer, steps: range, one_by_one: bool = False) -> None:
    for step in steps:
        gradients(made, step)
        if one_by_one:
            for p in made:
                optimizer.step_parameter(p)
                p.grad = None
        optimizer.step()


@pytest.mark.parametrize("name", CASES)
def test_portions_depend_neither_on_stacks_nor_on_the_way_a_step_is_called(name):
    rule, options = CASES[name]
    finals = []
    for chunk, one_by_one in ((None, False), (1, False), (60, False), (None, True)):
        made = model()
        optimizer = BatchedOptimizer(made, rule, 1e-5, chunk=chunk, **options)
        run(made, optimizer, range(LONG), one_by_one)
        finals.append([*made, *(entry["slots"]["decay_owed"]["sum"] for entry in optimizer.state.values())])
    for other in finals[1:]:
        assert all(torch.equal(a, b) for a, b in zip(finals[0], other, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_owes_what_it_owed(name):
    rule, options = CASES[name]
    made, middle = model(), PERIOD + 20
    optimizer = BatchedOptimizer(made, rule, 1e-5, **options)
    run(made, optimizer, range(middle))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    twins = model()
    for twin, p in zip(twins, made, strict=True):
        twin.data.copy_(p)
    resumed = BatchedOptimizer(twins, rule, 1e-5, chunk=50, seed=9, **options)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    copied = copy.deepcopy(optimizer)
    run(made, optimizer, range(middle, LONG))
    run(twins, resumed, range(middle, LONG))
    others = copied.param_groups[0]["params"]
    run(others, copied, range(middle, LONG))
    assert all(torch.equal(p, q) and torch.equal(p, r) for p, q, r in zip(made, twins, others, strict=True))


def test_what_decays_enough_pays_at_every_step_and_float64_always_does():
    for dtype, decay, each in ((torch.float32, 0.01, True), (torch.float32, 1e-5, False), (torch.float64, 1e-5, True)):
        p = nn.Parameter(normal(4, 5, seed=0).to(dtype, copy=True))
        optimizer = BatchedOptimizer([p], "ADAMW_ADV", 0.1, weight_decay=decay)
        before = p.detach().clone()
        for _ in range(PERIOD):
            assert torch.equal(p.detach(), before) is not each or optimizer.state[p]["step"] == 0
            p.grad = torch.zeros_like(p)
            optimizer.step()
        expected = before * (1 - 0.1 * decay) ** PERIOD
        torch.testing.assert_close(p.detach(), expected, rtol=PERIOD * torch.finfo(dtype).eps, atol=0)


def test_state_from_before_there_were_portions_owes_nothing():
    p = nn.Parameter(normal(4, 5, seed=0).clone())
    optimizer = BatchedOptimizer([p], "ADAMW_ADV", 1e-4, weight_decay=DECAY)
    p.grad = normal(4, 5, seed=1)
    optimizer.step()
    older = copy.deepcopy(optimizer.state_dict())
    owed = older["state"][0]["slots"].pop("decay_owed")
    assert owed["sum"].item() > 0
    optimizer.load_state_dict(older)
    assert optimizer.state[p]["slots"]["decay_owed"]["sum"].item() == 0
    del older["state"][0]["slots"]["exp_avg"]
    with pytest.raises(ValueError, match="holds exp_avg_sq, expected decay_owed, exp_avg, exp_avg_sq"):
        optimizer.load_state_dict(older)
