"""Files that stack several of the model's layers: read by splitting, written by joining, for the same weights.

No family that is shipped has such layers yet; the model here is made up.
"""

from modules.modelSaver.adapter_metadata import AdapterDescription
from modules.modelSaver.AdapterFile import read_adapter
from modules.modelSaver.fused_layers import join_layers, split_layer
from modules.modelSaver.save_adapter import save_adapter
from modules.module.AdapterSet import AdapterSet
from modules.module.kinds import class_of_layers
from modules.util.AdapterNaming import AdapterNaming, FusedLayer
from modules.util.atomic_file import write_safetensors
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.LayerFilter import LayerFilter
from modules.util.UserError import UserError
from tests.adapters import disturb

import torch
from torch import Tensor, nn

import pytest
from safetensors.torch import load_file

ROWS = {"q": 8, "k": 8, "v": 16}  # a fused projection need not have equal slices
WIDTH = 12
KOHYA, COMFY = ModelFormat.KOHYA_LORA, ModelFormat.COMFY_LORA
OUTPUTS = {"lora_decompose": True, "lora_decompose_output_axis": True}
OFT_OUT = {"peft_type": "OFT_2", "oft_side": "OUTPUT", "oft_block_size": 4}
# kinds that can be split and joined
KINDS = {
    "LoRA": {"lora_rank": 3, "lora_alpha": 5.0},
    "DoRA on outputs": {"lora_rank": 3, "lora_alpha": 5.0, **OUTPUTS},
    "LoHa": {"peft_type": "LOHA", "lora_rank": 3, "lora_alpha": 5.0},
    "OFT on outputs": OFT_OUT,
    "OFT shared on outputs": OFT_OUT | {"oft_block_share": True},
}


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        for name, rows in ROWS.items():
            self.add_module(name, nn.Linear(WIDTH, rows))
        self.out = nn.Linear(16, WIDTH)


def make_naming() -> AdapterNaming:
    """Kohya files have q, k and v apart, ComfyUI's have them joined."""
    layers = {("unet", name): name for name in (*ROWS, "out")}
    group = FusedLayer(tuple(("unet", name) for name in ROWS), tuple(ROWS.values()))
    return AdapterNaming.build(
        {
            KOHYA: {layer: f"lora_unet_{name}" for layer, name in layers.items()},
            COMFY: {("unet", "out"): "diffusion_model.out"},
        },
        {},
        fused={"lora_unet_qkv": group},
        write_fused={COMFY: {"diffusion_model.qkv": group}},
    )


def trained(options: dict, layers: tuple[str, ...] = (*ROWS, "out")) -> AdapterSet:
    adapters = AdapterSet("unet", Attention(), TrainConfig.from_dict(options), LayerFilter.exactly(layers))
    return disturb(adapters, 1, 0.3)


def fused_layer() -> nn.Linear:
    attention, fused = Attention(), nn.Linear(WIDTH, sum(ROWS.values()))
    with torch.no_grad():
        fused.weight.copy_(torch.cat([getattr(attention, name).weight for name in ROWS]))
    return fused


def delta_of(parts: dict[str, Tensor], layer: nn.Linear) -> Tensor:
    kind = class_of_layers({"": parts})
    adapter = kind.create(layer, "unet", "fused", TrainConfig(**kind.options_of(parts, layer)), 0)
    adapter.load_parts(parts)
    return adapter.merged_delta()


def stacked_delta(adapters: AdapterSet) -> Tensor:
    return torch.cat([
        adapters.adapters[name].merged_delta() if name in adapters.adapters else torch.zeros(rows, WIDTH)
        for name, rows in ROWS.items()
    ])  # fmt: skip


def close(one: Tensor, other: Tensor) -> bool:
    """Equal up to a few float32 roundings of the weights, which are about 0.3."""
    return bool((one - other).abs().max() < 2e-6 * max(1, other.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_written_joined_and_read_apart(tmp_path, kind):
    adapters, naming = trained(KINDS[kind]), make_naming()
    path = tmp_path / "joined.safetensors"
    save_adapter(path, {"unet": adapters}, COMFY, naming, AdapterDescription())
    file = read_adapter(path)
    assert file.layers.keys() == {"diffusion_model.qkv", "diffusion_model.out"}
    model = Attention()
    found = file.fit(naming, {"unet": model})["unet"]
    for name, adapter in AdapterSet.from_parts("unet", model, found).adapters.items():
        expected = adapters.adapters[name].merged_delta()
        assert expected.abs().max() > 0.01 and close(adapter.merged_delta(), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_joint_adapter_is_the_stack(kind):
    adapters = trained(KINDS[kind], tuple(ROWS))
    fused = join_layers([adapters.layers()[name] for name in ROWS], tuple(ROWS.values()))
    assert close(delta_of(fused, fused_layer()), stacked_delta(adapters))


@pytest.mark.parametrize("kind", ["LoRA", "LoHa"])
def test_ranks_and_scales_may_differ(kind):
    """Every layer has a rank and alpha of its own, and one has no adapter."""
    pieces, deltas = [], []
    for rank, alpha, name in ((2, 3.0, "q"), (4, 1.0, "v")):
        adapters = trained(KINDS[kind] | {"lora_rank": rank, "lora_alpha": alpha}, (name,))
        pieces.append(adapters.layers()[name])
        deltas.append(adapters.adapters[name].merged_delta())
    fused = join_layers([pieces[0], None, pieces[1]], tuple(ROWS.values()))
    expected = torch.cat([deltas[0], torch.zeros(ROWS["k"], WIDTH), deltas[1]])
    assert close(delta_of(fused, fused_layer()), expected)


def test_an_alpha_of_zero_stays_zero():
    down, up = torch.ones(2, WIDTH), torch.ones(WIDTH, 2)
    zero = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(0.0)}
    fused = join_layers([zero, zero | {"lora_down.weight": 2 * down, "alpha": torch.tensor(3.0)}], (WIDTH, WIDTH))
    delta = fused["alpha"] / 4 * fused["lora_up.weight"] @ fused["lora_down.weight"]
    assert torch.equal(delta, torch.cat([torch.zeros(WIDTH, WIDTH), torch.full((WIDTH, WIDTH), 6.0)]))


@pytest.mark.parametrize(
    "options",
    [
        *KINDS.values(),
        {"peft_type": "OFT_2", "oft_block_size": 4},
        {"peft_type": "OFT_2", "oft_block_size": 4, "lora_decompose": True},
        {"peft_type": "LOKR", "lokr_dim": 2, "lokr_decompose_factor": 4},
        {"peft_type": "LOKR", "lokr_dim": 2, "lokr_full_matrix": True, "lokr_weight_decompose": True},
    ],
)
def test_an_adapter_of_the_fused_layer_is_split(options):
    """As other programs train it: one adapter for all rows."""
    model = nn.ModuleDict({"qkv": fused_layer()})
    adapters = AdapterSet("unet", model, TrainConfig.from_dict(options))
    disturb(adapters, 1, 0.3)
    parts, attention = adapters.layers()["qkv"], Attention()
    pieces = split_layer(parts, tuple(ROWS.values()))
    deltas = [delta_of(piece, getattr(attention, name)) for piece, name in zip(pieces, ROWS, strict=True)]
    expected = adapters.adapters["qkv"].merged_delta()
    assert expected.abs().max() > 0.01 and close(torch.cat(deltas), expected)


def test_splitting_and_joining_again_is_exact():
    parts = {
        "lora_down.weight": torch.randn(3, WIDTH),
        "lora_up.weight": torch.randn(32, 3),
        "alpha": torch.tensor(5.0),
        "dora_scale": torch.rand(32, 1),
    }
    joined = join_layers(split_layer(parts, tuple(ROWS.values())), tuple(ROWS.values()))
    assert joined.keys() == parts.keys()
    assert all(torch.equal(joined[name], tensor) for name, tensor in parts.items())
    diff = {"diff": torch.randn(32, WIDTH), "diff_b": torch.randn(32)}
    joined = join_layers(split_layer(diff, tuple(ROWS.values())), tuple(ROWS.values()))
    assert all(torch.equal(joined[name], tensor) for name, tensor in diff.items())
    joined = join_layers([None, {"diff": torch.ones(8, WIDTH)}, None], tuple(ROWS.values()))
    assert joined["diff"].sum(1).tolist() == [0] * 8 + [WIDTH] * 8 + [0] * 16


def test_rotated_inputs_join_only_if_they_are_the_same():
    rotation = {"oft_R.weight": torch.randn(3, 6)}
    rows = tuple(ROWS.values())
    assert torch.equal(join_layers(split_layer(rotation, rows), rows)["oft_R.weight"], rotation["oft_R.weight"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lora_decompose": True}, "dora_scale can't be joined exactly: a magnitude on inputs"),
        ({"peft_type": "OFT_2", "oft_block_size": 4}, "oft_R.weight can't be joined: the layers have one input"),
        ({"peft_type": "LOKR", "lokr_dim": 2}, "can't be joined exactly, as LoKr ties rows together"),
    ],
)
def test_what_cannot_be_joined_is_said(tmp_path, options, words):
    naming = make_naming()
    with pytest.raises(UserError) as error:
        save_adapter(tmp_path / "x", {"unet": trained(options)}, COMFY, naming, AdapterDescription())
    assert words in str(error.value) and "diffusion_model.qkv" in str(error.value) and "unet.q" in str(error.value)
    save_adapter(tmp_path / "x", {"unet": trained(options)}, KOHYA, naming, AdapterDescription())
    assert {key.split(".")[0] for key in load_file(tmp_path / "x")} == {f"lora_unet_{name}" for name in (*ROWS, "out")}


def test_lengths_need_every_layer(tmp_path):
    some = {"unet": trained(KINDS["DoRA on outputs"], ("q", "out"))}
    with pytest.raises(UserError, match="is needed for every layer of a fused one"):
        save_adapter(tmp_path / "x", some, COMFY, make_naming(), AdapterDescription())


@pytest.mark.parametrize(
    ("parts", "key", "words"),
    [
        (
            {"lora_down.weight": torch.ones(3, WIDTH), "lora_up.weight": torch.ones(30, 3)},
            "lora_up.weight", "stands for 30 outputs, expected 32",
        ),
        ({"oft_blocks": torch.zeros(2, 16, 16)}, "oft_blocks", "works on 16 outputs at once"),
        (
            {
                "lora_down.weight": torch.ones(3, WIDTH), "lora_up.weight": torch.ones(32, 3),
                "dora_scale": torch.ones(1, WIDTH),
            },
            "dora_scale", "can't be taken apart exactly",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_split_is_said(tmp_path, parts, key, words):
    write_safetensors(tmp_path / "x", {f"lora_unet_qkv.{part}": tensor for part, tensor in parts.items()})
    with pytest.raises(UserError) as error:
        read_adapter(tmp_path / "x").resolve(make_naming())
    assert f"{tmp_path / 'x'}: lora_unet_qkv.{key}" in str(error.value) and words in str(error.value)


def test_naming_checks_its_groups():
    group = FusedLayer((("unet", "q"), ("unet", "k")), (8, 8))
    names = {KOHYA: {("unet", "q"): "q", ("unet", "k"): "k"}}
    with pytest.raises(ValueError, match="stands for"):
        AdapterNaming.build(names, {}, fused={"q": group})
    with pytest.raises(ValueError, match="would be written twice"):
        AdapterNaming.build(names, {}, write_fused={KOHYA: {"qk": group}})
    with pytest.raises(ValueError, match="expected the rows of each"):
        AdapterNaming.build(names, {}, fused={"qk": FusedLayer(group.layers, (8,))})
    joined = AdapterNaming.join([make_naming(), AdapterNaming.build({KOHYA: {("te", "a"): "a"}}, {})])
    assert joined.fused.keys() == {"lora_unet_qkv", "diffusion_model.qkv"} and "a" in joined.read
    assert joined.write_fused[COMFY].keys() == {"diffusion_model.qkv"}
