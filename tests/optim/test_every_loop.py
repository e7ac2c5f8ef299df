"""The engine in programs that were written for torch's optimizers: what they call, read, save, move and change."""

import copy
import io
import pickle
from types import SimpleNamespace

from scaled_optim.batched_optimizer import BatchedOptimizer
from scaled_optim.regrouping import PATIENCE

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict

import pytest

# with states of every kind: plain, with a number that all share, factored with anchors and norms, 8 bits
KINDS = [
    ("ADAMW_ADV", {}),
    ("PRODIGY_ADV", {"slice_p": 1}),
    ("ADAMW_ADV", {"state_precision": "factored", "centered_wd": 0.1, "kourkoutas_beta": True}),
    ("MUON_ADV", {"state_precision": "int8_sr"}),
    ("SIGNSGD_ADV", {"momentum": 0.0}),
]
every_kind = pytest.mark.parametrize(("rule", "options"), KINDS)


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)).to(dtype)


def made(rule: str, options: dict, lr: float = 0.01) -> tuple[nn.Module, BatchedOptimizer]:
    model = network()
    return model, BatchedOptimizer(model.named_parameters(), rule, lr, **options)


def train(model: nn.Module, optimizer: BatchedOptimizer, steps, absent: dict | None = None) -> None:
    """Steps with gradients of their own; `absent`: numbers of the parameters without one, by step."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for number, p in enumerate(model.parameters()):
            g = torch.randn(p.shape, generator=generator).to(p.dtype)
            p.grad = None if number in (absent or {}).get(step, ()) else g
        optimizer.step()


def assert_equal(first: nn.Module, second: nn.Module) -> None:
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


# -- parameters and gradients of every kind ---------------------------------------------------------------------------


def test_complex_parameters_are_refused_by_name():
    given = [("rotation.angle", nn.Parameter(torch.ones(3, dtype=torch.complex64)))]
    with pytest.raises(ValueError, match=r"^rotation\.angle: found torch\.complex64, expected real.*view_as_real"):
        BatchedOptimizer(given, "ADAMW_ADV")
    described = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    described.parameter_info = SimpleNamespace(role="VECTOR", name="its own name")
    with pytest.raises(ValueError, match="^its own name: "):
        BatchedOptimizer([described], "ADAMW_ADV")
    with pytest.raises(ValueError, match="^parameter 0: "):
        BatchedOptimizer([given[0][1]], "ADAMW_ADV")


def test_parameters_without_memory_are_refused_by_name():
    with torch.device("meta"):
        model = nn.Linear(4, 4)
    optimizer = BatchedOptimizer(model.named_parameters(), "ADAMW_ADV")
    with pytest.raises(ValueError, match="^weight: found on the meta device.*to_empty"):
        optimizer.step()


def test_a_parameter_twice_in_a_group_is_refused_by_name():
    p = nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="^tied: found twice"):
        BatchedOptimizer([("head", p), ("tied", p)], "ADAMW_ADV")


@pytest.mark.parametrize("rule", ["ADAMW_ADV", "MUON_ADV", "STIEFEL_LORA", "PRODIGY_ADV"])
def test_parameters_without_elements_change_nothing(rule):
    results = []
    for shapes in ([(3, 4), (4, 4)], [(3, 4), (0, 5), (5, 0), (0,), (4, 4)]):
        parameters = [nn.Parameter(torch.full(shape, 0.5)) for shape in shapes]
        optimizer = BatchedOptimizer(parameters, rule, 0.1, weight_decay=0.1, nnmf_factor=True)
        for step in range(3):
            for p in parameters:
                p.grad = torch.full(p.shape, 1.0 + step)
            if step == 1:
                for p in parameters:
                    optimizer.step_parameter(p)
                    p.grad = None
            optimizer.step()
        assert [entry["step"] for entry in optimizer.state.values()] == [3] * len(shapes)
        optimizer.load_state_dict(optimizer.state_dict())
        results.append([p for p in parameters if p.numel()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_sparse_gradients_step_as_dense_ones_do():
    results = []
    for sparse in (False, True):
        torch.manual_seed(0)
        tables = nn.ModuleList([nn.Embedding(9, 4, sparse=sparse), nn.Embedding(9, 4), nn.Embedding(9, 4)])
        optimizer = BatchedOptimizer(tables.parameters(), "ADAMW_ADV", 0.1, weight_decay=0.1)
        for step in range(3):
            optimizer.zero_grad()
            sum((table(torch.tensor([1, step, 1])) ** 2).sum() for table in tables).backward()
            assert tables[0].weight.grad.is_sparse == sparse
            if step == 1:
                for p in tables.parameters():
                    optimizer.step_parameter(p)
                    p.grad = None
            optimizer.step()
        results.append(tables)
    assert_equal(*results)


def test_gradients_of_two_dtypes_step_as_those_of_one():
    results = []
    for mixed in (False, True):
        parameters = [nn.Parameter(torch.full((4, 4), 0.5, dtype=torch.bfloat16)) for _ in range(3)]
        optimizer = BatchedOptimizer(parameters, "ADAMW_ADV", 0.1)
        for step in range(3):
            for p in parameters:
                # a number that both formats have
                p.grad_dtype = torch.float32 if mixed and p is parameters[1] else torch.bfloat16
                p.grad = torch.full((4, 4), 0.25 * (step + 1), dtype=p.grad_dtype)
            optimizer.step()
        results.append(parameters)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert not torch.equal(results[0][0], torch.full((4, 4), 0.5, dtype=torch.bfloat16))


# -- checkpoints, copies, hooks, names --------------------------------------------------------------------------------


def through_state_dict(model, optimizer, twin, other, folder) -> None:
    dcp.save({"optimizer": optimizer.state_dict()}, checkpoint_id=folder)
    loaded = {"optimizer": other.state_dict()}
    dcp.load(loaded, checkpoint_id=folder)
    other.load_state_dict(loaded["optimizer"])


def through_the_object(model, optimizer, twin, other, folder) -> None:
    dcp.save({"optimizer": optimizer}, checkpoint_id=folder)
    dcp.load({"optimizer": other}, checkpoint_id=folder)


def through_helpers(model, optimizer, twin, other, folder, **how) -> None:
    options = StateDictOptions(**how)
    dcp.save({"optimizer": get_optimizer_state_dict(model, optimizer, options=options)}, checkpoint_id=folder)
    loaded = {"optimizer": get_optimizer_state_dict(twin, other, options=options)}
    dcp.load(loaded, checkpoint_id=folder)
    set_optimizer_state_dict(twin, other, loaded["optimizer"], options=options)


def through_flat_helpers(*args) -> None:
    through_helpers(*args, flatten_optimizer_state_dict=True)


def through_full_helpers(*args) -> None:
    through_helpers(*args, full_state_dict=True)


@every_kind
@pytest.mark.parametrize(
    "way",
    [through_state_dict, through_the_object, through_helpers, through_flat_helpers, through_full_helpers],
)
@pytest.mark.filterwarnings("ignore")  # torch's, of a process that is alone
def test_torch_checkpoints_go_on_to_the_bit(rule, options, way, tmp_path):
    if way is through_full_helpers:
        options = {**options, "centered_wd": 0.1}  # torch asks the state's first tensor for the device
    model, optimizer = made(rule, options)
    train(model, optimizer, range(3))
    twin, other = made(rule, options)
    way(model, optimizer, twin, other, tmp_path)
    twin.load_state_dict(model.state_dict())
    assert [entry["step"] for entry in other.state.values()] == [3] * 6
    train(model, optimizer, range(3, 6))
    train(twin, other, range(3, 6))
    assert_equal(model, twin)


def test_state_of_another_optimizer_is_told_apart():
    model, optimizer = made("ADAMW_ADV", {})
    other = torch.optim.AdamW(model.parameters())
    with pytest.raises(ValueError, match="no mark of this engine"):
        optimizer.load_state_dict(other.state_dict())


def test_state_can_be_read_by_parameter():
    model, optimizer = made("ADAMW_ADV", {})
    train(model, optimizer, range(2))
    parameters = list(model.parameters())
    assert list(optimizer.state) == parameters and len(optimizer.state) == 6 and optimizer.state
    entry = optimizer.state[parameters[0]]
    assert entry["step"] == 2
    mean = entry["slots"]["exp_avg"]["value"]
    assert mean.shape == (8, 6) and mean.abs().sum() > 0
    before = mean.clone()
    train(model, optimizer, [2])
    assert not torch.equal(mean, before), "a view of the state"
    assert parameters[0] in optimizer.state and nn.Parameter(torch.ones(1)) not in optimizer.state
    assert optimizer.state[nn.Parameter(torch.ones(1))] == {}
    optimizer.state.clear()
    assert {entry["step"] for entry in optimizer.state.values()} == {0}
    with pytest.raises(ValueError, match="^state: "):
        optimizer.state = {parameters[0]: entry}


def pickled(pair):
    return pickle.loads(pickle.dumps(pair))


def torch_saved(pair):
    file = io.BytesIO()
    torch.save(pair, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@every_kind
@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, torch_saved])
@pytest.mark.parametrize("before", [0, 3])
def test_copies_go_on_to_the_bit(rule, options, copied, before):
    model, optimizer = made(rule, options)
    train(model, optimizer, range(before))
    twin, other = copied((model, optimizer))
    train(model, optimizer, range(before, 6))
    train(twin, other, range(before, 6))
    assert_equal(model, twin)
    other.add_param_group({"params": [("late", nn.Parameter(torch.ones(2)))]})
    other.step()


def test_copies_know_what_parameters_are_and_what_waits():
    """torch copies parameters without their attributes; the copy still steps factors of a LoRA as such."""
    down, up = (nn.Parameter(torch.randn(shape)) for shape in ((2, 6), (5, 2)))
    down.parameter_info = SimpleNamespace(role="LORA_DOWN", name="down", pair="up")
    up.parameter_info = SimpleNamespace(role="LORA_UP", name="up", pair="down")
    optimizer = BatchedOptimizer([down, up], "LORA_RITE", 0.01, describe=lambda p: p.parameter_info)
    results = []
    for p in (down, up):
        p.grad = torch.ones_like(p)
    optimizer.step()
    optimizer.step_parameter(down)
    down.grad = None
    for one in (optimizer, copy.deepcopy(optimizer), pickled(optimizer)):
        parameters = one.param_groups[0]["params"]
        parameters[1].grad = torch.ones_like(up)
        one.step()
        assert not one.notes, "both are factors"
        results.append(parameters)
    assert len({id(parameters[0]) for parameters in results}) == 3
    for copied in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], copied, strict=True))


def test_hooks_are_called_and_may_change_what_they_get():
    model, optimizer = made("ADAMW_ADV", {})
    called = []
    optimizer.register_step_pre_hook(lambda o, args, kwargs: called.append("before step"))
    optimizer.register_step_post_hook(lambda o, args, kwargs: called.append("after step"))
    optimizer.register_state_dict_pre_hook(lambda o: called.append("before saving"))
    optimizer.register_state_dict_post_hook(lambda o, state: {**state, "mine": 7})
    optimizer.register_load_state_dict_pre_hook(lambda o, state: called.append(state["mine"]) or {**state, "seed": 5})
    optimizer.register_load_state_dict_post_hook(lambda o: called.append("after loading"))
    train(model, optimizer, range(1))
    state = optimizer.state_dict()
    optimizer.load_state_dict(state)
    assert called == ["before step", "after step", "before saving", 7, "after loading"]
    assert optimizer.seed == 5 and state["seed"] == 0


def test_names_reach_messages_and_the_state_dict():
    model, optimizer = made("ADAMW_ADV", {})
    state = optimizer.state_dict()
    names = [name for name, _ in model.named_parameters()]
    assert state["param_groups"][0]["param_names"] == names
    state["state"][2] = {"step": 1, "slots": {}}
    with pytest.raises(ValueError, match="the optimizer state of 1.weight holds nothing"):
        optimizer.load_state_dict(state)
    unnamed = BatchedOptimizer(model.parameters(), "ADAMW_ADV")
    assert "param_names" not in unnamed.state_dict()["param_groups"][0]


# -- schedules and options that change --------------------------------------------------------------------------------


@pytest.mark.parametrize("cycle", [False, True])
def test_one_cycle_leaves_decay_as_it_was_configured(cycle):
    """A parameter without direction shows decay alone: 1 − wd·lr/(configured rate) each step."""
    p = nn.Parameter(torch.ones(4, 4, dtype=torch.float64))
    optimizer = BatchedOptimizer([p], "ADAMW_ADV", 0.01, scaled_optm=True, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=10, cycle_momentum=cycle)
    expected, momenta = 1.0, []
    for _ in range(9):
        rate = optimizer.param_groups[0]["lr"]
        p.grad = torch.zeros_like(p)
        optimizer.step()
        momenta.append(optimizer.param_groups[0]["beta1"])
        expected *= 1 - 0.1 * rate / 0.01
        schedule.step()
    assert optimizer.param_groups[0]["configured_lr"] == 0.01
    assert optimizer.param_groups[0]["initial_lr"] == pytest.approx(0.01 / 25)
    torch.testing.assert_close(p.detach(), torch.full_like(p, expected), rtol=1e-12, atol=0)
    assert (min(momenta) < 0.86 and max(momenta) == 0.95) if cycle else set(momenta) == {0.9}


@pytest.mark.parametrize("rule", ["LION_ADV", "MUON_ADV", "SIGNSGD_ADV", "ADOPT_ADV"])
def test_momentum_is_cycled_in_every_rule(rule):
    """By `betas`, or by the rule's own `momentum`; the last change counts, whichever of the names it used."""
    model, optimizer = made(rule, {})
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=10)
    name = "momentum" if rule == "SIGNSGD_ADV" else "beta1"
    seen = []
    for step in range(9):
        train(model, optimizer, [step])
        seen.append(optimizer.param_groups[0][name])
        schedule.step()
    assert seen[0] == 0.95 and min(seen) < 0.86
    group = optimizer.param_groups[0]
    if name == "beta1":
        train(model, optimizer, [9])
        group["beta1"] = 0.5
        train(model, optimizer, [10])
        assert group["beta1"] == group["betas"][0] == 0.5


def test_betas_of_a_group_are_its_options():
    group = {"params": [nn.Parameter(torch.ones(3))], "betas": (0.5, 0.75)}
    found = BatchedOptimizer([group], "ADAMW_ADV").param_groups[0]
    assert (found["beta1"], found["beta2"]) == found["betas"] == (0.5, 0.75)


@pytest.mark.parametrize(
    ("rule", "option", "value", "slot"),
    [
        ("ADAMW_ADV", "kourkoutas_beta", True, "kourkoutas"),
        ("ADAMW_ADV", "centered_wd", 0.1, "anchor"),
        ("ADAMW_ADV", "use_AdEMAMix", True, "exp_avg_slow"),
        ("LION_ADV", "freeze_on_flip", True, None),
        ("MUON_ADV", "muon_hidden_layers", "nothing", "exp_avg_sq"),
    ],
)
def test_state_of_an_option_that_is_switched_on_later_is_made_then(rule, option, value, slot):
    model, optimizer = made(rule, {})
    train(model, optimizer, range(3))
    weight = model[1].weight
    before = {name: {k: x.clone() for k, x in s.items()} for name, s in optimizer.state[weight]["slots"].items()}
    optimizer.param_groups[0][option] = value
    # a look at the state alone does not see it; a step does
    for p in model.parameters():
        p.grad = None
    optimizer.step()
    entry = optimizer.state[weight]
    assert entry["step"] == 3
    assert slot is None or slot in entry["slots"]
    for name, store in before.items():
        assert all(torch.equal(entry["slots"][name][key], x) for key, x in store.items())
    train(model, optimizer, range(3, 5))
    assert optimizer.state[weight]["step"] == 5
    twin, other = made(rule, {option: value})
    twin.load_state_dict(model.state_dict())
    other.load_state_dict(optimizer.state_dict())
    train(model, optimizer, range(5, 7))
    train(twin, other, range(5, 7))
    assert_equal(model, twin)


def test_the_codec_may_change_and_wrong_changes_are_told():
    model, optimizer = made("ADAMW_ADV", {"centered_wd": 0.1})
    train(model, optimizer, range(3))
    group, weight = optimizer.param_groups[0], model[1].weight
    mean = optimizer.state[weight]["slots"]["exp_avg"]["value"].clone()
    group["state_precision"] = "bf16_sr"
    for p in model.parameters():
        p.grad = None
    optimizer.step()
    found = optimizer.state[weight]["slots"]["exp_avg"]["value"]
    assert torch.equal(found, mean.bfloat16())
    for option, value, message in (
        ("kourkoutas_beta", "yes", "^kourkoutas_beta: found yes"),
        ("centered_wd_mode", "int8", "^centered_wd_mode: changed from full to int8"),
    ):
        old, group[option] = group[option], value
        with pytest.raises(ValueError, match=message):
            optimizer.step()
        group[option] = old
    train(model, optimizer, range(3, 5))
    assert optimizer.state[weight]["step"] == 5


def test_a_schedule_of_decay_makes_no_state_anew():
    model, optimizer = made("ADAMW_ADV", {"weight_decay": 0.1})
    train(model, optimizer, range(1))
    value = optimizer.state[model[0].weight]["slots"]["exp_avg"]["value"]
    for step in range(1, 4):
        optimizer.param_groups[0]["weight_decay"] *= 0.5
        train(model, optimizer, [step])
    assert optimizer.state[model[0].weight]["slots"]["exp_avg"]["value"].data_ptr() == value.data_ptr()


# -- launches ---------------------------------------------------------------------------------------------------------


class Launches:
    """Counts runs of an optimizer's steps, each of which is a set of launches."""

    def __init__(self, optimizer: BatchedOptimizer) -> None:
        self.count, step_run = 0, optimizer._step_run

        def counted(*args) -> None:
            self.count += 1
            step_run(*args)

        optimizer._step_run = counted

    def of(self, step) -> int:
        before = self.count
        step()
        return self.count - before


def rows(count: int) -> nn.ParameterList:
    torch.manual_seed(0)
    return nn.ParameterList([nn.Parameter(torch.randn(4, 5)) for _ in range(count)])


@pytest.mark.parametrize("rule", ["ADAMW_ADV", "LION_ADV", "PRODIGY_ADV"])
def test_stacks_come_together_again(rule):
    """Two kinds of gradients that come in turn, of every second parameter each, take one launch a step at the end."""
    results = []
    absent = {step: [n for n in range(12) if n % 2 == step % 2] for step in range(1, 7)}
    for chunk in (None, 1):
        model = rows(12)
        optimizer = BatchedOptimizer(model.parameters(), rule, 0.01, chunk=chunk)
        launches = Launches(optimizer)
        found = [launches.of(lambda s=step: train(model, optimizer, [s], absent)) for step in range(12)]  # noqa: B023
        results.append(model)
        if chunk is None:
            assert found[0] == 1 and found[1] > 1
            assert found[4:7] == [1, 1, 1], "in turns"
            assert found[-1] == 1, "all have had the same number of steps"
    assert_equal(*results)


@pytest.mark.parametrize(("rule", "launches_left"), [("LION_ADV", 1), ("PRODIGY_ADV", 1), ("ADAMW_ADV", 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_missed_gradient_costs_launches_only_where_numbers_differ(rule, launches_left, dtype):
    """Lion's numbers do not depend on the step; Adam's bias correction does. Random numbers stay each step's own."""
    results = []
    for chunk in (None, 1):
        model = rows(7).to(dtype)
        optimizer = BatchedOptimizer(model.parameters(), rule, 0.01, chunk=chunk, state_precision="bf16_sr")
        launches = Launches(optimizer)
        steps = PATIENCE + 4
        found = [launches.of(lambda s=s: train(model, optimizer, [s], {1: [3]})) for s in range(steps)]  # noqa: B023
        assert chunk == 1 or found[-1] == launches_left
        results.append(model)
    assert_equal(*results)


def test_bias_correction_that_has_run_out_joins_stacks():
    model = rows(3)
    optimizer = BatchedOptimizer(model.parameters(), "ADAMW_ADV", 0.01, beta1=0.2, beta2=0.3)
    launches = Launches(optimizer)
    found = [launches.of(lambda s=s: train(model, optimizer, [s], {1: [0]})) for s in range(50)]  # noqa: B023
    assert found[3] == 2 and found[-1] == 1


def test_pairs_come_together_again():
    results = []
    for chunk in (None, 1):
        torch.manual_seed(0)
        parameters = []
        for n in range(6):
            for role, shape, pair in (("LORA_DOWN", (2, 6), "LORA_UP"), ("LORA_UP", (5, 2), "LORA_DOWN")):
                p = nn.Parameter(torch.randn(shape))
                p.parameter_info = SimpleNamespace(role=role, name=f"{n}.{role}", pair=f"{n}.{pair}")
                parameters.append(p)
        model = nn.ParameterList(parameters)
        optimizer = BatchedOptimizer(parameters, "LORA_RITE", 0.01, chunk=chunk)
        launches = Launches(optimizer)
        absent = {step: [2, 3, 6, 7, 10, 11] for step in range(1, 9)}
        found = [launches.of(lambda s=s: train(model, optimizer, [s], absent)) for s in range(10)]  # noqa: B023
        assert chunk == 1 or (found[1] == 3 and found[8] == 1 and found[9] == 2)
        results.append(model)
    assert_equal(*results)


# -- moving -----------------------------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fused", [False, True])
def test_state_follows_parameters_to_another_dtype(rule, options, dtype, fused):
    model, optimizer = made(rule, options)
    train(model, optimizer, range(2))
    state = copy.deepcopy({place: e["slots"] for place, e in optimizer.state_dict()["state"].items()})
    model.to(dtype)
    for step in (2, 3):
        train_fused(model, optimizer, step) if fused else train(model, optimizer, [step])
    assert all(p.dtype == dtype and p.isfinite().all() for p in model.parameters())
    assert [entry["step"] for entry in optimizer.state.values()] == [4] * 6
    # the same as an optimizer that was made afterwards, and given the state in its format
    twin, other = network(), None
    earlier = BatchedOptimizer(twin.named_parameters(), rule, 0.01, **options)
    train(twin, earlier, range(2))
    twin.to(dtype)
    other = BatchedOptimizer(twin.named_parameters(), rule, 0.01, **options)
    loaded = earlier.state_dict()
    own = other.state_dict()["state"]
    loaded["state"] = {
        place: {"step": 2, "slots": {n: {k: x.to(own[place]["slots"][n][k].dtype) for k, x in s.items()}
                                     for n, s in slots.items()}}
        for place, slots in state.items()
    }  # fmt: skip
    other.load_state_dict(loaded)
    for step in (2, 3):
        train_fused(twin, other, step) if fused else train(twin, other, [step])
    assert_equal(model, twin)


def train_fused(model: nn.Module, optimizer: BatchedOptimizer, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step_parameter(p)
        p.grad = None
    optimizer.step()


def test_one_layer_alone_may_move():
    model, optimizer = made("ADAMW_ADV", {})
    train(model, optimizer, range(2))
    mean = optimizer.state[model[1].weight]["slots"]["exp_avg"]["value"].clone()
    model[1].double()
    for p in model.parameters():
        p.grad = None
    optimizer.step()
    found = optimizer.state[model[1].weight]["slots"]["exp_avg"]["value"]
    assert found.dtype == torch.float64 and torch.equal(found, mean.double())
    assert optimizer.state[model[0].weight]["slots"]["exp_avg"]["value"].dtype == torch.float32
    train(model, optimizer, range(2, 4))


# -- other models -----------------------------------------------------------------------------------------------------


def test_new_and_gone_parameters_are_refused_by_name_or_begun_afresh_on_request():
    model, optimizer = made("PRODIGY_ADV", {"slice_p": 1}, lr=0.5)
    train(model, optimizer, range(3))
    optimizer.param_groups[0]["lr"] = 0.25
    saved = copy.deepcopy(optimizer.state_dict())
    # another order, the last layer gone, a new one, and one of another shape
    shape = nn.Parameter(torch.ones(5))
    names = dict(model.named_parameters())
    groups = [
        {"params": [("1.weight", names["1.weight"]), ("0.bias", names["0.bias"])]},
        {"params": [("0.weight", names["0.weight"]), ("1.bias", shape), ("new", nn.Parameter(torch.ones(2)))]},
    ]
    other = BatchedOptimizer(groups, "PRODIGY_ADV", 1.0, slice_p=1)
    for group in other.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    other.step()
    with pytest.raises(ValueError, match=r"found groups of \[6\].*expected \[2, 3\]. new: new; gone: 2.weight, 2.bias"):
        other.load_state_dict(saved)
    other.load_state_dict(saved, missing="fresh")
    assert [entry["step"] for entry in other.state.values()] == [3, 3, 3, 0, 0]
    for p, place in ((names["1.weight"], 2), (names["0.weight"], 0)):
        assert torch.equal(
            other.state[p]["slots"]["exp_avg"]["value"], saved["state"][place]["slots"]["exp_avg"]["value"]
        )
    assert [group["lr"] for group in other.param_groups] == [0.25, 0.25]
    assert torch.equal(other.state_dict()["totals"]["d"], saved["totals"]["d"])
    assert other.notes == [
        "optimizer state of PRODIGY_ADV: taken for 3 of 5 parameters; of another rule or with other options, so begun "
        "afresh: 1.bias; new: new; gone: 2.weight, 2.bias."
    ]
    other.step()


def test_another_order_is_refused_and_taken_by_name_on_request():
    model, optimizer = made("ADAMW_ADV", {})
    train(model, optimizer, range(2))
    other = BatchedOptimizer(list(model.named_parameters())[::-1], "ADAMW_ADV")
    with pytest.raises(ValueError, match="another order"):
        other.load_state_dict(optimizer.state_dict())
    other.load_state_dict(optimizer.state_dict(), missing="fresh")
    assert not other.notes
    for p in model.parameters():
        assert torch.equal(*(o.state[p]["slots"]["exp_avg"]["value"] for o in (optimizer, other)))


def test_states_of_before_are_taken_by_place_and_by_name():
    """They named each entry, and groups had no mark."""
    model, optimizer = made("ADAMW_ADV", {})
    train(model, optimizer, range(2))
    saved = optimizer.state_dict()
    names = saved["param_groups"][0]["param_names"]
    news = ("param_names", "engine", "configured_lr", "betas")
    saved["param_groups"] = [{k: v for k, v in group.items() if k not in news} for group in saved["param_groups"]]
    saved["state"] = {place: {**entry, "name": names[place]} for place, entry in saved["state"].items()}
    for parameters, missing in (
        (model.parameters(), "error"),
        (model.named_parameters(), "error"),
        (list(model.named_parameters())[::-1], "fresh"),
    ):
        other = BatchedOptimizer(parameters, "ADAMW_ADV")
        other.load_state_dict(saved, missing=missing)
        for p in model.parameters():
            assert torch.equal(*(o.state[p]["slots"]["exp_avg"]["value"] for o in (optimizer, other)))


def test_state_of_another_rule_and_nameless_parameters():
    model, optimizer = made("ADAMW_ADV", {})
    train(model, optimizer, range(2))
    other = BatchedOptimizer(model.named_parameters(), "ADOPT_ADV")
    with pytest.raises(ValueError, match="found that of ADAMW_ADV, expected ADOPT_ADV"):
        other.load_state_dict(optimizer.state_dict())
    train(model, other, range(1))
    other.load_state_dict(optimizer.state_dict(), missing="fresh")
    assert {entry["step"] for entry in other.state.values()} == {0}
    assert "taken for 0 of 6" in other.notes[0] and "0.weight, 0.bias, 1.weight and 3 more" in other.notes[0]
    nameless = BatchedOptimizer(model.parameters(), "ADAMW_ADV")
    with pytest.raises(ValueError, match="found parameter 0 without a name here.*named_parameters"):
        nameless.load_state_dict(optimizer.state_dict(), missing="fresh")
    with pytest.raises(ValueError, match="^missing: found 'all'"):
        nameless.load_state_dict(optimizer.state_dict(), missing="all")
    nameless.load_state_dict(optimizer.state_dict())
    assert {entry["step"] for entry in nameless.state.values()} == {2}
