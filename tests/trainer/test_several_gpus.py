"""What one process decides of a run in several: how many there are, what is refused, and its part of each step."""

from types import SimpleNamespace

from modules.dataLoader.plan import PlannedBatch, PlannedSample
from modules.trainer.RunPlan import RunPlan
from modules.trainer.several_gpus import device_indexes, processes_to_start, several_problems
from modules.trainer.shard_checks import shard_problems
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError
from modules.util.World import World

import pytest

TWO = {"multi_gpu": True, "device_indexes": "0, 1", "train_device": "cpu", "batch_size": 2}


def config(**options) -> TrainConfig:
    return TrainConfig.from_dict(options)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (TWO, 2),
        ({**TWO, "device_indexes": "3"}, 1),
        ({**TWO, "device_indexes": ""}, 1),
        ({**TWO, "multi_gpu": False}, 1),
        ({**TWO, "device_indexes": "2,0,5,"}, 3),
    ],
)
def test_how_many_processes_are_started(monkeypatch, options, count):
    assert processes_to_start(config(**options)) == count
    # torchrun has started them already
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert processes_to_start(config(**options)) == 1


@pytest.mark.parametrize("text", ["0,0", "a", "0;1", "-1", "1.5"])
def test_no_list_of_gpus_is_told(text):
    with pytest.raises(UserError, match=r"device_indexes: found .* expected different numbers"):
        device_indexes(config(device_indexes=text))
    (problem,) = several_problems(config(**{**TWO, "device_indexes": text}))
    assert problem.path == "device_indexes" and problem.remedies


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"batch_size": 1}, "batch_size"),
        ({"train_device": "cuda:1"}, "train_device"),
        ({"train_device": "mps"}, "train_device"),
        ({"optimizer": {"optimizer": "ADAMW_ADV", "fused_back_pass": True}}, "optimizer.fused_back_pass"),
    ],
)
def test_what_several_processes_cant_do_is_refused_with_a_remedy(options, path):
    (problem,) = several_problems(config(**{**TWO, **options}))
    assert problem.path == path and problem.remedies
    assert several_problems(config(**{**TWO, **options, "multi_gpu": False})) == []


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"training_method": "FINE_TUNE", "optimizer": {"optimizer": "ADAMW"}}, "optimizer.optimizer"),
        ({"training_method": "FINE_TUNE", "train_dtype": "FLOAT_16"}, "train_dtype"),
        ({"compile": True}, "compile"),
        ({"unet": {"offload_fraction": 0.5}}, "unet.offload_fraction"),
        ({"text_encoder": {"activation_offloading": True}}, "text_encoder.activation_offloading"),
    ],
)
def test_what_weights_in_parts_cant_do_is_refused_with_a_remedy(options, path):
    own = {"model_type": "STABLE_DIFFUSION_15", "optimizer": {"optimizer": "ADAMW_ADV"}, "train_dtype": "FLOAT_32"}
    parts = {**TWO, **own, "shard_weights": True}
    (problem,) = shard_problems(config(**{**parts, **options}))
    assert problem.path == path and len(problem.remedies) == 2
    assert shard_problems(config(**parts)) == []
    assert shard_problems(config(**{**parts, **options, "shard_weights": False})) == []
    assert shard_problems(config(**{**parts, **options, "device_indexes": "0"})) == []


def test_torchrun_is_held_to_the_same(monkeypatch):
    assert several_problems(config(batch_size=3)) == []
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    (problem,) = several_problems(config(batch_size=3))
    assert problem.path == "batch_size" and "at least 4" in problem.text
    assert several_problems(config(batch_size=3, gradient_accumulation_steps=2)) == []


class Data:
    """Batches of the sizes that are given, an epoch after another."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes
        self.source = SimpleNamespace(images=[SimpleNamespace(path=f"{n}.png") for n in range(sum(sizes))])

    def plan(self, epoch: int) -> list[PlannedBatch]:
        number, batches = 0, []
        for size in self.sizes:
            batches.append(PlannedBatch(tuple(PlannedSample(number + n, 0, 0) for n in range(size)), (64, 64)))
            number += size
        return batches

    def counter(self, epochs: int) -> SimpleNamespace:
        return SimpleNamespace(batches=lambda epoch: len(self.sizes), samples=lambda: sum(self.sizes))


@pytest.mark.parametrize("sizes", [[4, 4, 3], [1, 1, 1, 1], [8, 2, 7, 1], [5]])
@pytest.mark.parametrize("accumulation", [1, 2, 3])
@pytest.mark.parametrize("processes", [1, 2, 3, 4])
@pytest.mark.parametrize("in_step", [False, True])
def test_each_image_of_a_step_is_trained_once_in_equal_parts(sizes, accumulation, processes, in_step):
    options = config(epochs=2, batch_size=8, gradient_accumulation_steps=accumulation)
    plans = [RunPlan(options, Data(sizes), World(rank, processes), in_step) for rank in range(processes)]
    for step in range(plans[0].total_steps):
        indices = list(plans[0].batches_of(step))
        planned = [(index, sample) for index in indices for sample in plans[0].batch(index).samples]
        trained, amounts, calls = [], [], []
        for plan in plans:
            own = plan.own(step)
            parts = [(index, plan.share(index)) for index, _ in own]
            assert own and all(part is not None for _, part in parts)
            for index, part in parts:
                whole = plan.batch(index)
                assert part.samples == whole.samples[part.first : part.first + len(part.samples)]
                assert sorted((*part.samples, *part.others), key=lambda s: s.image) == list(whole.samples)
            counted = [(index, part.samples) for (index, part), (_, counts) in zip(parts, own, strict=True) if counts]
            amounts.append(sum(len(samples) for _, samples in counted))
            trained += [(index, sample) for index, samples in counted for sample in samples]
            calls.append(len(own))
            # what it is not asked for, it has not
            assert all(plan.share(index) is None for index in set(indices) - {index for index, _ in own})
        assert trained == planned
        assert max(amounts) - min(amounts) <= 1
        assert not in_step or len(set(calls)) == 1
        assert plans[0].names(step) == [f"{sample.image}.png" for _, sample in planned]


def test_what_is_shared_out_takes_time_by_the_number_of_batches(monkeypatch):
    looked_at, batch = [], RunPlan.batch
    monkeypatch.setattr(RunPlan, "batch", lambda self, index: looked_at.append(index) or batch(self, index))
    plan = RunPlan(config(batch_size=2, gradient_accumulation_steps=100), Data([2] * 100), World(1, 2))
    assert [index for index, _ in plan.own(0) if plan.share(index)] == list(range(50, 100))
    assert len(looked_at) < 6 * 100
