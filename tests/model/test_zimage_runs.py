"""Whole runs on a small Z-Image: every kind of training, resume, formats of weights, and layers that wait elsewhere."""

from functools import partial

from modules.model.ZImageModel import ZImageModel
from modules.modelSaver.AdapterFile import read_adapter
from modules.util.enum.ParameterRole import ParameterRole
from modules.util.ParameterInfo import get_parameter_info
from modules.util.UserError import UserError
from tests.model.family_checks import (
    DRAWN,
    KINDS,
    SAMPLE,
    diffusers_draws_the_same,
    every_layer_is_in_the_file,
    flow_options,
    goes_on_from_a_file,
    layers_that_wait_change_nothing,
    loss_falls,
    prior_images_change_nothing,
    quantized_base_trains,
    same_bytes_after_a_stop,
)

import torch

import pytest
from diffusers import ZImageTransformer2DModel
from safetensors.torch import load_file

KINDS = KINDS | {"full": KINDS["full"] | {"output_model_format": "COMFY_TRANSFORMER"}}


options = partial(flow_options, model_type="Z_IMAGE")


@pytest.mark.parametrize("kind", KINDS)
def test_loss_falls(make_run, zimage_folder, kind):
    run = make_run()
    trainer = loss_falls(run, options(zimage_folder, **KINDS[kind]))
    if kind != "full":
        every_layer_is_in_the_file(run, trainer)
        return
    # the file is the trained transformer for ComfyUI, and for diffusers, which reads that layout
    assert "layers.0.attention.qkv.weight" in load_file(run.output)
    found = ZImageTransformer2DModel.from_single_file(
        str(run.output), config=str(zimage_folder), subfolder="transformer", local_files_only=True
    ).state_dict()
    for name, tensor in trainer.model.transformer.state_dict().items():
        assert torch.equal(found[name], tensor), name


def test_first_and_last_layers_have_their_roles(make_run, zimage_folder):
    trainer = make_run().trainer(**options(zimage_folder, epochs=1, **KINDS["full"]))
    trainer._prepare()
    found = trainer.trained["transformer"].named_parameters().items()
    roles = {name: get_parameter_info(parameter).role for name, parameter in found if parameter.dim() == 2}
    # what fills up sequences is no matrix
    assert {roles.pop(name) for name in ("x_pad_token", "cap_pad_token")} == {ParameterRole.VECTOR}
    assert {name.removesuffix(".weight"): role for name, role in roles.items() if role != ParameterRole.HIDDEN} == {
        **dict.fromkeys(("all_x_embedder.2-1", "cap_embedder.1", "t_embedder.mlp.0"), ParameterRole.INPUT),
        "all_final_layer.2-1.linear": ParameterRole.OUTPUT,
    }


def test_resumed_run_has_the_same_bytes(make_run, zimage_folder):
    settings = options(
        zimage_folder, epochs=2, samples=[SAMPLE], sample_after=3, sample_after_unit="STEP", masked_training=True,
        loss_weight_fn="SIGMA", offset_noise_weight=0.05, dynamic_timestep_shifting=True,
    )  # fmt: skip
    same_bytes_after_a_stop(make_run, settings)


def test_a_run_s_file_loads_in_diffusers(make_run, zimage_folder):
    diffusers_draws_the_same(make_run(), zimage_folder, options(zimage_folder, samples=[SAMPLE], **DRAWN))


@pytest.mark.parametrize("model_format", ["KOHYA_LORA", "COMFY_LORA"])
def test_training_goes_on_from_a_file(make_run, zimage_folder, model_format):
    """Also from fused layers, which have the sum of the ranks that were joined."""
    settings = options(zimage_folder, epochs=1, output_model_format=model_format)
    goes_on_from_a_file(make_run, ZImageModel, settings, "layers.0.attention.to_k")


@pytest.mark.parametrize(("weights", "kind"), [("INT_8", "LoRA"), ("FLOAT_8", "DoRA"), ("NFLOAT_4", "OFT")])
def test_quantized_base(make_run, wide_zimage_folder, weights, kind):
    """It trains, draws and saves; and the base's layers really are in that format."""
    run, settings = make_run(), options(wide_zimage_folder, samples=[SAMPLE], **KINDS[kind])
    # that of the noise level looks at the format of its first layer
    paths = ("layers.1.attention.to_q", "t_embedder.mlp.0", "cap_embedder.1")
    trainer = quantized_base_trains(run, settings, weights, paths, checkpoints=False)
    every_layer_is_in_the_file(run, trainer)


def test_layers_that_wait_elsewhere_change_nothing(make_run, zimage_folder):
    layers_that_wait_change_nothing(make_run, options(zimage_folder))


def test_half_precision(make_run, zimage_folder):
    """Pad tokens in float32 stand among tokens in bfloat16."""
    run = make_run()
    run.train(**options(zimage_folder, train_dtype="BFLOAT_16", epochs=1))
    assert read_adapter(run.output).kind.base == "LoRA"


def test_what_can_t_be_joined_is_told_at_the_start(make_run, zimage_folder):
    run = make_run()
    with pytest.raises(UserError, match=r"attention.to_q, .*as one layer.*COMFY_LORA"):
        run.train(**{**options(zimage_folder, lora_decompose=True), "output_model_format": "KOHYA_LORA"})
    assert not run.of_kind("step")


def test_prior_images_change_nothing(make_run, zimage_folder, mini_concept):
    prior_images_change_nothing(make_run(), options(zimage_folder), mini_concept)
