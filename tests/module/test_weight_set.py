"""The roles of all weights: on the real sizes of every family's components, without their numbers."""

import json
from pathlib import Path

from modules.model.AnimaModel import AnimaModel
from modules.model.BaseModel import BaseModel, model_families
from modules.model.ChromaModel import ChromaModel
from modules.model.ErnieModel import ErnieModel
from modules.model.FluxModel import FluxModel
from modules.model.HiDreamModel import HiDreamModel
from modules.model.IdeogramModel import IdeogramModel
from modules.model.Krea2Model import Krea2Model
from modules.model.ModelSource import empty_module
from modules.model.PixArtModel import PixArtModel
from modules.model.QwenModel import QwenModel
from modules.model.SanaModel import SanaModel
from modules.model.StableDiffusion3Model import StableDiffusion3Model
from modules.model.ZImageModel import ZImageModel
from modules.module.WeightSet import WeightSet, role_of
from modules.util.enum.ParameterRole import ParameterRole
from modules.util.LayerFilter import LayerFilter
from modules.util.UserError import UserError
from scaled_optim.batched_optimizer import BatchedOptimizer
from scaled_optim.description import INPUT_LAYERS, OUTPUT_LAYERS

import torch
from torch import nn

import pytest
from diffusers import (
    ChromaTransformer2DModel,
    CosmosTransformer3DModel,
    ErnieImageTransformer2DModel,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    HiDreamImageTransformer2DModel,
    Ideogram4Transformer2DModel,
    Krea2Transformer2DModel,
    PixArtTransformer2DModel,
    QwenImageTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    ZImageTransformer2DModel,
)
from diffusers.models.transformers.transformer_hidream_image import MoEGate
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, Qwen3Config, Qwen3ForCausalLM

RESOURCES = Path(__file__).resolve().parents[2] / "resources"
EMBEDDINGS = {"embeddings.token_embedding", "embeddings.position_embedding"}


def resource(kind: type[nn.Module], path: str) -> nn.Module:
    config = json.loads((RESOURCES / path / "config.json").read_text(encoding="utf-8"))
    return empty_module(kind, CLIPTextConfig.from_dict(config) if "CLIP" in kind.__name__ else config)


def small_qwen(tied: bool) -> nn.Module:
    config = Qwen3Config(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=50, head_dim=8, tie_word_embeddings=tied,
    )  # fmt: skip
    return Qwen3ForCausalLM(config)


UNET = {"conv_in", "time_embedding.linear_1"}
FLUX = {"x_embedder", "context_embedder", "time_guidance_embed.timestep_embedder.linear_1"}
# component, its first layers, its last ones
COMPONENTS = {
    "sd1 unet": (lambda: resource(UNet2DConditionModel, "stable_diffusion/sd1/unet"), UNET, {"conv_out"}),
    "sd2 unet": (lambda: resource(UNet2DConditionModel, "stable_diffusion/sd2/unet"), UNET, {"conv_out"}),
    "sdxl unet": (
        lambda: resource(UNet2DConditionModel, "stable_diffusion_xl/unet"), UNET | {"add_embedding.linear_1"},
        {"conv_out"},
    ),
    "sd1 text encoder": (lambda: resource(CLIPTextModel, "stable_diffusion/sd1/text_encoder"), EMBEDDINGS, set()),
    "sdxl text encoder 2": (
        lambda: resource(CLIPTextModelWithProjection, "stable_diffusion_xl/text_encoder_2"),
        {f"text_model.{name}" for name in EMBEDDINGS}, set(),
    ),
    "sd 3.5 medium": (
        lambda: resource(SD3Transformer2DModel, "stable_diffusion_3/medium_35/transformer"),
        {"pos_embed.proj", "context_embedder"}
        | {f"time_text_embed.{name}_embedder.linear_1" for name in ("timestep", "text")},
        {"proj_out"},
    ),
    "flux.2 klein": (
        lambda: resource(Flux2Transformer2DModel, "flux_2/klein_4b/transformer"),
        FLUX,
        {"proj_out"},
    ),
    "flux.2 dev": (
        lambda: resource(Flux2Transformer2DModel, "flux_2/dev/transformer"),
        FLUX | {"time_guidance_embed.guidance_embedder.linear_1"},
        {"proj_out"},
    ),
    "flux.1 dev": (
        lambda: resource(FluxTransformer2DModel, "flux_1/dev/transformer"),
        {"x_embedder", "context_embedder"}
        | {f"time_text_embed.{name}_embedder.linear_1" for name in ("timestep", "guidance", "text")},
        {"proj_out"},
    ),
    "chroma": (
        lambda: resource(ChromaTransformer2DModel, "chroma/transformer"),
        {"x_embedder", "context_embedder", "distilled_guidance_layer.in_proj"},
        {"proj_out"},
    ),
    "z-image": (
        lambda: resource(ZImageTransformer2DModel, "z_image/transformer"),
        {"all_x_embedder.2-1", "cap_embedder.1", "t_embedder.mlp.0"},
        {"all_final_layer.2-1.linear"},
    ),
    "qwen-image": (
        lambda: resource(QwenImageTransformer2DModel, "qwen_image/transformer"),
        {"img_in", "txt_in", "time_text_embed.timestep_embedder.linear_1"},
        {"proj_out"},
    ),
    "ernie-image": (
        lambda: resource(ErnieImageTransformer2DModel, "ernie_image/transformer"),
        {"x_embedder.proj", "text_proj", "time_embedding.linear_1"},
        {"final_linear"},
    ),
    "krea 2": (
        lambda: resource(Krea2Transformer2DModel, "krea_2/transformer"),
        {"img_in", "txt_in.linear_1", "time_embed.linear_1"},
        {"final_layer.linear"},
    ),
    "anima": (
        lambda: resource(CosmosTransformer3DModel, "anima/transformer"),
        {"patch_embed.proj", "time_embed.t_embedder.linear_1"},
        {"proj_out"},
    ),
    "ideogram 4": (
        lambda: resource(Ideogram4Transformer2DModel, "ideogram_4/transformer"),
        {"input_proj", "llm_cond_proj", "t_embedding.mlp_in", "embed_image_indicator"},
        {"final_layer.linear"},
    ),
    "hidream": (
        lambda: resource(HiDreamImageTransformer2DModel, "hidream/transformer"),
        {"x_embedder.proj", "t_embedder.timestep_embedder.linear_1", "p_embedder.pooled_embedder.linear_1"}
        | {f"caption_projection.{number}.linear" for number in range(49)},
        {"final_layer.linear"},
    ),
    "sana": (
        lambda: resource(SanaTransformer2DModel, "sana/transformer"),
        {"patch_embed.proj", "caption_projection.linear_1", "time_embed.emb.timestep_embedder.linear_1"},
        {"proj_out"},
    ),
    "pixart alpha": (
        lambda: resource(PixArtTransformer2DModel, "pixart/alpha/transformer"),
        {
            "pos_embed.proj", "caption_projection.linear_1",
            *(f"adaln_single.emb.{name}_embedder.linear_1" for name in ("timestep", "resolution", "aspect_ratio")),
        },
        {"proj_out"},
    ),
    "language model": (lambda: small_qwen(tied=False), {"model.embed_tokens"}, {"lm_head"}),
    "language model, tied": (lambda: small_qwen(tied=True), {"model.embed_tokens"}, set()),
}  # fmt: skip
# the component of a family that says itself which layers are first and last
OWN = {
    "sd 3.5 medium": StableDiffusion3Model,
    "flux.1 dev": FluxModel,
    "chroma": ChromaModel,
    "z-image": ZImageModel,
    "qwen-image": QwenModel,
    "ernie-image": ErnieModel,
    "krea 2": Krea2Model,
    "anima": AnimaModel,
    "ideogram 4": IdeogramModel,
    "hidream": HiDreamModel,
    "pixart alpha": PixArtModel,
    "sana": SanaModel,
}


# with the gate that chooses experts
MATRICES = (nn.Linear, nn.Conv2d, MoEGate)


@pytest.fixture(scope="module", params=COMPONENTS)
def component(request):
    make, first, last = COMPONENTS[request.param]
    module = make()
    family = OWN.get(request.param, BaseModel)
    return module, WeightSet("component", module, None, family.input_layers, family.output_layers), first, last


def test_every_weight_has_a_role_and_exactly_these_layers_are_first_and_last(component):
    module, weights, first, last = component
    found = weights.named_parameters()
    assert found.keys() == {name for name, _ in module.named_parameters()}
    layers: dict[ParameterRole, set[str]] = {role: set() for role in ParameterRole}
    for name, parameter in found.items():
        info = parameter.parameter_info
        assert info.name == f"component.{name}" and info.component == "component" and name.startswith(info.layer)
        layers[info.role].add(info.layer)
    assert layers[ParameterRole.INPUT] == first and layers[ParameterRole.OUTPUT] == last
    inner = {
        name for name, layer in module.named_modules() if isinstance(layer, MATRICES)
    } - first - last  # fmt: skip
    # a tied last layer is the first one's tensor
    assert layers[ParameterRole.HIDDEN] == inner - {"lm_head"}
    assert {role for role, names in layers.items() if names} <= {
        ParameterRole.INPUT, ParameterRole.HIDDEN, ParameterRole.OUTPUT, ParameterRole.VECTOR
    }  # fmt: skip
    for parameter in found.values():
        info = parameter.parameter_info
        # rows that stand for missing tokens belong to no layer
        matrix = isinstance(module.get_submodule(info.layer), (*MATRICES, nn.Embedding))
        assert (parameter.dim() < 2 or not matrix) == (info.role == ParameterRole.VECTOR)


def test_the_families_use_these_patterns():
    """A family that needs others says so itself, and then belongs into the table above."""
    # a family's relatives are as it is
    for family in {own for own in model_families().values() if not issubclass(own, tuple(OWN.values()))}:
        assert family.input_layers == BaseModel.input_layers and family.output_layers == BaseModel.output_layers


def test_the_engine_knows_the_same_layers_by_itself():
    assert set(BaseModel.input_layers) == INPUT_LAYERS and set(BaseModel.output_layers) == OUTPUT_LAYERS


def test_tied_weights_count_once():
    tied, apart = (WeightSet("text_encoder", small_qwen(tied)) for tied in (True, False))
    assert len(apart.parameters()) == len(tied.parameters()) + 1
    assert len({id(parameter) for parameter in tied.parameters()}) == len(tied.parameters())
    state = tied.state_dict()
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)


def test_a_table_that_is_added_is_no_matrix():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale_shift_table = nn.Parameter(torch.zeros(6, 8))
            self.linear = nn.Linear(8, 1)

    found = WeightSet("component", Block()).named_parameters()
    roles = {name: parameter.parameter_info.role for name, parameter in found.items()}
    assert roles == {"scale_shift_table": "VECTOR", "linear.weight": "HIDDEN", "linear.bias": "VECTOR"}
    assert role_of(nn.Conv2d(3, 4, 3), nn.Parameter(torch.zeros(4, 3, 3, 3)), "x", ["x"]) == "INPUT"


@pytest.mark.parametrize(
    ("layer", "shape", "per_row"),
    [(nn.Embedding(50, 8), (50, 8), True), (nn.Linear(8, 50), (50, 8), False), (nn.Conv2d(2, 50, 2), (50, 8), False)],
)
def test_a_scaled_step_treats_embeddings_by_row_and_other_first_layers_as_matrices(layer, shape, per_row):
    root = nn.ModuleDict({"x_embedder": layer})
    weights = WeightSet("component", root, None, ["x_embedder"])
    parameter = next(p for p in weights.parameters() if p.dim() > 1)
    assert parameter.parameter_info.role == ParameterRole.INPUT
    before = parameter.detach().clone()
    parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    BatchedOptimizer(weights.parameters(), "ADAMW_ADV", 0.1, scaled_optm=True).step()
    step = (parameter.detach() - before).reshape(shape) / 0.1
    if per_row:
        # RMS 1 of each row
        assert torch.allclose(step.square().mean(1), torch.ones(50), rtol=1e-3)
    else:
        # the RMS -> RMS operator norm is 1; the estimate of the largest singular value is within 5 %
        assert torch.linalg.matrix_norm(step, 2) * (8 / 50) ** 0.5 == pytest.approx(1, rel=0.05)


def test_a_first_matrix_is_no_hidden_layer_to_muon():
    root = nn.ModuleDict({"x_embedder": nn.Linear(8, 16, bias=False), "inner": nn.Linear(8, 16, bias=False)})
    weights = WeightSet("component", root, None, ["x_embedder"])
    for parameter in weights.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer = BatchedOptimizer(weights.parameters(), "MUON_ADV", 0.1)
    optimizer.step()
    found = optimizer.state_dict()
    slots = {
        name: set(found["state"][index]["slots"])
        for group in found["param_groups"]
        for name, index in zip(group["param_names"], group["params"], strict=True)
    }
    # Adam has a second moment, Muon has not
    assert len(slots["component.x_embedder.weight"]) == 2 and len(slots["component.inner.weight"]) == 1


def test_building_changes_nothing_and_training_can_be_stopped():
    root = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).requires_grad_(False)
    weights = WeightSet("component", root, LayerFilter(("0",)))
    assert not any(p.requires_grad for p in root.parameters())
    weights.requires_grad_()
    assert [p.requires_grad for p in root.parameters()] == [True, True, False, False]
    assert weights.eval().train().requires_grad_(False) is weights
    assert not any(p.requires_grad for p in root.parameters())


def test_state_is_taken_over_to_the_bit_or_not_at_all():
    one, other = (WeightSet("component", nn.Linear(3, 2).bfloat16()) for _ in range(2))
    state = {name: tensor.clone() for name, tensor in one.state_dict().items()}
    other.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    for changes, words in (
        (
            {"component.weight": torch.zeros(2, 3)},
            r"component.weight: the backup holds \[2, 3\] torch.float32, expected .*bf",
        ),
        ({"component.weight": torch.zeros(3, 3).bfloat16()}, r"holds \[3, 3\]"),
        ({"component.other": torch.zeros(1)}, "component.other is in the backup, but is not trained here"),
    ):
        with pytest.raises(UserError, match=words):
            other.load_state_dict({**state, "component.bias": torch.ones(2).bfloat16(), **changes})
    with pytest.raises(UserError, match="component.bias is missing in the backup"):
        other.load_state_dict({"component.weight": state["component.weight"]})
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_formats_that_cannot_be_trained_and_misspelt_filters_are_refused():
    with pytest.raises(UserError, match=r"component.weight_dtype: component.weight is held in torch.float16.*FLOAT_32"):
        WeightSet("component", nn.Linear(2, 2).half())
    with pytest.raises(UserError, match="layer_filter: 'atention' is in no layer name of component"):
        WeightSet("component", nn.Sequential(nn.Linear(2, 2)), LayerFilter(("atention",)))
