"""How long a run waits for the count of its batches and its first plan, when resolutions are drawn for each image."""

import os
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.measuring import environment
from modules.dataLoader.DatasetReport import DatasetImage
from modules.dataLoader.ImageSource import ImageSource
from modules.dataLoader.plan import PlanRules, plan_epoch
from modules.dataLoader.plan_size import BatchCounter
from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.TrainConfig import TrainConfig

import torch

import numpy as np

GRID = 64
SIDES = 300, 2000
RESOLUTION = "512,768,1024"


def measure_plans(images: int, epochs: int, loading: Sequence[float] = (0, 5)) -> dict[str, Any]:
    """Seconds in which a run does nothing else, by the clock; those of this process and of others on the processor.

    There are as many variations as epochs.

    Args:
        images, epochs: of the run.
        loading: seconds that models take to be loaded, each a case; a run counts on meanwhile.
    """
    concept = ConceptConfig.from_dict({"path": "x", "image_variations": epochs})
    sides = random.Random(0)
    shown = [
        DatasetImage(0, f"{n}.png", f"{n}.png", sides.randint(*SIDES), sides.randint(*SIDES), "", ("",))
        for n in range(images)
    ]
    rules = PlanRules(seed=1, batch_size=4)
    found: dict[str, Any] = {
        "environment": environment(torch.device("cpu"), ["torch", "numpy"]), "images": images, "epochs": epochs,
        "resolution": RESOLUTION, "cases": [],
    }  # fmt: skip

    def case(name: str, begin_of: Callable[[ImageSource], Callable[..., Any]], pause: float) -> list[int]:
        source = ImageSource(TrainConfig.from_dict({"resolution": RESOLUTION}), [concept], shown, GRID)
        start, own, others = time.perf_counter(), time.process_time(), _others()
        counter = BatchCounter(rules, [concept], shown, begin_of(source), epochs, source.sizes_vary)
        time.sleep(pause)
        counts = [counter.batches(epoch) for epoch in range(epochs)]
        plan_epoch(0, rules, [concept], shown, source.size)
        seconds = {
            "clock": time.perf_counter() - start - pause, "process": time.process_time() - own,
            "other processes": _others() - others,
        }  # fmt: skip
        found["cases"].append(
            {"name": name, "loading": pause, **{key: round(value, 3) for key, value in seconds.items()}}
        )
        return counts

    expected = case("drawn one by one", _one_by_one, 0)
    for pause in loading:
        if case("drawn ahead", lambda source: source.begin_sizes, pause) != expected:
            raise AssertionError("what is drawn ahead gives other numbers of batches")
    return found


def _others() -> float:
    """Seconds on the processor of processes that this one has started, and that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def _one_by_one(source: ImageSource) -> Callable[[Sequence[int], int], Callable[[], np.ndarray]]:
    """As `begin_sizes`, by the function that a plan asks for each image."""
    numbers: dict[tuple[int, int], int] = {}

    def begin(members: Sequence[int], variations: int) -> Callable[[], np.ndarray]:
        sizes = [
            numbers.setdefault(source.size(member, variation), len(numbers))
            for variation in range(variations)
            for member in members
        ]
        return lambda: np.array(sizes)

    return begin
