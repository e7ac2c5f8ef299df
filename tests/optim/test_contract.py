"""What every rule of the optimizer engine keeps to, with every option that it declares.

Cases are found in `RULES` and in the rules' own `defaults`: registering a rule enrols it here. Every option is tried
with every rule; values of options that are the same code in all rules are dealt out among them, and with `--long` all
rules have all.
"""

import ast
import functools
import io
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from itertools import product as pairs
from pathlib import Path
from types import SimpleNamespace

import scaled_optim
from scaled_optim.allowed_values import BOOLEAN, Numbers, Text
from scaled_optim.anchors import ANCHORS
from scaled_optim.batched_optimizer import BatchedOptimizer
from scaled_optim.codecs import CODECS
from scaled_optim.features.orthogonal_gradient import MODES
from scaled_optim.options import DECLARED, SECTIONS
from scaled_optim.rules.registry import RULES

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import pytest

ROOM = Path(next(iter(scaled_optim.__path__)))
FLOAT32, BFLOAT16, FLOAT64 = torch.float32, torch.bfloat16, torch.float64

# (role, shape, how many). None: nobody described it. 18 of a kind fill vector registers, whose last elements take other
# code; odd sides put matrices at odd places in memory; one matrix is too large for the Gram matrix of scaled steps. The
# first two of the down factors and the up factors are pairs, of which at times only one takes part in a step.
MODEL = [
    ("LORA_DOWN", (3, 7), 18), ("LORA_UP", (11, 3), 2), ("OFT", (2, 6), 2), ("DORA_SCALE", (5,), 2), ("VECTOR", (), 2),
    ("HIDDEN", (6, 9), 2), ("HIDDEN", (4, 3, 3, 3), 2), ("INPUT", (7, 5), 2), ("OUTPUT", (5, 8), 2),
    (None, (65, 67), 2),
]  # fmt: skip
# Options that show their effect only together with another.
MATES = {
    "cautious_wd": {"weight_decay": 0.1},
    "fisher_wd": {"weight_decay": 0.1},
    "scaled_optm": {"weight_decay": 0.001},
    "scaled_wd": {"weight_decay": 0.1},
    "geometric_wd": {"weight_decay": 0.1},
    "snr_cond": {"normed_momentum": True},
    "low_rank_ortho": {"ortho_rank": 2},
}
# Learning rates at which each rule gets somewhere on distances of about 1.
RATES = {"PRODIGY_ADV": 1.0, "MUON_ADV": 0.2, "ADAMUON_ADV": 0.2}
DEFAULT_RATE = 0.05
# Three steps: a parameter that is absent in the second is back in the third, on state that a file may have held.
STEPS = 3


@dataclass(frozen=True)
class Case:
    rule: str
    name: str
    options: tuple[tuple[str, object], ...] = ()
    dtype: torch.dtype = FLOAT32

    def __str__(self) -> str:
        return f"{self.rule}-{self.name}-{str(self.dtype)[6:]}"

    @property
    def rate(self) -> float:
        # the accumulator of Simplified_AdEMAMix makes steps larger by alpha_grad, unless they are signs or scaled
        options = dict(self.options)
        larger = options.get("Simplified_AdEMAMix") and "momentum" not in RULES[self.rule].defaults
        return RATES.get(self.rule, DEFAULT_RATE) * (0.01 if larger and not options.get("scaled_optm") else 1)


def everything(rule: str) -> dict:
    """All that can be on together: each option in turn, unless the rule refuses it beside those before."""
    options = dict(RULES[rule].defaults)
    wanted = {
        "weight_decay": 0.1, "centered_wd": 0.05, "centered_wd_mode": "wrapped8", "state_precision": "int8_sr",
        "orthogonal_gradient": "per_rank",
    }  # fmt: skip
    # those that would take the place of int8 state, and one that makes decay small, without which Prodigy with all of
    # its limits finds no d within the steps of these tests
    skipped = ("nnmf_factor", "factored_2nd", "stochastic_rounding", "scaled_wd")
    wanted |= {name: True for name, value in options.items() if value is False and name not in skipped}
    for name, value in wanted.items():
        trial = options | ({name: value} if name in options else {})
        try:
            RULES[rule].check(trial)
        except ValueError:
            continue
        options = trial
    return {name: value for name, value in options.items() if value != RULES[rule].defaults[name]}


def cases() -> list[Case]:
    found = []
    for rule, declared in ((name, RULES[name].defaults) for name in RULES):

        def add(name: str, options: dict, *dtypes: torch.dtype, rule: str = rule) -> None:
            found.extend(Case(rule, name, tuple(options.items()), dtype) for dtype in dtypes or (FLOAT32,))

        add("plain", {}, FLOAT32, BFLOAT16, FLOAT64)
        for name, value in declared.items():
            if isinstance(value, bool):
                add(name, {**MATES.get(name, {}), name: not value})
        for codec in CODECS:
            add(codec, {"state_precision": codec}, *((FLOAT32, BFLOAT16) if codec == "bf16_sr" else (FLOAT32,)))
        for mode in ANCHORS:
            add(f"centered-{mode}", {"centered_wd": 0.1, "weight_decay": 0.05, "centered_wd_mode": mode})
        for mode in ("flattened", "per_rank", "iterative"):
            add(mode, {"orthogonal_gradient": mode})
        if "rite_scale" in declared:
            add("rite_mean", {"rite_scale": "mean"})
        if "ns_dtype" in declared:
            add("ns_bfloat16", {"ns_dtype": "bfloat16"}, FLOAT32, BFLOAT16)
        add("everything", everything(rule), FLOAT32, BFLOAT16)
    return found


CASES = cases()
# Values of one option each, and how many of them a rule has in the slice. They are the same code in all rules.
DEALT = (
    (("fp32", "fp16"), 1),
    (tuple(f"centered-{mode}" for mode in ANCHORS), 2),
    (("flattened", "per_rank", "iterative"), 1),
)


def in_slice(case: Case) -> bool:
    """Whether a case is in the suite without `--long`: rules in turn have the next of the values."""
    turn = list(RULES).index(case.rule)
    for names, each in DEALT:
        if case.name in names:
            return (names.index(case.name) - each * turn) % len(names) < each
    return True


SLICE = [case for case in CASES if in_slice(case)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        found = CASES if metafunc.config.getoption("--long") else SLICE
        # all tests of a case in a row, which then share its reference
        metafunc.parametrize("case", found, ids=str, scope="module")


every_rule = pytest.mark.parametrize("rule", RULES)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def model(dtype: torch.dtype = FLOAT32, kinds=tuple(MODEL)) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    parameters = []
    for role, shape, count in kinds:
        for index in range(count):
            value = torch.randn(shape, generator=generator)
            if role == "LORA_UP":
                value = torch.linalg.qr(value).Q  # where STIEFEL_LORA starts from
            parameter = nn.Parameter(value.to(dtype))
            if role is not None:
                partner = {"LORA_DOWN": "LORA_UP", "LORA_UP": "LORA_DOWN"}.get(role, "nothing")
                parameter.parameter_info = SimpleNamespace(role=role, name=f"{role}.{index}", pair=f"{partner}.{index}")
                if partner == "nothing":
                    parameter.parameter_info = SimpleNamespace(role=role, name=f"{role}.{shape}.{index}")
            parameters.append(parameter)
    return parameters


@functools.cache
def noise(shape: tuple[int, ...], place: int, step: int) -> Tensor:
    return 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(1000 * step + place))


def present(place: int, step: int) -> bool:
    """Which parameters take part in a step: one is never there, others come and go."""
    return place != 20 and not (step in (1, 2) and place % 4 == step)


def backward(parameters: list[nn.Parameter], step: int) -> None:
    """Gradients of a noisy bowl around 0.5."""
    here = [(i, p) for i, p in enumerate(parameters) if present(i, step)]
    losses = [((p - 0.5).square() / 2 + p * noise(tuple(p.shape), i, step).to(p.dtype)).sum() for i, p in here]
    torch.stack(losses).sum().backward()


def optimizer_of(case: Case, parameters: list[nn.Parameter], **engine) -> BatchedOptimizer:
    return BatchedOptimizer(parameters, case.rule, case.rate, **engine, **dict(case.options))


def train(parameters: list[nn.Parameter], optimizer: BatchedOptimizer, steps) -> None:
    for step in steps:
        optimizer.zero_grad()
        backward(parameters, step)
        optimizer.step()


def tensors(tree) -> list[Tensor]:
    """All tensors of a state, and its other values as they are, in order."""
    if isinstance(tree, dict):
        return [leaf for value in tree.values() for leaf in tensors(value)]
    return [tree]


def snapshot(parameters: list[nn.Parameter], optimizer: BatchedOptimizer) -> list:
    """Parameters and state at this moment."""
    state = optimizer.state_dict()
    leaves = [*parameters, *tensors({key: state[key] for key in ("state", "totals", "closed")})]
    return [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]


def bits(x: Tensor) -> Tensor:
    """So that −0 is not 0, and NaN is NaN."""
    return x.contiguous().reshape(-1).view(torch.uint8)


def differences(first: list, second: list) -> list[int]:
    """Where two snapshots are not the same to the bit."""
    assert len(first) == len(second)
    return [
        index
        for index, (a, b) in enumerate(zip(first, second, strict=True))
        if not (torch.equal(bits(a), bits(b)) if isinstance(a, Tensor) else a == b)
    ]


@functools.lru_cache(maxsize=2)
def reference(case: Case) -> list:
    parameters = model(case.dtype)
    optimizer = optimizer_of(case, parameters)
    train(parameters, optimizer, range(STEPS))
    found = snapshot(parameters, optimizer)
    assert all(leaf.float().isfinite().all() for leaf in found if isinstance(leaf, Tensor) and leaf.is_floating_point())
    return found


def test_every_rule_has_all_its_options_and_every_value_some_rules():
    for rule in RULES:
        tried = {name for case in SLICE if case.rule == rule for name, _ in case.options}
        switches = {name for name, value in RULES[rule].defaults.items() if isinstance(value, bool)}
        named = {"state_precision", "centered_wd", "centered_wd_mode", "weight_decay", "orthogonal_gradient"}
        assert switches | named <= tried, rule
        assert {dtype for case in SLICE if case.rule == rule for dtype in [case.dtype]} == {FLOAT32, BFLOAT16, FLOAT64}
    for names, each in DEALT:
        for name in names:
            assert sum(case.name == name for case in SLICE) >= len(RULES) * each // len(names) >= 3, name


# -- steps ------------------------------------------------------------------------------------------------------------


def test_results_depend_neither_on_batching_nor_on_the_way_a_step_is_called(case, long):
    """One by one, in stacks that end anywhere, and from hooks during the backward pass.

    Hooks step one by one, too; that `step` itself does is seen with no option and with all of them.
    """
    for chunk in (1, 50) if long or case.name in ("plain", "everything") else (50,):
        parameters = model(case.dtype)
        optimizer = optimizer_of(case, parameters, chunk=chunk)
        train(parameters, optimizer, range(STEPS))
        assert not differences(reference(case), snapshot(parameters, optimizer)), f"chunk {chunk}"

    parameters = model(case.dtype)
    optimizer = optimizer_of(case, parameters)

    def hook(parameter: nn.Parameter) -> None:
        optimizer.step_parameter(parameter)
        parameter.grad = None

    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(hook)
    train(parameters, optimizer, range(STEPS))
    assert not differences(reference(case), snapshot(parameters, optimizer)), "fused"


def test_resume_is_exact_whatever_the_chunk(case):
    parameters = model(case.dtype)
    optimizer = optimizer_of(case, parameters)
    train(parameters, optimizer, range(2))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    before = snapshot(parameters, optimizer)

    twins = model(case.dtype)
    with torch.no_grad():
        for twin, parameter in zip(twins, parameters, strict=True):
            twin.copy_(parameter)
    resumed = optimizer_of(case, twins, chunk=90, seed=5)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert not differences(before, snapshot(twins, resumed))
    train(twins, resumed, range(2, STEPS))
    assert not differences(reference(case), snapshot(twins, resumed))


def test_layout_stays_gradients_are_left_alone_and_absent_parameters_are_skipped(case):
    parameters = model(case.dtype)
    optimizer = optimizer_of(case, parameters)
    layout = None
    # some are absent before they have taken part, then they come and others go
    for step in (1, 2):
        optimizer.zero_grad()
        backward(parameters, step)
        old, state = [p.detach().clone() for p in parameters], optimizer.state_dict()["state"]
        counts = [entry["step"] for entry in state.values()]
        slots = [[x.clone() for x in tensors(entry["slots"])] for entry in state.values()]
        gradients = [None if p.grad is None else p.grad.clone() for p in parameters]
        optimizer.step()
        for place, entry in optimizer.state_dict()["state"].items():
            p, there = parameters[place], present(place, step)
            assert entry["step"] == counts[place] + there
            if there:
                assert torch.equal(bits(p.grad), bits(gradients[place]))
            else:
                assert p.grad is None and torch.equal(bits(p), bits(old[place]))
                assert not differences(slots[place], tensors(entry["slots"]))
        found = [
            (x.shape, x.dtype, x.device) for x in tensors(optimizer.state_dict()["state"]) if isinstance(x, Tensor)
        ]
        assert layout in (None, found)
        layout = found
    assert all(p.dtype == case.dtype and p.shape == q.shape for p, q in zip(parameters, model(), strict=True))


def test_converges(case):
    """To the start with other signs; with OrthoGrad, which can't change lengths on purpose, in direction only."""
    parameters = model(case.dtype, (("LORA_DOWN", (4, 12), 1), ("HIDDEN", (6, 8), 1), ("VECTOR", (9,), 1)))
    starts = [p.detach().clone() for p in parameters]
    targets = [s * torch.where(torch.arange(s.numel()).view(s.shape) % 3 == 0, -1, 1).to(s.dtype) for s in starts]
    optimizer = optimizer_of(case, parameters)

    directions = dict(case.options).get("orthogonal_gradient", "disabled") != "disabled"

    def distance(p: Tensor, target: Tensor) -> Tensor:
        if directions:
            p, target = (x / x.norm() * target.norm() for x in (p, target))
        return (p - target).square().sum()

    def loss() -> Tensor:
        return torch.stack([distance(p, t) for p, t in zip(parameters, targets, strict=True)]).sum()

    first = loss().item()
    # Prodigy needs so many to find its rate; steps of a fixed size end only where a schedule makes them smaller
    steps, rate = (100, 1) if case.rule == "PRODIGY_ADV" else (30, 4)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * group["initial_lr"] * (1 - step / steps)
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < 0.7 * first


@every_rule
def test_strided_parameters_and_gradients(rule):
    """Channels-last kernels and transposed matrices, alone and in stacks, give what contiguous ones give."""
    results = []
    for strided in (False, True):
        parameters = model(
            kinds=(
                ("HIDDEN", (4, 3, 3, 3), 2),
                ("HIDDEN", (6, 9), 2),
                ("OUTPUT", (5, 8), 1),
                ("HIDDEN", (3, 2, 2, 2), 1),
            )
        )  # noqa: E501
        if strided:
            for p in parameters:
                four = p.ndim == 4
                p.data = p.data.contiguous(memory_format=torch.channels_last) if four else p.data.t().contiguous().t()
                assert not p.is_contiguous()
        optimizer = BatchedOptimizer(parameters, rule, 0.1, centered_wd=0.1)
        for step in range(3):
            for index, p in enumerate(parameters):
                g = noise(tuple(p.shape), index, step)
                p.grad = g.contiguous(memory_format=torch.channels_last) if strided and g.ndim == 4 else g.clone()
            optimizer.step()
        results.append(snapshot(parameters, optimizer))
    assert not differences(*results)


def test_two_threads_and_long_sums_in_a_process_of_its_own():
    """From 32768 numbers on, torch splits a sum with one result among threads, and never one of a stack."""
    script = """
import torch
torch.set_num_threads(2)
from scaled_optim.batched_optimizer import BatchedOptimizer
for rule, options in (("LION_ADV", dict(l1_adaptive=True, orthogonal_gradient="flattened")), ("MUON_ADV", {})):
    found = []
    for chunk in (1, 1 << 20):
        g = torch.Generator().manual_seed(0)
        ps = [torch.nn.Parameter(torch.randn(s, generator=g)) for s in ((40000,), (40000,), (7, 5000), (7, 5000))]
        optimizer = BatchedOptimizer(ps, rule, 0.1, chunk=chunk, **options)
        for _ in range(2):
            for p in ps:
                p.grad = torch.randn(p.shape, generator=g)
            optimizer.step()
        found.append(ps)
    assert all(torch.equal(a, b) for a, b in zip(*found)), rule
"""
    # threads that wait must not keep cores from other tests
    env = {**os.environ, "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOM.parent)}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


# -- state ------------------------------------------------------------------------------------------------------------


def changed(state: dict, /, **values) -> dict:
    return {**state, **values}


def spoiled_states(state: dict) -> dict[str, tuple[dict, str]]:
    """Wrong states by what is wrong with them, and what the message must name."""
    entries = state["state"]
    last = max(entries)
    slot, store = next(iter(entries[last]["slots"].items()))
    key, tensor = next(iter(store.items()))

    def with_slots(slots: dict) -> dict:
        return changed(state, state={**entries, last: {**entries[last], "slots": slots}})

    return {
        "version": (changed(state, version=99), "version 99"),
        "rule": (changed(state, rule="SOMETHING"), "SOMETHING"),
        "groups": (changed(state, param_groups=state["param_groups"] * 2), "groups"),
        "missing": (changed(state, state={k: v for k, v in entries.items() if k != last}), f"parameter {last}"),
        "slots": (with_slots({}), slot),
        "shape": (with_slots({**entries[last]["slots"], slot: {**store, key: tensor[..., :0]}}), f"{slot}.{key}"),
        "dtype": (with_slots({**entries[last]["slots"], slot: {**store, key: tensor.bool()}}), f"{slot}.{key}"),
        "key": (with_slots({**entries[last]["slots"], slot: {**store, "else": tensor}}), "else"),
        "totals": (changed(state, totals={"nothing": torch.zeros(3)}), "nothing"),
    }


@every_rule
def test_a_wrong_state_is_refused_by_name_and_nothing_changes(rule):
    case = Case(rule, "plain")
    parameters, others = model(), model()
    saved, optimizer = optimizer_of(case, parameters), optimizer_of(case, others)
    train(parameters, saved, range(2))
    train(others, optimizer, range(1))
    before = snapshot(others, optimizer)
    saved.param_groups[0]["lr"] = 0.007
    for what, (state, message) in spoiled_states(saved.state_dict()).items():
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(state)
        assert not differences(before, snapshot(others, optimizer)), what
        assert optimizer.param_groups[0]["lr"] == case.rate
    for options in ({"state_precision": "bf16_sr"}, {"centered_wd": 0.1}):
        with pytest.raises(ValueError, match="other options"):
            BatchedOptimizer(model(), rule, **options).load_state_dict(saved.state_dict())
    optimizer.load_state_dict(saved.state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.007 and optimizer.param_groups[0]["initial_lr"] == case.rate


@every_rule
def test_groups_that_come_later(rule):
    """What all parameters share makes room for them."""
    parameters = model()
    optimizer = optimizer_of(Case(rule, "plain"), parameters[:8])
    train(parameters[:8], optimizer, range(2))
    optimizer.add_param_group({"params": parameters[8:], "weight_decay": 0.1})
    train(parameters, optimizer, range(2, 4))
    state = optimizer.state_dict()["state"]
    assert state[0]["step"] == 4 and state[len(parameters) - 1]["step"] == 2


# -- numbers that change ----------------------------------------------------------------------------------------------


@every_rule
def test_compiled_once_for_first_and_once_for_later_steps(rule, monkeypatch):
    """Whatever the learning rate does. Eager as backend: what is compiled is what counts here, not into what."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    kinds = (("LORA_DOWN", (4, 5), 2), ("LORA_UP", (6, 4), 2))
    ways = []
    for compiled in (False, True):
        torch._dynamo.reset()
        parameters = model(kinds=kinds)
        optimizer = BatchedOptimizer(parameters, rule, RATES.get(rule, 0.05), weight_decay=0.1, compile=compiled)
        counts = []
        for step in range(5):
            train(parameters, optimizer, [step + 3])
            optimizer.param_groups[0]["lr"] *= 0.9
            counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        ways.append(parameters)
    assert 0 < counts[1] == counts[-1]
    for eager, other in zip(*ways, strict=True):
        # numbers are rounded to float32 once more or less: a few units in the last place for each of five steps
        torch.testing.assert_close(eager, other, rtol=1e-5, atol=1e-6)


@every_rule
def test_learning_rate_as_tensor(rule):
    """A schedule may change it in place; the configured rate stays."""
    results = []
    for kind in (float, torch.tensor):
        parameters = model()
        optimizer = BatchedOptimizer(parameters, rule, kind(0.05), weight_decay=0.1, scaled_optm=True)
        for step in range(3):
            train(parameters, optimizer, [step])
            rate = optimizer.param_groups[0]["lr"]
            optimizer.param_groups[0]["lr"] = rate.mul_(0.5) if isinstance(rate, Tensor) else rate * 0.5
        assert optimizer.param_groups[0]["initial_lr"] == pytest.approx(0.05)
        results.append(parameters)
    for a, b in zip(*results, strict=True):
        # 0.05 in float32 is off by 1e-8 of 0.05; sums are fused or not
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@every_rule
def test_scaled_decay_follows_the_schedule_and_not_the_rate(rule):
    """A parameter without direction (its gradient is 0) shows decay alone: 1 − wd·lr/initial_lr each step."""
    finals = []
    for rate in (0.01, 0.1):
        parameters = model(kinds=(("HIDDEN", (6, 9), 2),))
        before = [p.detach().clone() for p in parameters]
        optimizer = BatchedOptimizer(
            [{"params": parameters[:1]}, {"params": parameters[1:], "lr": rate * 3, "weight_decay": 0.2}],
            rule, rate, scaled_optm=True, weight_decay=0.1,
        )  # fmt: skip
        for factor in (1, 1, 0.5):
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
            for p in parameters:
                p.grad = torch.zeros_like(p)
            optimizer.step()
        finals.append([(p / q).detach() for p, q in zip(parameters, before, strict=True)])
    # ADOPT's first step only gathers
    skips = optimizer.rule.name == "ADOPT_ADV"
    for found in finals:
        for decay, ratio in zip((0.1, 0.2), found, strict=True):
            expected = (1 - decay) ** (1 if skips else 2) * (1 - decay / 2)
            torch.testing.assert_close(ratio, torch.full_like(ratio, expected), rtol=1e-6, atol=0)


@every_rule
@pytest.mark.parametrize("scaled", [False, True])
def test_a_learning_rate_of_zero_moves_nothing(rule, scaled):
    parameters = model()
    before = [p.detach().clone() for p in parameters]
    optimizer = BatchedOptimizer(parameters, rule, 0.0, scaled_optm=scaled, weight_decay=0.1)
    train(parameters, optimizer, range(3))
    assert all(torch.equal(p, q) for p, q in zip(parameters, before, strict=True))


# -- options ----------------------------------------------------------------------------------------------------------

ALL_OPTIONS = sorted({name for rule in RULES.values() for name in rule.defaults})


@every_rule
def test_an_option_of_another_rule_is_refused_with_its_owners(rule):
    for name in (*ALL_OPTIONS, "no_such_option"):
        owners = [other for other in RULES if name in RULES[other].defaults]
        if rule in owners:
            continue
        expected = ", ".join(owners) if owners else "no rule has it"
        with pytest.raises(ValueError, match=f"^{name}: {rule} has no such option.*{expected}"):
            BatchedOptimizer(model(), rule, **{name: True})
        if owners:
            with pytest.raises(ValueError, match=f"^{name}: {rule}"):
                BatchedOptimizer([{"params": model(), name: True}], rule)


def wrong_values(option: str) -> list:
    allowed = DECLARED[option].allowed
    if isinstance(allowed, Text):
        return [7, True]
    if not isinstance(allowed, Numbers):
        return ["nonsense", 7, *([None] if allowed == BOOLEAN else [])]
    wrong = [
        math.nan,
        allowed.low - 1,
        "1",
        True,
        *([0.5] if allowed.whole else []),
        *([] if allowed.optional else [None]),
    ]
    return wrong + ([allowed.low] if allowed.above else []) + ([allowed.high] if allowed.below else [])


@pytest.mark.parametrize(("rule", "option"), [(rule, option) for rule in RULES for option in RULES[rule].defaults])
def test_wrong_values_are_refused_with_what_is_allowed(rule, option):
    for value in wrong_values(option):
        with pytest.raises(ValueError, match=f"^{option}: found .*expected") as caught:
            BatchedOptimizer(model(), rule, **{option: value})
        assert str(value).lower() in str(caught.value) or value is None
    optimizer = BatchedOptimizer(model()[:1], rule)
    with pytest.raises(ValueError, match=f"^{option}: "):
        optimizer.add_param_group({"params": model()[1:], option: wrong_values(option)[0]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("rule", RULES)
def test_every_option_is_declared_and_its_default_allowed(rule):
    assert not [name for name in RULES[rule].defaults if name not in DECLARED]
    RULES[rule].check(RULES[rule].defaults)


def test_declared_choices_are_those_that_there_are():
    assert DECLARED["centered_wd_mode"].allowed.values == tuple(ANCHORS)
    assert DECLARED["state_precision"].allowed.values == ("auto", *CODECS)
    assert DECLARED["orthogonal_gradient"].allowed.values == MODES
    used = {option for rule in RULES.values() for option in rule.defaults}
    assert used == set(DECLARED), "every declared option is some rule's"
    assert all(declared.section in SECTIONS and declared.help.endswith(".") for declared in DECLARED.values())


@pytest.mark.parametrize("rate", [-1.0, math.nan, math.inf, torch.tensor(-1.0), torch.ones(2)])
def test_wrong_learning_rates_are_refused(rate):
    for groups in ([{"params": model()}], [{"params": model(), "initial_lr": rate}]):
        with pytest.raises(ValueError, match="(^lr|^initial_lr): found"):
            BatchedOptimizer(groups, "ADAMW_ADV", 0.1 if "initial_lr" in groups[0] else rate)


# -- statistics -------------------------------------------------------------------------------------------------------


class Operations(TorchDispatchMode):
    """Counts what torch is asked to do."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


@every_rule
@pytest.mark.parametrize("scaled", [False, True])
def test_watched_steps_are_the_steps_and_cost_nothing_unwatched(rule, scaled):
    # float64, so that the difference of parameters is the step to many digits
    parameters = model(FLOAT64)
    optimizer = BatchedOptimizer(parameters, rule, 0.01, scaled_optm=scaled)
    train(parameters, optimizer, range(3, 5))
    assert not optimizer.statistics
    before = [p.detach().clone() for p in parameters]
    counts = []
    for optimizer.watch in (True, False):
        optimizer.zero_grad()
        backward(parameters, 5)
        with Operations() as operations:
            optimizer.step()
        counts.append(operations.count)
        if optimizer.watch:
            found = {role: statistics.read()["update_rms"] for role, statistics in optimizer.statistics.items()}
            moved = [(q - p.detach()) for p, q in zip(parameters, before, strict=True)]
            optimizer.statistics.clear()
    assert not optimizer.statistics and counts[1] < counts[0]
    here = [
        (role, index)
        for index, role in enumerate(r for r, _, count in MODEL for _ in range(count))
        if present(index, 5)
    ]
    for role in found:
        steps = torch.cat([moved[index].flatten() for name, index in here if (name or "HIDDEN") == role])
        # what is told is the step along the tangent; bringing it back adds half its square, 0.01 here, relative to it
        rel = 5e-3 if rule == "STIEFEL_LORA" and role == "LORA_UP" else 1e-6
        assert found[role] == pytest.approx(steps.square().mean().sqrt().item(), rel=rel), role
    assert len(found) == len({role for role, *_ in MODEL if role})


# -- no waiting for the device ----------------------------------------------------------------------------------------

WAITS = {"item", "tolist", "nonzero", "numpy", "cpu", "synchronize", "argwhere", "unique", "masked_select"}
# Where a step never comes by, and why.
OUTSIDE_STEPS = {
    ("statistics.py", "read"): "brings statistics to the host when somebody asks for them",
    ("batched_optimizer.py", "read_statistics"): "the same",
    ("ParameterBatch.py", "reseed"): "when a batch is made and when state is loaded",
    ("OptimizerBatches.py", "checked_rate"): "when a group is added",
    ("stiefel.py", "worst"): "when a batch is made",
    ("arithmetic.py", "decomposable"): "for statistics and when a LoRA is made orthonormal, where there is no float64",
    ("StiefelLoRA.py", "check_start"): "the same",
    ("unmagnified.py", "unit_basis"): "eigendecompositions, which the rule needs anyway, do so, too",
    ("OptimizerState.py", "state_dict"): "when it is saved",
    ("sharing.py", "whole_state"): "the same",
    ("sharing.py", "_on_host"): "the same",
    ("statistics.py", "on_host"): "the same, and where several processes read statistics",
    ("one_pass_adam.py", "_fused"): "on a CPU, where there is nothing to wait for, or of numbers of the host",
    ("trial.py", "_tipped"): "once for each kind of kernel, before it is trusted",
    ("eigen.py", "_trial"): "the same",
}


def waits(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Attribute) and node.func.attr in WAITS:
            found.append(node.func.attr)
        # float("inf") and the like take a text
        if isinstance(node.func, ast.Name) and node.func.id in ("float", "bool", "int"):
            if not all(isinstance(argument, ast.Constant) for argument in node.args):
                found.append(node.func.id)
    return found


def test_no_function_of_a_step_waits_for_the_device():
    seen = set()
    for path in sorted(ROOM.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and (found := waits(node)):
                seen.add((path.name, node.name))
                assert (path.name, node.name) in OUTSIDE_STEPS, f"{path.name}, {node.name}: {', '.join(found)}"
    assert seen == OUTSIDE_STEPS.keys(), "an exception that nobody needs any more"


if torch.cuda.is_available():  # waits and other kernels are seen on a GPU only
    # torch's eigendecompositions look at their result on the host
    WAITING = {"LORA_RITE"}

    @pytest.mark.parametrize(("rule", "on"), pairs([name for name in RULES if name not in WAITING], (False, True)))
    def test_steps_on_a_gpu_never_wait(rule, on):
        parameters, infos = [], [getattr(p, "parameter_info", None) for p in model()]
        for p, info in zip(model(), infos, strict=True):
            parameters.append(nn.Parameter(p.detach().cuda()))
            parameters[-1].parameter_info = info
        optimizer = BatchedOptimizer(parameters, rule, 0.1, **(everything(rule) if on else {}))
        for p in parameters:
            p.grad = torch.randn_like(p)
        optimizer.step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(3):
                optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("mode", ["flattened", "per_rank", "iterative"])
@pytest.mark.parametrize("shape", [(), (3, 7), (65, 67)], ids=str)
def test_a_gradient_along_the_parameter_leaves_nothing_to_follow(mode, shape):
    parameter = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    before = parameter.detach().clone()
    optimizer = BatchedOptimizer([parameter], "ADAMW_ADV", lr=0.1, orthogonal_gradient=mode)
    for _ in range(3):
        parameter.grad = 0.37 * parameter.detach()
        optimizer.step()
    torch.testing.assert_close(parameter.detach(), before, rtol=0, atol=0)


def test_what_all_share_is_saved_in_the_middle_of_a_step_too():
    """Prodigy's parts of sums count until the step is closed; then they are zero and need no room."""
    parameters, others = model(), model()
    optimizers = [optimizer_of(Case("PRODIGY_ADV", "plain"), each) for each in (parameters, others)]
    train(parameters, optimizers[0], range(2))
    train(others, optimizers[1], range(2))
    assert "numerators" not in optimizers[0].state_dict()["totals"]
    for k, p in enumerate(parameters):
        p.grad = noise(tuple(p.shape), k, 2)
        optimizers[0].step_parameter(p)
        p.grad = None
    state = optimizers[0].state_dict()
    assert "numerators" in state["totals"]
    for p, other in zip(parameters, others, strict=True):
        other.data.copy_(p.data)
        other.grad = None
    optimizers[1].load_state_dict(state)
    for optimizer in optimizers:
        optimizer.step()
    assert torch.equal(*(optimizer.state_dict()["totals"]["d"] for optimizer in optimizers))
