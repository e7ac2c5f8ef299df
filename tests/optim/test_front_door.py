"""The classes that other programs name: torch's signature, roles found without being told, copies, wrong calls."""

import copy
import gc
import pickle
import subprocess
import sys

import scaled_optim
from scaled_optim.live_modules import LiveDescriptions
from scaled_optim.optimizers import OPTIMIZERS
from scaled_optim.rules.registry import RULES

import torch
from torch import nn

import pytest
from peft import LoraConfig, get_peft_model


def model() -> nn.Module:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12))
    return get_peft_model(base, LoraConfig(r=4, target_modules=["0", "1"], init_lora_weights="orthogonal"))


def trained(of: nn.Module) -> list[nn.Parameter]:
    return [p for p in of.parameters() if p.requires_grad]


def roles(optimizer: scaled_optim.BatchedOptimizer) -> list[str]:
    return [batch.role.name for batch in optimizer._ready()]


def test_every_rule_has_a_class_and_every_class_is_found_at_the_front_door():
    assert set(OPTIMIZERS) == set(RULES)
    for rule, kind in OPTIMIZERS.items():
        assert getattr(scaled_optim, kind.__name__) is kind and kind.__name__ in scaled_optim.__all__
        for option in RULES[rule].defaults:
            assert f"    {option} = " in kind.__doc__


def test_every_argument_arrives():
    parameter = nn.Parameter(torch.ones(2, 2))
    given = {"seed": 7, "chunk": 5, "compile": True, "kernels": "never", "state_device": torch.device("cpu")}
    optimizer = scaled_optim.AdamW([parameter], 0.1, **given)
    assert {name: getattr(optimizer, name) for name in given} == given and optimizer._runner is None


@pytest.mark.parametrize("kind", [kind for rule, kind in OPTIMIZERS.items() if rule != "STIEFEL_LORA"])
def test_a_class_given_parameters_alone_lowers_a_loss(kind):
    net = model()
    x = torch.randn(8, 12, generator=torch.Generator().manual_seed(1))
    # Prodigy finds its rate by itself, and is told not to run away on so few parameters
    calm = {"safeguard_warmup": True, "d_limiter": True, "d_coef": 0.3}
    optimizer = kind(trained(net), 0.02) if kind.LR < 1 else kind(trained(net), **calm)
    losses = []
    for _ in range(60):
        loss = (net(x) - 1).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert set(roles(optimizer)) == {"LORA_DOWN", "LORA_UP"}
    assert losses[-1] < 0.8 * losses[0]


def test_stiefel_lora_finds_its_pairs_from_parameters_alone():
    net = model()
    for name, parameter in net.named_parameters():
        if "lora_B" in name:
            nn.init.orthogonal_(parameter)
    optimizer = scaled_optim.StiefelLoRA(trained(net), 0.01)
    for _ in range(3):
        net(torch.ones(2, 12)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    ups = [p for name, p in net.named_parameters() if "lora_B" in name]
    assert all((p.T @ p - torch.eye(4)).abs().max() < 1e-5 for p in ups)


def test_betas_are_taken_as_torch_writes_them():
    assert scaled_optim.AdamW(model().parameters(), betas=(0.8, 0.95)).param_groups[0]["beta2"] == 0.95
    assert scaled_optim.Lion(model().parameters(), betas=(0.8, 0.95)).param_groups[0]["beta1"] == 0.8
    with pytest.raises(ValueError, match="^betas: found 2 numbers, but SIGNSGD_ADV has none"):
        scaled_optim.SignSGD(model().parameters(), betas=(0.8, 0.95))
    with pytest.raises(ValueError, match="^beta1: found in betas, too"):
        scaled_optim.AdamW(model().parameters(), betas=(0.8, 0.95), beta1=0.8)
    with pytest.raises(ValueError, match="^bta1: ADAMW_ADV has no such option"):
        scaled_optim.AdamW(model().parameters(), bta1=0.8)


def test_groups_named_parameters_and_groups_that_come_later():
    net, other = model(), model()
    optimizer = scaled_optim.AdamW([{"params": trained(net), "lr": 0.5}], 0.1)
    optimizer.add_param_group({"params": trained(other)})
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.1]
    assert set(roles(optimizer)) == {"LORA_DOWN", "LORA_UP"}
    named = scaled_optim.AdamW([(name, p) for name, p in net.named_parameters() if p.requires_grad])
    assert named.param_groups[0]["param_names"][0].endswith("lora_A.default.weight")
    one = nn.Parameter(torch.ones(3))
    assert roles(scaled_optim.AdamW([one])) == ["VECTOR"]
    assert roles(scaled_optim.AdamW([{"params": one}])) == ["VECTOR"]


def test_a_description_that_is_given_counts():
    net = model()
    found = scaled_optim.describe(net)
    optimizer = scaled_optim.AdamW(trained(net), describe=found)
    assert optimizer.describe is found and set(roles(optimizer)) == {"LORA_DOWN", "LORA_UP"}


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("way", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_keep_what_was_found(way, given):
    net = model()
    optimizer = scaled_optim.AdamW(trained(net), describe=scaled_optim.describe(net) if given else None)
    net(torch.ones(2, 12)).square().mean().backward()
    optimizer.step()
    net, twin = way((net, optimizer))
    assert type(twin) is scaled_optim.AdamW and set(roles(twin)) == {"LORA_DOWN", "LORA_UP"}
    assert len(pickle.dumps(optimizer)) < len(pickle.dumps((net, optimizer)))


def test_models_are_looked_for_once_for_all_parameters(monkeypatch):
    scans = []
    monkeypatch.setattr(gc, "get_objects", lambda real=gc.get_objects: scans.append(1) or real())
    optimizer = scaled_optim.AdamW([nn.Parameter(torch.ones(2)) for _ in range(50)])
    optimizer.step()
    assert len(scans) == 1
    described = LiveDescriptions()
    parameter = nn.Parameter(torch.ones(2))
    parameter.parameter_info = scaled_optim.Description("OFT", "named")
    described.look_for([parameter])
    assert len(scans) == 1 and described(parameter).role == "OFT"


def test_the_largest_model_in_memory_gives_the_names():
    net = model()
    part = nn.ModuleList([net.base_model.model[0]])
    names = scaled_optim.AdamW(trained(net)).state_dict()["param_groups"][0]["param_names"]
    assert all(name.startswith("base_model.model.") for name in names) and len(part) == 1


def test_declarations_are_read_without_torch():
    code = "import sys, scaled_optim; scaled_optim.DECLARED; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
    with pytest.raises(AttributeError, match="has no attribute 'Adam'; it has AdaMuon, AdamW"):
        scaled_optim.Adam  # noqa: B018
    assert {"AdamW", "describe", "__version__"} <= set(dir(scaled_optim))


class Elsewhere(nn.Parameter):
    """A parameter that says that it is on a device which this machine has not, as one that is offloaded would be."""

    device = property(lambda self: torch.device("cuda", 1))
    is_cpu = property(lambda self: False)


def test_state_may_be_apart_from_parameters():
    parameters = [Elsewhere(torch.ones(4, 4)), nn.Parameter(torch.ones(4, 4))]
    apart = scaled_optim.AdamW(parameters, 0.1, state_device="cpu", centered_wd=0.1)
    for _ in range(2):
        for parameter in parameters:
            parameter.grad = torch.full((4, 4), 0.5)
        apart.step()
        (batch,) = apart._batches
        assert batch.device == torch.device("cpu") and not batch.moved, "it would be made anew at each step"
    assert batch.steps == [2, 2] and torch.equal(*(parameter.detach() for parameter in parameters))
    parameters[0].data = parameters[0].data.double()
    assert batch.moved


def test_where_state_is_changes_no_bit():
    found = []
    for device in (None, "cpu"):
        torch.manual_seed(0)
        parameters = [nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(4))]
        optimizer = scaled_optim.AdamW(parameters, 0.1, state_device=device, centered_wd=0.1)
        for step in range(3):
            for place, parameter in enumerate(parameters):
                parameter.grad = torch.full_like(parameter, 0.1 * (step + 1 + place))
            optimizer.step()
        found.append(
            [parameter.detach() for parameter in pickle.loads(pickle.dumps(optimizer)).param_groups[0]["params"]]
        )
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
