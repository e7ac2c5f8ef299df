"""Layers and activations that wait in another memory. Both are the CPU's here; copies are made all the same."""

from modules.model.ActivationOffload import ActivationOffload
from modules.model.DeviceLink import DeviceLink
from modules.model.LayerOffload import LayerOffload, module_bytes, offload, waiting_units
from modules.model.weight_formats import place_component
from modules.module.AdapterSet import AdapterSet
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError

import torch
from torch import Tensor, nn

import pytest
from diffusers import Flux2Transformer2DModel, UNet2DConditionModel
from safetensors.torch import load_file

CPU, META = torch.device("cpu"), torch.device("meta")
PLAIN = DeviceLink(CPU, CPU)
METHODS = {
    "LoRA": {"peft_type": "LORA"},
    "DoRA": {"peft_type": "LORA", "lora_decompose": True},
    "OFT": {"peft_type": "OFT_2", "oft_block_size": 8},
}


def unet() -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = UNet2DConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8, cross_attention_dim=32,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,
    )  # fmt: skip
    inputs = {"sample": torch.randn(2, 4, 16, 16), "timestep": torch.tensor([3, 400]),
              "encoder_hidden_states": torch.randn(2, 5, 32)}  # fmt: skip
    return model.requires_grad_(False), inputs


def transformer() -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = Flux2Transformer2DModel(
        num_layers=2, num_single_layers=8, attention_head_dim=16, num_attention_heads=4, joint_attention_dim=64,
        timestep_guidance_channels=64, in_channels=32, axes_dims_rope=(4, 4, 4, 4),
    )  # fmt: skip
    inputs = {
        "hidden_states": torch.randn(2, 16, 32), "encoder_hidden_states": torch.randn(2, 8, 64),
        "timestep": torch.tensor([0.2, 0.9]), "guidance": torch.ones(2),
        "img_ids": torch.randint(4, (16, 4)), "txt_ids": torch.zeros(8, 4),
    }  # fmt: skip
    return model.requires_grad_(False), inputs


MODELS = {"UNet": unet, "transformer": transformer}
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def step(model: nn.Module, inputs: dict[str, Tensor], adapters: AdapterSet) -> list[Tensor]:
    """The output and all gradients of one step."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    output = model(**inputs, return_dict=False)[0]
    output.square().sum().backward()
    return [output.detach(), *(parameter.grad for parameter in adapters.parameters())]


def prepared(make, method: dict) -> tuple[nn.Module, dict[str, Tensor], AdapterSet]:
    model, inputs = make()
    adapters = AdapterSet("unet", model, TrainConfig.from_dict({"lora_rank": 2, **method}))
    adapters.hook()
    model.train()
    model.enable_gradient_checkpointing()
    return model, inputs, adapters


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@every_model
def test_results_are_the_same_to_the_bit(make, method):
    expected = step(*prepared(make, method))
    model, inputs, adapters = prepared(make, method)
    moves = offload(model, waiting_units(model, 1.0), PLAIN)
    found = step(model, inputs, adapters)
    assert len(found) == len(expected) > 1 and all(map(torch.equal, found, expected))
    assert moves.fetched.moved > 0 and moves.held == 0


@pytest.mark.parametrize("data_type", ["FLOAT_8", "INT_8", "NFLOAT_4"])
def test_quantized_layers_wait_as_well(data_type):
    def run(waits: bool) -> list[Tensor]:
        model, inputs = transformer()
        config = TrainConfig.from_dict({"transformer": {"weight_dtype": data_type}, "train_dtype": "FLOAT_32"})
        place_component(model, "transformer", config, CPU)
        model, inputs, adapters = prepared(lambda: (model, inputs), METHODS["DoRA"])
        moves = offload(model, waiting_units(model, 1.0), PLAIN) if waits else None
        found = step(model, inputs, adapters)
        assert not waits or (moves.fetched.moved > 0 and moves.held == 0)
        return found

    assert all(map(torch.equal, run(True), run(False)))


@every_model
def test_only_what_is_called_is_on_the_device(make):
    """The most that is held by modules at once is one unit, and after a step nothing is."""
    model, inputs, adapters = prepared(make, METHODS["LoRA"])
    names = waiting_units(model, 1.0)
    sizes = [module_bytes(model.get_submodule(name)) for name in names]
    moves, seen = offload(model, names, PLAIN), []
    for module in model.modules():
        module.register_forward_hook(lambda *arguments: seen.append(moves.held))
    step(model, inputs, adapters)
    assert 0 < max(seen) <= max(sizes) < 0.2 * sum(sizes) and moves.held == 0
    # once for the forward, once for the backward; outside of checkpointed blocks only once
    assert sum(sizes) < moves.fetched.moved <= 2 * sum(sizes)


def test_autograd_frees_the_copies_with_checkpointing_alone():
    """Without it, copies of all layers live until the backward pass: why it is asked for."""

    def alive(checkpointing: bool) -> int:
        model, inputs, adapters = prepared(transformer, METHODS["LoRA"])
        if not checkpointing:
            model.disable_gradient_checkpointing()
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            if isinstance(tensor._base if tensor._base is not None else tensor, nn.Parameter):
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        names = waiting_units(model, 1.0)
        offload(model, names, PLAIN)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            output = model(**inputs, return_dict=False)[0]
        assert output.requires_grad
        return sum(kept.values())

    assert alive(True) < 0.2 * alive(False)


def test_what_is_trained_stays():
    model = nn.ModuleList([nn.Linear(4, 4)])
    model[0].bias.requires_grad_(True)
    model[0].weight.requires_grad_(False)
    bias, weight = model[0].bias, model[0].weight
    seen = []
    LayerOffload([model[0]], PLAIN)
    model[0].register_forward_hook(lambda module, *rest: seen.append((module.bias is bias, module.weight is weight)))
    model[0](torch.ones(1, 4)).sum().backward()
    # hooks run in the order in which they were registered, so the weight is back already
    assert seen == [(True, True)] and bias.grad is not None and model[0].weight is weight


def test_errors_leave_everything_in_its_place():
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4).requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            raise MemoryError(float(self.inner(x).sum()))

    model = Broken()
    weight = model.inner.weight
    moves = LayerOffload([model], PLAIN)
    for _ in range(2):
        with pytest.raises(MemoryError):
            model(torch.ones(1, 4))
        assert model.inner.weight is weight and moves.held == 0
    assert moves.fetched.moved == 2 * module_bytes(model)


@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.9])
@every_model
def test_share_of_the_blocks(make, fraction):
    model, _ = make()
    everything = sum(module_bytes(model.get_submodule(name)) for name in waiting_units(model, 1.0))
    waiting = sum(module_bytes(model.get_submodule(name)) for name in waiting_units(model, fraction))
    # the last unit may be of a twentieth of the model, which is more than its blocks
    assert fraction <= waiting / everything <= fraction + 0.08
    assert everything > 0.85 * module_bytes(model)


def test_loading_leaves_waiting_layers_at_home():
    """On the way to "meta", which stands for a device here, what waits keeps its numbers."""
    config = TrainConfig.from_dict({"transformer": {"offload_fraction": 0.5}, "training_method": "LORA"})
    model = place_component(transformer()[0], "transformer", config, META)
    waiting = sum(p.nbytes for p in model.parameters() if not p.is_meta)
    assert 0.35 < waiting / module_bytes(model) < 0.65
    assert not model.single_transformer_blocks[-1].attn.to_out.weight.is_meta and model.x_embedder.weight.is_meta


def check(**changes) -> None:
    component = {"offload_fraction": 0.5, **changes.pop("component", {})}
    name = changes.pop("name", "transformer")
    place_component(
        transformer()[0], name, TrainConfig.from_dict({"training_method": "LORA", name: component, **changes}), META
    )


def test_what_cannot_be_offloaded_is_refused():
    check()
    with pytest.raises(UserError, match=r"transformer\.offload_fraction: .* gradient checkpointing"):
        check(component={"gradient_checkpointing": False})
    check(component={"gradient_checkpointing": False, "train": False})
    with pytest.raises(UserError, match=r"transformer\.offload_fraction: .* only frozen layers"):
        check(training_method="FINE_TUNE")
    with pytest.raises(UserError, match=r"vae\.offload_fraction"):
        check(name="vae")


@pytest.mark.parametrize("checkpointing", [True, False])
@every_model
def test_activations_that_wait_change_nothing(make, checkpointing, monkeypatch):
    monkeypatch.setattr(ActivationOffload, "SMALLEST", 256)

    def run(away: bool) -> tuple[list[Tensor], int]:
        model, inputs, adapters = prepared(make, METHODS["LoRA"])
        if not checkpointing:
            model.disable_gradient_checkpointing()
        moves = ActivationOffload(model, PLAIN) if away else None
        return step(model, inputs, adapters), moves.moved if moves else 0

    (expected, _), (found, moved) = run(False), run(True)
    assert moved > 0
    for own, other in zip(found, expected, strict=True):
        # a copy may lie otherwise in memory than what it is of, and then kernels add up in another order
        limit = 0 if checkpointing else 1e-5 * float(other.abs().max())
        assert (own - other).abs().max() <= limit


def test_a_whole_run_with_offloading_trains_the_same(make_run):
    """On one device nothing waits elsewhere, but every check of a run has to let it through."""
    options = {"epochs": 1, "unet": {"gradient_checkpointing": True}}
    component = {"gradient_checkpointing": True, "offload_fraction": 0.5, "activation_offloading": True}
    plain, waiting = make_run("plain"), make_run("waiting")
    plain.train(**options)
    waiting.train(**options | {"unet": component})
    first, second = load_file(plain.output), load_file(waiting.output)
    assert first.keys() == second.keys() and not waiting.warnings()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
