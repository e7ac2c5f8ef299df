"""Every rule of the engine: the same steps as on a CPU, by its kernels where it has some, and how long a step takes."""

from collections.abc import Callable, Iterator
from functools import partial

from benchmarks.gpu.Bench import Bench, Found, bounded, rows_of
from benchmarks.gpu.Row import NotMeasured, Row, State
from benchmarks.optimizers.cases import Case, cases
from benchmarks.optimizers.measure import OURS, PEER, TORCH, Settings, measure_case
from benchmarks.optimizers.parameter_set import ParameterSet, scaled_down, sdxl_layers
from scaled_optim.batched_optimizer import BatchedOptimizer
from scaled_optim.rules.registry import RULES

import torch

STEPS = 4
# of a parameter's move; sums of float32 in another order, which signs and orthogonal matrices enlarge
BOUND = 2e-2
# rows of the benchmark whose time is measured; the others are compared only
TIMED = ("ADAMW_ADV plain", "ADAMW_ADV scaled_optm", "ADAMW_ADV all on", "ADAMW_ADV int8_sr", "LION_ADV plain",
         "MUON_ADV plain", "STIEFEL_LORA plain", "LORA_RITE plain", "PRODIGY_ADV plain")  # fmt: skip


def measure(bench: Bench) -> Iterator[Row]:
    """Rows of this check."""
    rows = {case.name: case for case in cases()}
    compared = [case for case in rows.values() if not _draws(case)]
    first = [case for case in compared if case.name.endswith((" plain", " all on"))]
    found: dict[str, Callable[[], Found]] = {}
    for case in [*first, *(case for case in compared if case not in first)][: 4 if bench.small else None]:
        found[f"{case.name}: steps"] = partial(_steps, bench, case)
    speed: dict[str, Callable[[], Found]] = {}
    for name in TIMED[: 1 if bench.small else None]:
        speed[f"{name}: time"] = partial(_time, bench, rows[name])
    # time first: comparisons are many, and compile a kernel each
    return rows_of("rules", bench, speed | found)


def _draws(case: Case) -> bool:
    """Whether a case draws random numbers: each device has its own."""
    stochastic = case.options.get("state_precision") in ("bf16_sr", "int8_sr") or case.dtype == "bfloat16"
    return stochastic or bool(case.options.get("stochastic_sign") or case.options.get("low_rank_ortho"))


def _steps(bench: Bench, case: Case) -> Found:
    if bench.device.type == "cpu":
        raise NotMeasured("a CPU is what devices are compared with")
    layers = scaled_down(sdxl_layers())
    moves = []
    for device in (torch.device("cpu"), bench.device):
        given = ParameterSet(layers, 8, device)
        parameters = given.parameters(RULES[case.rule].orthonormal_up)
        before = [parameter.detach().cpu().clone() for parameter in parameters]
        optimizer = BatchedOptimizer(parameters, case.rule, case.lr, **case.options)
        for _ in range(STEPS):
            given.refill()
            optimizer.step()
        moves.append([own.detach().cpu() - old for own, old in zip(parameters, before, strict=True)])
    here, there = (torch.cat([move.flatten().double() for move in found]) for found in moves)
    size = here.norm().item()
    apart = (there - here).norm().item() / size if size else float("inf")
    return bounded(apart, BOUND, f"{STEPS} steps, {apart:.1e} of the move apart from a CPU's", {"apart": apart})


def _time(bench: Bench, case: Case) -> Found:
    layers = scaled_down(sdxl_layers()) if bench.small else sdxl_layers()
    given = ParameterSet(layers, 4 if bench.small else 16, bench.device, getattr(torch, case.dtype))
    row = measure_case(case, given, bench.device, Settings(rounds=3 if bench.small else 20, case_seconds=8.0))
    ours, ratios = row["contestants"][OURS], row["ratios"]
    seconds, against = ours["seconds"]["median"], ratios[f"{OURS}/{TORCH}"]["median"]
    peer = ratios[f"{PEER}/{OURS}"]
    text = f"{1e3 * seconds:.2f} ms for the LoRA of {len(layers)} layers, {against:.2f}× torch's fused AdamW"
    figures = {"step_seconds": seconds, "over_torch_fused": against, "state_bytes": ours["state_bytes"]}
    if peer is None:
        return State.REPORTED, f"{text}; adv_optm: {row['no_peer']}", figures
    return State.REPORTED, f"{text}; adv_optm takes {peer['median']:.1f}×", figures | {"peer_over_ours": peer["median"]}
