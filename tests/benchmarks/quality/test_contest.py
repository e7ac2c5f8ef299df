"""The contest on a task whose best rates are known, and everything around it that needs no training."""

import json
import math

from benchmarks.quality.contest import (
    GRID,
    SEEDS,
    TUNING_SEED,
    rows_from_json,
    run_contest,
    summary,
    table,
    to_json,
)
from benchmarks.quality.contestants import BASELINE, LORA_PLUS_RATIO, Contestant, choose, contestants, is_up
from benchmarks.quality.FactorTrace import FactorTrace
from benchmarks.quality.plot import draw_balance, draw_quality
from benchmarks.quality.Task import Result
from modules.module.AdapterSet import AdapterSet
from modules.trainer.optimizers import create_optimizer
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.Optimizer import Optimizer
from modules.util.UserError import UserError
from scaled_optim.rules.registry import RULES

import torch
from torch import nn

import pytest
from PIL import Image

RANK = 3
BEST = {"ADAMW": 1e-3, "LoRA+": 3e-4, "LION_ADV": 1.0}


class ParabolaTask:
    """Loss (log₁₀ rate − log₁₀ best)² + 1, and a hundredth of the seed on top; rates above 0.2 lead ADAMW astray."""

    facts = {"task": "parabola"}

    def __init__(self, accuracy: bool = True) -> None:
        self.runs: list[tuple[str, float, int]] = []
        self.accuracy = accuracy

    def run(self, contestant: Contestant, rate: float, seed: int) -> Result:
        self.runs.append((contestant.name, rate, seed))
        loss = 3.0 if rate == 0 else 1 + math.log10(rate / BEST[contestant.name]) ** 2
        if contestant.name == "ADAMW" and rate > 0.2:
            loss = math.inf
        point = {"down": rate, "up": 2 * rate, "down_change": rate, "up_change": rate, "product_rank": 1.5}
        trace = [{"step": step, "up_rank": 2.0 + step, **point} for step in (1, 2)]
        accuracy = 0.5 + 0.1 * seed if self.accuracy else None
        return Result(loss, loss + 0.01 * seed, accuracy, loss, 0.25, trace)


@pytest.fixture
def field():
    return [BASELINE, *choose(["ADAMW", "LoRA+", "LION_ADV"])]


def contest(task, field, known=(), rates=GRID, seeds=SEEDS) -> list[dict]:
    rows = list(known)
    run_contest(task, field, rates, seeds, rows, rows.append)
    return rows


def test_each_finds_its_rate_and_runs_fresh_seeds_there(field):
    task = ParabolaTask()
    found = summary(contest(task, field))
    assert {name: own["rate"] for name, own in found.items()} == {"no adapter": 0, **BEST}
    assert len(task.runs) == (1 + 3) + 3 * (len(GRID) + 3), "what does not depend on a rate has no grid"
    assert all(own["seeds"] == [1, 2, 3] and TUNING_SEED not in own["seeds"] for own in found.values())
    # by hand: seeds 1, 2, 3 add 0.01 each, whose standard deviation with n − 1 is 0.01
    assert found["ADAMW"]["validation"] == pytest.approx({"mean": 1.02, "spread": 0.01})
    assert found["ADAMW"]["accuracy"] == pytest.approx({"mean": 0.7, "spread": 0.1})
    assert found["ADAMW"]["up_rank"] == 4.0 and found["ADAMW"]["tried"]["0.3"] == math.inf
    assert [name for name, own in found.items() if own["edge"]] == ["LION_ADV"]


def test_it_goes_on_where_it_stopped(field, tmp_path):
    first = contest(ParabolaTask(), field)
    text = json.dumps(to_json(first), allow_nan=False)
    rows = rows_from_json(json.loads(text))
    assert rows == first
    task = ParabolaTask()
    assert contest(task, field, rows[:-2]) == first and task.runs == [("LION_ADV", 1.0, 2), ("LION_ADV", 1.0, 3)]
    wider = ParabolaTask()
    contest(wider, field[-1:], rows, rates=(*GRID, 3.0))
    assert wider.runs == [("LION_ADV", 3.0, TUNING_SEED)], "the best stays the best, and its seeds are there"


def test_who_always_diverges_gets_no_seeds():
    class Astray(ParabolaTask):
        def run(self, contestant, rate, seed):
            super().run(contestant, rate, seed)
            return Result(math.inf, math.inf, 0.1, math.inf, 0.25, [])

    task = Astray()
    rows = contest(task, choose(["ADAMW"]))
    assert len(task.runs) == len(GRID) and summary(rows) == {} and table({}).count("\n") == 1
    with pytest.raises(ValueError, match="finished run"):
        draw_quality(rows, None)


def test_a_seed_that_diverged_shows(field):
    rows = contest(ParabolaTask(), field[1:2])
    rows[-1] = {**rows[-1], "validation": math.inf, "trace": []}
    found = summary(rows)
    assert found["ADAMW"]["validation"] == {"mean": math.inf, "spread": None} and "diverged" in table(found)


def test_the_table(field):
    text = table(summary(contest(ParabolaTask(), field))).splitlines()
    assert len(text) == 2 + 4 and len({line.count("|") for line in text}) == 1
    assert text[2].startswith("| ADAMW | 0.001 | 1.0200 ± 0.0100 | 70.00 ± 10.00 |")
    assert "| 1 (end of the grid)" in text[4] and text[5].startswith("| no adapter | 0 |")
    plain = table(summary(contest(ParabolaTask(accuracy=False), field, seeds=(1,))))
    assert "| 1.0100 | – |" in plain


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("accuracy", [True, False])
def test_pictures(field, tmp_path, accuracy):
    rows = contest(ParabolaTask(accuracy), field)
    quality, balance = tmp_path / "new" / "quality.png", tmp_path / "balance.png"
    draw_quality(rows, quality), draw_balance(rows, balance)
    for path in (quality, balance):
        with Image.open(path) as image:
            pixels = set(image.convert("RGB").get_flattened_data())
        for color in ((72, 120, 168), (238, 133, 74)):  # AdamW and LoRA+; A and B
            # lines that are thinner than two pixels are mixed with the white beside them
            assert min(max(abs(a - b) for a, b in zip(color, pixel, strict=True)) for pixel in pixels) < 40, path
    with pytest.raises(ValueError, match="moves anything"):
        draw_balance([{**row, "trace": []} for row in rows], balance)


def adapters(name: str) -> AdapterSet:
    torch.manual_seed(0)
    root = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 5))
    config = TrainConfig().model_copy(update=contestants()[name].config_changes(RANK))
    return AdapterSet("net", root, config)


def test_the_field():
    found = contestants()
    assert list(found)[:3] == ["no adapter", "ADAMW", "LoRA+"]
    assert set(found) >= {"STIEFEL_LORA", "LORA_RITE"} == {name for name, rule in RULES.items() if rule.needs_pairs}
    assert choose([]) == list(found.values())
    assert choose(["LION_ADV"]) == [Contestant("LION_ADV", Optimizer.LION_ADV)]
    with pytest.raises(UserError, match="--optimizers: found ADAMV, expected some of no adapter, ADAMW"):
        choose(["ADAMV"])


@pytest.mark.parametrize("name", contestants())
def test_every_contestant_can_step(name):
    own, contestant = adapters(name), contestants()[name]
    parameters = own.parameters()
    before = [parameter.detach().clone() for parameter in parameters]
    groups = contestant.groups(parameters, 0.01 if name != "no adapter" else 0.0)
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(map(id, parameters))
    config = TrainConfig().model_copy(update=contestant.config_changes(RANK))
    optimizer = create_optimizer(config.optimizer, groups)
    assert all(group.get("weight_decay") == 0 for group in optimizer.param_groups)
    for step in range(3):  # the partner of a factor that starts at zero may wait for it
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step))
        optimizer.step()
    moved = [not torch.equal(old, new) for old, new in zip(before, parameters, strict=True)]
    assert all(moved) if name != "no adapter" else not any(moved)
    for adapter in own.adapters.values():
        assert adapter.scale == 1, "alpha is the rank"
        if name == "STIEFEL_LORA":
            # float32 sums of five or six terms
            assert torch.allclose(adapter.up.t() @ adapter.up, torch.eye(RANK), atol=1e-5)


def test_lora_plus_steps_up_sixteen_times_as_far():
    parameters = adapters("LoRA+").parameters()
    down, up = contestants()["LoRA+"].groups(parameters, 0.01)
    assert up["lr"] == LORA_PLUS_RATIO * down["lr"] and down["lr"] == 0.01 and LORA_PLUS_RATIO == 16
    assert all(map(is_up, up["params"])) and not any(map(is_up, down["params"])) and len(up["params"]) == 2


def test_the_trace_against_products_that_are_written_out():
    own = adapters("ADAMW")
    parameters = [*own.parameters(), nn.Parameter(torch.ones(3))]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    trace = FactorTrace(parameters, steps=10, points=3)
    assert trace.looks == {0, 4, 9} and len(trace.pairs) == 2
    old = [(a.down.detach().clone(), a.up.detach().clone()) for a in own.adapters.values()]
    with trace.step(0), torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    with trace.step(1):
        pass
    assert len(trace.points) == 1
    point, now = trace.points[0], [(a.down.detach(), a.up.detach()) for a in own.adapters.values()]
    steps = [(new[0] - was[0], new[1] - was[1]) for new, was in zip(now, old, strict=True)]

    def norm(products: list[torch.Tensor]) -> float:
        return torch.cat([product.flatten() for product in products]).norm().item()

    sizes = [torch.cat([step[side].flatten() for step in steps]).square().mean().sqrt().item() for side in (0, 1)]
    by_hand = [norm([was[1] @ step[0] for was, step in zip(old, steps, strict=True)]),
               norm([step[1] @ was[0] for was, step in zip(old, steps, strict=True)])]  # fmt: skip
    # float32 against float64
    assert [point.down, point.up] == pytest.approx(sizes, rel=1e-5)
    assert [point.down_change, point.up_change] == pytest.approx(by_hand, rel=1e-5)
    assert point.step == 1 and 1 < point.product_rank < RANK and 1 < point.up_rank < RANK


def test_the_trace_stops_where_a_run_goes_astray():
    parameters = adapters("ADAMW").parameters()
    trace = FactorTrace(parameters, steps=2)
    with trace.step(0), torch.no_grad():
        parameters[0].fill_(math.nan)
    assert trace.to_json() == []
