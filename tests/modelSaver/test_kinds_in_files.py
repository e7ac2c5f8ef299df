"""Every kind of adapter in every format that has a reader for it, and clear words where there is none."""

import json

from modules.modelSaver.adapter_kinds import AdapterKind
from modules.modelSaver.adapter_layout import LAYOUTS
from modules.modelSaver.adapter_metadata import AdapterDescription
from modules.modelSaver.AdapterFile import read_adapter
from modules.modelSaver.format_rules import comfy_remarks, holds
from modules.modelSaver.save_adapter import save_adapter
from modules.module.AdapterSet import AdapterSet
from modules.module.kinds import ADAPTER_CLASSES, adapter_class_of
from modules.util.atomic_file import write_safetensors
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.DataType import DataType
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.LayerFilter import LayerFilter
from modules.util.UserError import UserError
from tests.adapters import disturb

import torch

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

DESCRIPTION = AdapterDescription(title="kinds")
# alphas that are no power of two and differ from the rank, so that a lost one shows
LOW_RANK = {"lora_rank": 3, "lora_alpha": 5.0}
LOKR = {"peft_type": "LOKR", "lora_alpha": 5.0, "lokr_dim": 2}
OFT = {"peft_type": "OFT_2", "oft_block_size": 8}
# name -> (options, what files tell it to be)
KINDS = {
    "LoRA": (LOW_RANK, AdapterKind("LoRA")),
    "DoRA": (LOW_RANK | {"lora_decompose": True}, AdapterKind("LoRA", "input")),
    "DoRA on outputs": (
        LOW_RANK | {"lora_decompose": True, "lora_decompose_output_axis": True},
        AdapterKind("LoRA", "output"),
    ),
    "LoHa": (LOW_RANK | {"peft_type": "LOHA"}, AdapterKind("LoHa")),
    "LoKr": (LOKR, AdapterKind("LoKr")),
    "LoKr both": (LOKR | {"lokr_decompose_both": True, "lokr_dim": 1, "lokr_decompose_factor": 4}, AdapterKind("LoKr")),
    "LoKr full": (LOKR | {"lokr_full_matrix": True}, AdapterKind("LoKr")),
    "LoKr Tucker": (LOKR | {"lokr_use_tucker": True, "lokr_decompose_factor": 4}, AdapterKind("LoKr")),
    "LoKr DoRA": (LOKR | {"lokr_weight_decompose": True}, AdapterKind("LoKr", "output")),
    "LoKr DoRA on inputs": (
        LOKR | {"lokr_weight_decompose": True, "lokr_dora_on_output": False},
        AdapterKind("LoKr", "input"),
    ),
    "OFT": (OFT, AdapterKind("OFT")),
    "OFT scaled": (OFT | {"oft_scaled": True}, AdapterKind("OFT")),
    "OFT shared": (OFT | {"oft_block_share": True, "oft_scaled": True, "oft_scale_mode": "ROW"}, AdapterKind("OFT")),
    "OFT on outputs": (OFT | {"oft_side": "OUTPUT", "oft_scaled": True}, AdapterKind("output-side OFT")),
    "DoRA-OFT": (OFT | {"lora_decompose": True}, AdapterKind("OFT", "output")),
    "DoRA-OFT on outputs": (
        OFT | {"lora_decompose": True, "oft_side": "OUTPUT"},
        AdapterKind("output-side OFT", "input"),
    ),
}
# linear layers, 3 x 3 and 1 x 1 convolutions
LAYERS = LayerFilter(("down_blocks.0.attentions.0", "down_blocks.1.resnets.0"))


@pytest.fixture(scope="module")
def trained(base):
    """trained(name) -> component -> adapters with random weights."""
    made = {}

    def make(name: str) -> dict[str, AdapterSet]:
        if name not in made:
            config = TrainConfig.from_dict(KINDS[name][0])
            made[name] = {
                "unet": AdapterSet("unet", base.unet, config, LAYERS),
                "text_encoder": AdapterSet("text_encoder", base.text_encoder, config),
            }
            for adapters in made[name].values():
                disturb(adapters, 2)
        return made[name]

    return make


def test_every_registered_kind_is_here():
    assert {adapter_class_of(TrainConfig.from_dict(options)) for options, _ in KINDS.values()} == set(
        ADAPTER_CLASSES.values()
    )


# kohya's format under another name
SAME = (ModelFormat.SAFETENSORS,)
DISTINCT = [model_format for model_format in LAYOUTS if model_format not in SAME]


def test_same_formats_are_the_same(base):
    for model_format in SAME:
        assert LAYOUTS[model_format] == LAYOUTS[ModelFormat.KOHYA_LORA]
        assert base.naming.write[model_format] == base.naming.write[ModelFormat.KOHYA_LORA]


@pytest.mark.parametrize("model_format", DISTINCT)
@pytest.mark.parametrize("name", KINDS)
def test_save_load_gives_the_same_weights(base, trained, tmp_path, name, model_format):
    path, kind, adapters = tmp_path / "adapter.safetensors", KINDS[name][1], trained(name)
    if model_format == ModelFormat.ORIGINAL_LORA:  # has no names for text encoders
        adapters = {"unet": adapters["unet"]}
    if not holds(model_format, kind):
        with pytest.raises(UserError, match="cannot hold .* Choose one of .*KOHYA_LORA"):
            save_adapter(path, adapters, model_format, base.naming, DESCRIPTION)
        assert not path.exists()
        return
    save_adapter(path, adapters, model_format, base.naming, DESCRIPTION)
    file = read_adapter(path)
    assert file.kind == kind
    found = file.fit(base.naming, base.components)
    assert found.keys() == adapters.keys()
    for component, own in adapters.items():
        loaded = AdapterSet.from_parts(component, getattr(base, component), found[component])
        assert type(next(iter(loaded.adapters.values()))) is own.adapter_class
        for layer, adapter in own.adapters.items():
            expected = adapter.merged_delta()
            assert expected.norm() > 1e-3 * adapter.layer.weight.norm()
            difference = (loaded.adapters[layer].merged_delta() - expected).norm()
            # a few float32 roundings, of the weight where W' - W is taken
            assert difference <= 1e-6 * (expected.norm() + adapter.layer.weight.norm())


@pytest.mark.parametrize("model_format", [ModelFormat.KOHYA_LORA, ModelFormat.INTERNAL])
@pytest.mark.parametrize("name", KINDS)
def test_where_nothing_is_computed_the_numbers_are_the_same(base, trained, tmp_path, name, model_format):
    path, adapters = tmp_path / "adapter.safetensors", trained(name)
    save_adapter(path, adapters, model_format, base.naming, DESCRIPTION)
    found = read_adapter(path).fit(base.naming, base.components)
    without_cores = model_format == ModelFormat.KOHYA_LORA
    for component, own in adapters.items():
        for layer, parts in own.layers().items():
            if "lokr_t2" in parts and without_cores:  # ComfyUI can't load them
                assert "lokr_t2" not in found[component][layer]
                continue
            assert parts.keys() == found[component][layer].keys()
            assert all(torch.equal(tensor, found[component][layer][part]) for part, tensor in parts.items())


def test_half_precision_keeps_lengths_and_alpha(base, trained, tmp_path):
    path, adapters = tmp_path / "adapter.safetensors", trained("DoRA")
    save_adapter(path, adapters, ModelFormat.KOHYA_LORA, base.naming, DESCRIPTION, DataType.BFLOAT_16)
    tensors = load_file(path)
    exact = {key for key, tensor in tensors.items() if tensor.dtype == torch.float32}
    assert exact == {key for key in tensors if key.endswith((".alpha", ".dora_scale"))}
    # a length in bfloat16 would change all of a weight vector by up to 1/256
    key = "lora_unet_down_blocks_0_attentions_0_proj_in.dora_scale"
    assert torch.equal(tensors[key], adapters["unet"].layers()["down_blocks.0.attentions.0.proj_in"]["dora_scale"])


@pytest.mark.parametrize(
    ("name", "expected", "arguments"),
    [
        ("LoRA", {"ss_network_module": "networks.lora", "ss_network_dim": "3", "ss_network_alpha": "5"}, {}),
        ("DoRA", {"ss_network_dim": "3"}, {"algo": "lora", "dora_wd": "True", "wd_on_output": "False"}),
        ("LoHa", {"ss_network_dim": "3", "ss_network_alpha": "5"}, {"algo": "loha"}),
        ("LoKr", {"ss_network_dim": "2", "ss_network_alpha": "5"}, {"algo": "lokr"}),
        ("LoKr DoRA", {}, {"algo": "lokr", "dora_wd": "True", "wd_on_output": "True"}),
        ("LoKr full", {}, {"algo": "lokr", "full_matrix": "True"}),
        ("OFT", {"ss_network_dim": "8"}, {"algo": "oft_2", "block_size": "8"}),
        ("OFT on outputs", {"ss_network_dim": "8"}, {"algo": "diag-oft", "block_size": "8"}),
    ],
)
def test_metadata_tell_the_kind(base, trained, tmp_path, name, expected, arguments):
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, trained(name), ModelFormat.KOHYA_LORA, base.naming, DESCRIPTION)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    if name != "LoRA":
        assert metadata["ss_network_module"] == "lycoris.kohya"
    assert metadata | expected == metadata and metadata["adapter_kind"] == str(KINDS[name][1])
    found = json.loads(metadata.get("ss_network_args", "{}"))
    assert found | arguments == found
    if name.startswith("OFT"):
        assert "ss_network_alpha" not in metadata


def test_formats_say_who_reads_them_wrongly():
    said = {
        (name, model_format): " ".join(comfy_remarks(model_format, kind))
        for name, (_, kind) in KINDS.items()
        for model_format in (ModelFormat.KOHYA_LORA, ModelFormat.COMFY_LORA)
    }
    silent = {name for name, kind in KINDS.items() if not said[name, ModelFormat.KOHYA_LORA]}
    assert silent == {
        "LoRA", "DoRA", "LoHa", "LoKr", "LoKr both", "LoKr full", "LoKr Tucker", "LoKr DoRA on inputs",
        "OFT on outputs",
    }  # fmt: skip
    assert "custom_nodes" in said["OFT", ModelFormat.COMFY_LORA]
    assert "custom_nodes" in said["DoRA-OFT on outputs", ModelFormat.COMFY_LORA]
    assert "Choose COMFY_LORA" in said["LoKr DoRA", ModelFormat.KOHYA_LORA]
    assert "adjusted" in said["DoRA on outputs", ModelFormat.COMFY_LORA]


def test_diffusers_gets_the_dora_that_it_knows(base, trained, make_pipeline, predict, tmp_path):
    adapters = trained("DoRA on outputs")
    path = tmp_path / "dora.safetensors"
    save_adapter(path, adapters, ModelFormat.DIFFUSERS_LORA, base.naming, DESCRIPTION)
    plain = predict(base)
    for adapter_set in adapters.values():
        adapter_set.hook()
    expected = predict(base)
    for adapter_set in adapters.values():
        adapter_set.unhook()
    other = make_pipeline()
    other.load_lora_weights(str(tmp_path), weight_name=path.name)
    assert any("lora_magnitude_vector" in name for name, _ in other.unet.named_modules())
    for found, wanted, without in zip(predict(other), expected, plain, strict=True):
        assert (wanted - without).abs().max() > 0.05
        # float32 through a dozen layers
        assert (found - wanted).abs().max() < 1e-4


def test_peft_files_are_read(base, predict, make_pipeline, tmp_path):
    """A DoRA that peft itself made and saved, with its settings beside it."""
    from peft import LoraConfig, get_peft_model

    other = make_pipeline()
    settings = LoraConfig(
        r=3, lora_alpha=5, use_dora=True, target_modules=["to_q", "conv1", "ff.net.2"], alpha_pattern={"to_q": 2}
    )
    model = get_peft_model(other.unet, settings)
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
            if "magnitude" in name:
                parameter.mul_(1 + 0.1 * torch.rand_like(parameter))
    model.save_pretrained(tmp_path)
    expected = predict(other)[0]
    file = read_adapter(tmp_path / "adapter_model.safetensors")
    assert file.kind == AdapterKind("LoRA", "output") and file.format == ModelFormat.DIFFUSERS_LORA
    found = file.fit(base.naming, base.components)
    loaded = AdapterSet.from_parts("unet", base.unet, found["unet"])
    alphas = {layer.rpartition(".")[2]: parts["alpha"].item() for layer, parts in found["unet"].items()}
    assert alphas == {"to_q": 2, "conv1": 5, "2": 5}
    without = predict(base)[0]
    loaded.hook()
    try:
        prediction = predict(base)[0]
    finally:
        loaded.unhook()
    assert (prediction - without).abs().max() > 0.01
    assert (prediction - expected).abs().max() < 1e-4  # float32 through the whole UNet


def cayley(upper: torch.Tensor, size: int) -> torch.Tensor:
    """R = (I + Q)(I - Q)⁻¹ of one block, from the numbers above the diagonal, row by row; float64."""
    q, numbers = torch.zeros(size, size, dtype=torch.float64), iter(upper.tolist())
    for row in range(size):
        for column in range(row + 1, size):
            value = next(numbers)
            q[row, column], q[column, row] = value, -value
    eye = torch.eye(size, dtype=torch.float64)
    return (eye + q) @ torch.linalg.inv(eye - q)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("name", ["lora_unet_{flat}", "lora_unet.{path}", "unet.{native}"])
def test_rotations_that_onetrainer_wrote(base, tmp_path, name, scaled):
    """Linear W·Rᵀ, convolutions W·R on input channels; legacy, dotted and original names; with its marker or not."""
    size, generator = 8, torch.Generator().manual_seed(6)
    query = "transformer_blocks.0.attn1.to_q"
    layers = {
        f"down_blocks.0.attentions.0.{query}": f"input_blocks.1.1.{query}",
        "down_blocks.1.resnets.0.conv1": "input_blocks.3.0.in_layers.2",
    }
    tensors, expected = {}, {}
    for path, native in layers.items():
        weight = base.unet.get_submodule(path).weight.detach().double()
        stored = torch.randn(weight.shape[1] // size, 28, generator=generator)
        key = name.format(path=path, flat=path.replace(".", "_"), native=native)
        tensors[f"{key}.oft_R.weight"] = stored
        if scaled:  # saved with a dtype its boolean becomes a number
            tensors[f"{key}.oft_R.scaled_oft"] = torch.tensor(1.0, dtype=torch.float16)
        rotation = torch.block_diag(*(cayley(row / (2 * 7**0.5 if scaled else 1), size) for row in stored.double()))
        turn = "oi,ji->oj" if weight.dim() == 2 else "oihw,ij->ojhw"
        expected[path] = torch.einsum(turn, weight, rotation) - weight
    write_safetensors(tmp_path / "upstream.safetensors", tensors)
    file = read_adapter(tmp_path / "upstream.safetensors")
    found = AdapterSet.from_parts("unet", base.unet, file.fit(base.naming, base.components)["unet"])
    for path, delta in expected.items():
        # float32 against float64
        assert (found.adapters[path].merged_delta() - delta).norm() < 1e-5 * delta.norm()
