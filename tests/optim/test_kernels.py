"""The engine's own kernels, in Triton's interpreter on the CPU, against the single operations."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import scaled_optim
from scaled_optim.batched_optimizer import BatchedOptimizer
from scaled_optim.kernels.Runner import Runner

import torch
from torch import nn

import pytest

PROGRAM = Path(__file__).with_name("interpreted.py")
ALL = {
    "fisher_wd": True, "weight_decay": 0.1, "cautious_wd": True, "scaled_optm": True, "use_atan2": True,
    "orthogonal_gradient": "flattened", "kourkoutas_beta": True, "nesterov": True, "normed_momentum": True,
}  # fmt: skip
OPTIONS = [
    ("ADAMW_ADV", {}),
    ("ADAMW_ADV", {"weight_decay": 0.1, "use_atan2": True}),
    ("ADAMW_ADV", {"fisher_wd": True, "weight_decay": 0.1, "cautious_wd": True}),
    ("ADAMW_ADV", {"centered_wd": 0.1, "weight_decay": 0.05}),
    ("ADAMW_ADV", {"centered_wd": 0.1, "centered_wd_mode": "int8", "cautious_wd": True}),
    ("ADAMW_ADV", {"scaled_optm": True, "use_cautious": True}),
    ("ADAMW_ADV", {"orthogonal_gradient": "per_rank", "kourkoutas_beta": True, "k_warmup_steps": 3}),
    ("ADAMW_ADV", {"orthogonal_gradient": "flattened", "nesterov": True, "use_cautious": True}),
    ("ADAMW_ADV", {"use_AdEMAMix": True, "use_grams": True, "scaled_eps": True}),
    ("ADAMW_ADV", {"Simplified_AdEMAMix": True, "beta1": 0.5}),
    ("ADAMW_ADV", {"beta1": 0.0, "use_bias_correction": False}),
    ("ADAMW_ADV", {"state_precision": "int8_sr"}),
    ("ADAMW_ADV", {"state_precision": "bf16_sr", "normed_momentum": True}),
    ("ADAMW_ADV", {"state_precision": "factored", "orthogonal_gradient": "flattened"}),
    ("ADOPT_ADV", {"factored_2nd": True, "scaled_optm": True}),
    ("ADAMW_ADV", {**ALL, "state_precision": "int8_sr"}),
    ("ADOPT_ADV", {}),
    ("ADOPT_ADV", {"use_atan2": True, "nesterov": True, "scaled_optm": True}),
    ("LION_ADV", {"weight_decay": 0.1, "cautious_wd": True}),
    ("SIGNSGD_ADV", {"nesterov": True}),
    ("SIGNSGD_ADV", {"normed_momentum": True, "scaled_optm": True}),
    ("PRODIGY_ADV", {"weight_decay": 0.1, "fisher_wd": True}),
    ("PRODIGY_ADV", {"weight_decay": 0.1, "centered_wd": 0.05, "cautious_wd": True}),
    ("PRODIGY_ADV", {"weight_decay": 0.1, "orthogonal_gradient": "per_rank", "safeguard_warmup": True}),
]
BFLOAT16 = [
    ("ADAMW_ADV", {}),
    ("ADAMW_ADV", {"stochastic_rounding": False, "weight_decay": 0.1}),
    ("ADAMW_ADV", {**ALL, "state_precision": "bf16_sr"}),
    ("LION_ADV", {"state_precision": "int8_sr"}),
    ("PRODIGY_ADV", {"slice_p": 1}),
]
CASES = [
    {"rule": rule, "options": options, "dtype": dtype}
    for dtype, several in (("float32", OPTIONS), ("bfloat16", BFLOAT16))
    for rule, options in several
] + [{"rule": "LORA_RITE", "options": {"scaled_optm": True}, "dtype": "float32", "shapes": 2}]
# Of the largest number of a tensor; the kernels round in another order. LoRA-RITE multiplies many matrices.
TOLERANCE, LORA_RITE_TOLERANCE = 2e-5, 5e-4
# The share of numbers that a rounding, a sign or a mask may tip over. A wrong bit of noise tips half of them.
TIPPED = 0.002


def run(cases: list[dict]) -> list[dict]:
    env = {**os.environ, "PYTHONPATH": str(Path(next(iter(scaled_optim.__path__))).parent), "OMP_NUM_THREADS": "1"}
    text = "\n".join(map(json.dumps, cases))
    done = subprocess.run([sys.executable, PROGRAM], input=text, env=env, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


if find_spec("triton"):  # it comes with torch's builds for GPUs on Linux

    @pytest.fixture(scope="module")
    def results() -> list[dict]:
        """Of all cases from one process, as it takes seconds to start."""
        rite = {"tolerance": LORA_RITE_TOLERANCE}
        return run(
            [{"tolerance": TOLERANCE, **case, **(rite if case["rule"] == "LORA_RITE" else {})} for case in CASES]
        )

    @pytest.mark.timeout(1500)
    @pytest.mark.parametrize("place", range(len(CASES)), ids=lambda place: "-".join(map(str, CASES[place].values())))
    def test_kernels_do_what_single_operations_do(place, results):
        found, case = results[place], CASES[place]
        expected = {"eigen"} if case["rule"] == "LORA_RITE" else {"step"}
        assert expected <= found["launches"].keys(), "no kernel was launched, so nothing was compared"
        # eigenvectors have no sign of their own, so what LoRA-RITE remembers of them may be turned
        state = 0 if case["rule"] == "LORA_RITE" else found["state"]
        assert found["parameters"] <= TIPPED and state <= TIPPED, found

    @pytest.mark.timeout(600)
    def test_a_kernel_is_used_once_it_has_shown_that_it_is_right_and_never_if_it_is_wrong():
        case = {"rule": "ADAMW_ADV", "options": {}, "dtype": "float32", "tolerance": 2e-5, "tried": True, "shapes": 2}
        right, wrong = run([{**case, "watch": True}, {**case, "spoiled": True}])
        assert right["launches"]["step"] and not right["notes"] and right["parameters"] == 0
        ours, single = right["rms"]
        assert ours["update_rms/LORA_DOWN"] == pytest.approx(single["update_rms/LORA_DOWN"], rel=1e-4)
        assert wrong["parameters"] == 0 and wrong["state"] == 0
        assert len(wrong["notes"]) == 1 and "not used" in wrong["notes"][0]

    def test_kernels_compile_for_a_gpu_and_keep_their_values_in_registers():
        from benchmarks.optimizers.compiling import compiled

        found = compiled("ADAMW_ADV", {**ALL, "state_precision": "int8_sr"}, torch.bfloat16)
        found += compiled("LORA_RITE", {})
        assert {"step", "gradient_sums", "direction_sums", "units", "spectral_sizes", "eigen"} == {
            kernel["kernel"] for kernel in found
        }
        assert not [kernel for kernel in found if kernel["spilled"]]


class Failing(Runner):
    """Has no kernel that could be launched."""

    def serves(self, device: torch.device) -> bool:
        return True

    def launch(self, name: str, *rest: object) -> None:
        raise OSError("no compiler")


def test_where_a_kernel_cannot_be_launched_the_single_operations_step():
    results = []
    for kernels in (Failing(), "never"):
        parameter = nn.Parameter(torch.arange(12.0).view(3, 4))
        optimizer = BatchedOptimizer([parameter], "ADAMW_ADV", 0.1, kernels=kernels)
        parameter.grad = torch.ones(3, 4)
        optimizer.step()
        results.append(parameter.detach())
        assert optimizer.notes == (
            [] if kernels == "never" else
            ["the fused kernel of ADAMW_ADV is not used, it steps by single operations instead: OSError: no compiler"]
        )  # fmt: skip
    assert torch.equal(*results)


def test_the_argument_is_checked():
    with pytest.raises(ValueError, match="kernels: found 'yes'"):
        BatchedOptimizer([nn.Parameter(torch.ones(2))], "ADAMW_ADV", kernels="yes")
