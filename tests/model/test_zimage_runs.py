"""Whole runs on a small Z-Image: every kind of training, resume, formats of weights, and layers that wait elsewhere."""

from pathlib import Path

from modules.model.QuantizedLinear import QuantizedLinear
from modules.model.ZImageModel import ZImageModel
from modules.modelSaver.AdapterFile import read_adapter
from modules.util.enum.ParameterRole import ParameterRole
from modules.util.ParameterInfo import get_parameter_info
from modules.util.UserError import UserError
from tests.model.family_checks import DRAWN, diffusers_draws_the_same, goes_on_from_a_file, same_bytes_after_a_stop

import torch

import pytest
from diffusers import ZImageTransformer2DModel
from safetensors.torch import load_file

KINDS = {
    "LoRA": {"peft_type": "LORA"},
    "DoRA": {"peft_type": "LORA", "lora_decompose": True},
    "OFT": {"peft_type": "OFT_2", "oft_block_size": 8, "oft_scaled": True},
    "full": {"training_method": "FINE_TUNE", "output_model_format": "COMFY_TRANSFORMER", "learning_rate": 0.01},
}
SAMPLE = {"prompt": "a red shape", "width": 32, "height": 32, "diffusion_steps": 2, "cfg_scale": 3.0, "seed": 3}


def options(folder: Path, **changes) -> dict:
    return {
        "base_model_name": str(folder), "model_type": "Z_IMAGE", "output_model_format": "COMFY_LORA",
        "transformer": {"gradient_checkpointing": False}, "unet": {}, "text_encoder": {"train": False},
        "timestep_distribution": "LOGIT_NORMAL", "optimizer": {"optimizer": "ADAMW_ADV", "scaled_optm": True},
        "learning_rate": 0.03, **changes,
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_loss_falls(make_run, zimage_folder, kind):
    run = make_run()
    trainer = run.trainer(**options(zimage_folder, epochs=8, **KINDS[kind]))
    trainer.run()
    losses = torch.tensor(list(trainer.progress.losses))
    # means of 16 images each: their noise differs by a few per cent, the loss by more
    assert len(losses) == 32 and losses[-8:].mean() < 0.8 * losses[:8].mean()
    if kind != "full":
        file = read_adapter(run.output)
        assert len(file.layers) == len(trainer.model.adapter_naming().write["COMFY_LORA"])
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
    run = make_run()
    trainer = run.trainer(**options(
        wide_zimage_folder, epochs=1, train_dtype="BFLOAT_16", samples=[SAMPLE], sample_after=1,
        sample_after_unit="EPOCH", transformer={"weight_dtype": weights, "gradient_checkpointing": False},
        text_encoder={"train": False, "weight_dtype": weights}, **KINDS[kind],
    ))  # fmt: skip
    trainer.run()
    # that of the noise level looks at the format of its first layer
    for path in ("layers.1.attention.to_q", "t_embedder.mlp.0", "cap_embedder.1"):
        layer = trainer.model.transformer.get_submodule(path)
        assert isinstance(layer, QuantizedLinear) and layer.data_type == weights
    assert len(read_adapter(run.output).layers) == len(trainer.model.adapter_naming().write["COMFY_LORA"])
    assert len(list(run.workspace.rglob("0 - */*.jpg"))) == 2


def test_layers_that_wait_elsewhere_change_nothing(make_run, zimage_folder):
    digests = []
    for fraction in (0.0, 0.7):
        run = make_run(f"{fraction}")
        transformer = {"gradient_checkpointing": True, "offload_fraction": fraction}
        # both are the CPU's memory, but to layers that wait they are two
        run.train(**options(zimage_folder, epochs=1, transformer=transformer, temp_device="cpu:0"))
        digests.append([tensor for _, tensor in sorted(load_file(run.output).items())])
    assert all(map(torch.equal, *digests))


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
    run = make_run()
    listed = [{"path": str(mini_concept), "type": "PRIOR_PREDICTION"}]
    rule = {"optimizer": {"optimizer": "ADAMW", "weight_decay": 0.0}}
    run.train(**options(zimage_folder, epochs=1, concepts=listed) | rule)
    assert [(step["loss"], step["gradient_norm"]) for step in run.of_kind("step")] == [(0, 0)] * 4
