"""Files of other trainers: their spellings, and what is in them that no adapter here has."""

from modules.model.flux2_keys import flux2_adapter_naming
from modules.model.unet_keys import unet_adapter_naming
from modules.modelSaver.adapter_kinds import AdapterKind
from modules.modelSaver.AdapterFile import read_adapter
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.UserError import UserError

import torch
from torch import Tensor, nn

import pytest
from diffusers import Flux2Transformer2DModel, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

DOWN, UP = torch.full((2, 4), 0.5), torch.full((6, 2), 0.25)
LORA = {"lora_A.weight": DOWN, "lora_B.weight": UP}


def written(path, parts: dict[str, Tensor], layer: str = "unet.a"):
    save_file({f"{layer}.{part}": tensor.clone() for part, tensor in parts.items()}, path)
    return path


def refusal(path) -> str:
    with pytest.raises(UserError) as error:
        read_adapter(path)
    assert "\n" not in str(error.value) and str(error.value).startswith(f"{path}: ")
    return str(error.value)


# --- magnitude of a DoRA on outputs


@pytest.mark.parametrize(
    "part",
    ["magnitude", "lora_magnitude_vector", "lora_magnitude_vector.weight", "lora_magnitude_vector.my_style",
     "lora_magnitude_vector.my_style.weight", "lora_magnitude_vector.default.weight"],
)  # fmt: skip
@pytest.mark.parametrize("shape", [(6,), (6, 1), (1, 6)])
def test_magnitudes_belong_to_outputs_whatever_they_are_called(tmp_path, part, shape):
    values = torch.arange(1.0, 7)
    file = read_adapter(written(tmp_path / "x", LORA | {part: values.view(shape)}))
    assert file.kind == AdapterKind("LoRA", "output")
    assert torch.equal(file.layers["unet.a"]["dora_scale"], values[:, None])


def test_magnitudes_of_square_layers_are_never_those_of_inputs(tmp_path):
    square = {"lora_A.weight": torch.ones(2, 4), "lora_B.weight": torch.ones(4, 2)}
    for part, side in (("magnitude", "output"), ("dora_scale", "input")):
        file = read_adapter(written(tmp_path / "x", square | {part: torch.ones(1, 4)}))
        assert file.kind == AdapterKind("LoRA", side)


@pytest.mark.parametrize("numbers", [4, 5, 12])
def test_magnitudes_of_another_number_are_refused(tmp_path, numbers):
    path = written(tmp_path / "x", LORA | {"magnitude": torch.ones(numbers)})
    assert f"unet.a.magnitude has {numbers} numbers, expected one for each of 6 outputs" in refusal(path)


def test_two_spellings_of_lengths_are_refused(tmp_path):
    path = written(tmp_path / "x", LORA | {"magnitude": torch.ones(6), "dora_scale": torch.ones(6, 1)})
    assert "unet.a.magnitude stands beside dora_scale" in refusal(path)
    path = written(tmp_path / "x", LORA | {"magnitude": torch.ones(6), "lora_magnitude_vector": torch.ones(6)})
    assert "are the same part of a layer" in refusal(path)


# --- peft's names of adapters


@pytest.mark.parametrize("name", ["default", "default_0", "my-style", "weight_1", "A"])
def test_an_adapter_s_own_name_is_left_out(tmp_path, name):
    file = read_adapter(written(tmp_path / "x", {f"lora_A.{name}.weight": DOWN, f"lora_B.{name}.weight": UP}))
    assert file.layers.keys() == {"unet.a"} and file.layers["unet.a"].keys() == {"lora_down.weight", "lora_up.weight"}
    rotation = {f"oft_R.{name}.weight": torch.zeros(2, 1)}
    assert read_adapter(written(tmp_path / "x", rotation)).kind == AdapterKind("OFT")
    factors = {f"lokr_w{n}.{name}": torch.ones(2, 2) for n in (1, 2)}
    assert read_adapter(written(tmp_path / "x", factors)).kind == AdapterKind("LoKr")


def test_two_adapters_in_a_file_are_refused_by_their_names(tmp_path):
    both = {
        f"lora_{side}.{name}.weight": tensor for name in ("one", "two") for side, tensor in (("A", DOWN), ("B", UP))
    }
    message = refusal(written(tmp_path / "x", both))
    assert "holds 2 adapters of peft's, one, two" in message and "selected_adapters=['one']" in message


# --- what can't be used


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"lora_B.bias": torch.ones(6)}, "biases of LoRA matrices"),
        ({"lora_B.mine.bias": torch.ones(6), "lora_A.mine.bias": torch.ones(2)}, "biases of LoRA matrices"),
        ({"lora_up.bias": torch.ones(6)}, "biases of LoRA matrices"),
        ({"diff_b": torch.ones(6)}, "changes of biases (.diff_b)"),
        ({"w_norm": torch.ones(6), "b_norm": torch.ones(6)}, "changes of norm layers (LyCORIS's train_norm)"),
        ({"norm1.diff": torch.ones(6)}, "changes of norm layers or other vectors (.diff of one axis)"),
        ({"set_weight": torch.ones(6, 4)}, "weights that replace the base's own"),
        ({"bias": torch.ones(6)}, "tensors of the base that were trained whole"),
        ({"modules_to_save.weight": torch.ones(6, 4)}, "tensors of the base that were trained whole"),
        ({"lora_embedding_A": torch.ones(2, 9)}, "LoRA matrices of embeddings"),
    ],
)
def test_what_cannot_be_used_is_named_and_counted(tmp_path, more, what):
    path = written(tmp_path / "x", LORA | more)
    message = refusal(path)
    assert f"{what}" in message and f": {len(more)}, for example unet.a." in message
    assert "Merge it with the program that made it" in message


def test_several_kinds_are_all_named(tmp_path):
    more = {"lora_B.bias": torch.ones(6), "w_norm": torch.ones(6), "b_norm": torch.ones(6)}
    message = refusal(written(tmp_path / "x", LORA | more))
    assert "lora_bias): 1, " in message and "train_norm): 2, " in message


def test_a_change_of_weight_and_bias_together_is_used(tmp_path):
    parts = {"diff": torch.ones(6, 4), "diff_b": torch.ones(6)}
    assert read_adapter(written(tmp_path / "x", parts)).kind == AdapterKind("diff")
    assert "diff_b has the shape [], expected [6]" in refusal(
        written(tmp_path / "x", parts | {"diff_b": torch.ones(())})
    )


def test_a_whole_model_is_no_adapter(tmp_path):
    save_file({"model.diffusion_model.out.2.weight": torch.ones(2), "betas": torch.ones(2)}, tmp_path / "x")
    assert "betas is no part of an adapter" in refusal(tmp_path / "x")
    save_file({"out.2.weight": torch.ones(2), "out.2.bias": torch.ones(2)}, tmp_path / "x")
    assert "out.2.bias is no part of an adapter" in refusal(tmp_path / "x")


def test_notes_of_sliders_belong_to_no_layer(tmp_path):
    save_file({"unet.a.lora_A.weight": DOWN, "unet.a.lora_B.weight": UP, "_aux.0f": torch.ones(3)}, tmp_path / "x")
    assert list(read_adapter(tmp_path / "x").extra) == ["_aux.0f"]


# --- names of layers


def meta(make) -> nn.Module:
    with torch.device("meta"):
        return make()


@pytest.fixture(scope="module")
def sdxl():
    unet = meta(lambda: UNet2DConditionModel(
        block_out_channels=(32, 64, 64), layers_per_block=1, norm_num_groups=8, cross_attention_dim=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=4,
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=64,
    ))  # fmt: skip
    config = CLIPTextConfig(hidden_size=64, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    encoders = {"text_encoder": meta(lambda: CLIPTextModel(config)),
                "text_encoder_2": meta(lambda: CLIPTextModelWithProjection(config))}  # fmt: skip
    return unet_adapter_naming(unet, encoders), {"unet": unet, **encoders}


@pytest.fixture(scope="module")
def flux2():
    transformer = meta(lambda: Flux2Transformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=48, axes_dims_rope=(4, 4, 4, 4), timestep_guidance_channels=16,
    ))  # fmt: skip
    return flux2_adapter_naming(transformer), {"transformer": transformer}


ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
NATIVE = "input_blocks.3.1.transformer_blocks.0.attn1"
# name of a LoRA's down matrix in a file of an SDXL trainer -> the layer
SDXL = {
    # kohya's and OneTrainer's
    f"lora_unet_{NATIVE}_to_q".replace(".", "_") + ".lora_down.weight": "to_q",
    "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight": "to_q",
    f"unet.{NATIVE}.to_q.lora_down.weight": "to_q",
    # diffusers' scripts, SimpleTuner, ai-toolkit
    f"unet.{ATTENTION}.to_q.lora_A.weight": "to_q",
    f"unet.{ATTENTION}.to_q.lora.down.weight": "to_q",
    f"unet.{ATTENTION}.to_q.lora_linear_layer.down.weight": "to_q",
    f"unet.{ATTENTION}.processor.to_q_lora.down.weight": "to_q",
    f"{ATTENTION}.processor.to_q_lora.down.weight": "to_q",
    f"{ATTENTION}.to_out.0.lora_A.weight": "to_out.0",
    f"unet.{ATTENTION}.processor.to_out_lora.down.weight": "to_out.0",
    # ComfyUI's, LyCORIS's and peft's
    f"diffusion_model.{NATIVE}.to_q.lora_A.weight": "to_q",
    f"diffusion_model.{ATTENTION}.to_q.lora_A": "to_q",
    f"lycoris_{ATTENTION}_to_q".replace(".", "_") + ".lora_down.weight": "to_q",
    f"lycoris_{NATIVE}_to_q".replace(".", "_") + ".lora_down.weight": "to_q",
    f"base_model.model.{ATTENTION}.to_q.lora_A.any.weight": "to_q",
    f"base_model.model.{NATIVE}.to_q.lora_A.weight": "to_q",
}


def up_of(key: str) -> str:
    for down, up in (("lora_A", "lora_B"), ("lora_down", "lora_up"), (".down.", ".up.")):
        if down in key:
            return key.replace(down, up)
    raise AssertionError(key)


def pair(key: str, layer: nn.Module, rank: int = 2) -> dict[str, Tensor]:
    return {key: torch.ones(rank, layer.in_features), up_of(key): torch.ones(layer.out_features, rank)}


@pytest.mark.parametrize("key", SDXL)
def test_sdxl_files_of_every_trainer(tmp_path, sdxl, key):
    naming, components = sdxl
    name = f"{ATTENTION}.{SDXL[key]}"
    save_file(pair(key, components["unet"].get_submodule(name)), tmp_path / "x")
    found = read_adapter(tmp_path / "x").fit(naming, components)["unet"]
    # without alpha the scale is 1: none in the parts, or the rank
    assert found.keys() == {name} and found[name].get("alpha", torch.tensor(2.0)) == 2


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("name", [
    "lora_te{n}_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",
    "text_encoder{_n}.text_model.encoder.layers.0.mlp.fc1.lora_A.weight",
    "text_encoder{_n}.text_model.encoder.layers.0.mlp.fc1.lora_linear_layer.down.weight",
    "text_encoders.{clip}.transformer.text_model.encoder.layers.0.mlp.fc1.lora_A.weight",
])  # fmt: skip
def test_text_encoders_of_sdxl(tmp_path, sdxl, name, number):
    naming, components = sdxl
    key = name.format(n=number, _n="_2" if number == 2 else "", clip="clip_g" if number == 2 else "clip_l")
    component = "text_encoder_2" if number == 2 else "text_encoder"
    (path,) = [p for p, _ in components[component].named_modules() if p.endswith("layers.0.mlp.fc1")]
    save_file(pair(key, components[component].get_submodule(path)), tmp_path / "x")
    assert {c: set(layers) for c, layers in read_adapter(tmp_path / "x").fit(naming, components).items()} == {
        component: {path}
    }


THIRDS = [f"transformer_blocks.0.attn.{name}" for name in ("to_q", "to_k", "to_v")]
SINGLE = "single_transformer_blocks.0.attn.to_out"
# start of a layer's name in a file of a Flux.2 trainer -> the layers it stands for
FLUX2 = {
    f"transformer.{SINGLE}": [SINGLE],
    f"diffusion_model.{SINGLE}": [SINGLE],
    f"base_model.model.{SINGLE}": [SINGLE],
    f"lycoris_{SINGLE.replace('.', '_')}": [SINGLE],
    "diffusion_model.single_blocks.0.linear2": [SINGLE],
    "transformer.single_blocks.0.linear2": [SINGLE],
    "base_model.model.single_blocks.0.linear2": [SINGLE],
    "lora_unet_single_blocks_0_linear2": [SINGLE],
    "lycoris_single_blocks_0_linear2": [SINGLE],
    "diffusion_model.double_blocks.0.img_attn.qkv": THIRDS,
    "transformer.double_blocks.0.img_attn.qkv": THIRDS,
    "base_model.model.double_blocks.0.img_attn.qkv": THIRDS,
    "lora_unet_double_blocks_0_img_attn_qkv": THIRDS,
    "lycoris_double_blocks_0_img_attn_qkv": THIRDS,
    "lora_transformer_double_blocks_0_img_attn_qkv": THIRDS,
}


@pytest.mark.parametrize("ends", [("lora_A.weight", "lora_B.weight"), ("lora_down.weight", "lora_up.weight"),
                                  ("lora_A.any.weight", "lora_B.any.weight")])  # fmt: skip
@pytest.mark.parametrize("name", FLUX2)
def test_flux2_files_of_every_trainer(tmp_path, flux2, name, ends):
    naming, components = flux2
    layers = [components["transformer"].get_submodule(path) for path in FLUX2[name]]
    rows = sum(layer.out_features for layer in layers)
    down, up = torch.ones(2, layers[0].in_features), torch.arange(1.0, 1 + 2 * rows).view(rows, 2)
    save_file({f"{name}.{ends[0]}": down, f"{name}.{ends[1]}": up}, tmp_path / "x")
    found = read_adapter(tmp_path / "x").fit(naming, components)["transformer"]
    assert list(found) == FLUX2[name]
    assert torch.equal(torch.cat([parts["lora_up.weight"] for parts in found.values()]), up)


def test_the_format_of_these_files(tmp_path):
    for name, expected in {
        "transformer.single_blocks.0.linear2": ModelFormat.DIFFUSERS_LORA,
        "lycoris_single_blocks_0_linear2": ModelFormat.KOHYA_LORA,
        "diffusion_model.single_blocks.0.linear2": ModelFormat.COMFY_LORA,
    }.items():
        assert read_adapter(written(tmp_path / "x", LORA, name)).format == expected


@pytest.mark.parametrize("start", ["text_encoders.qwen3.model.layers.0.mlp", "lora_te1_layers_0_mlp", "text_encoder.a"])
def test_layers_of_a_text_encoder_without_adapters_are_called_so(tmp_path, flux2, start):
    naming, components = flux2
    known = pair(f"diffusion_model.{SINGLE}.lora_A.weight", components["transformer"].get_submodule(SINGLE))
    foreign = {f"{start}.{part}": tensor.clone() for part, tensor in LORA.items()}
    for tensors, words in (
        (known | foreign, "1 of 2 layers are not in this model, .* carries no adapters here"),
        (foreign, "1 of 1 layers are not in this model, .* another kind of base model"),
    ):
        save_file(tensors, tmp_path / "x")
        with pytest.raises(UserError, match=words):
            read_adapter(tmp_path / "x").fit(naming, components)


@pytest.mark.parametrize("dora", [False, True])
def test_the_whole_state_of_a_peft_model_with_an_adapter_of_its_own_name(tmp_path, dora):
    """What people save without peft's help: every key holds the name."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 5))
    plain = [layer.weight.detach().clone() for layer in model]
    settings = LoraConfig(r=2, lora_alpha=2, use_dora=dora, target_modules=["0", "1"], init_lora_weights=False)
    theirs = get_peft_model(model, settings, adapter_name="my_style")
    state = {key: tensor.clone() for key, tensor in theirs.state_dict().items() if "lora_" in key}
    if dora:
        for key in [key for key in state if "magnitude" in key]:
            theirs.get_parameter(key).data.mul_(1.5)
            state[key] *= 1.5
    assert all(".my_style" in key for key in state)
    save_file(state, tmp_path / "x")
    file = read_adapter(tmp_path / "x")
    assert file.kind == AdapterKind("LoRA", "output" if dora else "") and len(file.layers) == 2
    theirs.merge_adapter()
    for index, weight in enumerate(plain):
        parts = file.layers[f"base_model.model.{index}"]
        changed = weight + parts["lora_up.weight"] @ parts["lora_down.weight"]
        if dora:
            changed *= parts["dora_scale"] / changed.norm(dim=1, keepdim=True)
        torch.testing.assert_close(changed, theirs.base_model.model[index].get_base_layer().weight.detach())
