"""Whole runs on a small Flux.1: kinds of training, resume, quantized bases, and what is refused at the start."""

from pathlib import Path

from modules.model.FluxModel import FluxModel
from modules.model.QuantizedLinear import QuantizedLinear
from modules.modelSaver.AdapterFile import read_adapter
from modules.trainer.checks import run_problems
from modules.util.config.load import train_config_from_dict
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ParameterRole import ParameterRole
from modules.util.ParameterInfo import get_parameter_info
from modules.util.UserError import UserError
from tests.model.family_checks import DRAWN, diffusers_draws_the_same, same_bytes_after_a_stop

import torch

import pytest
from safetensors.torch import load_file

KINDS = {
    "LoRA": {"peft_type": "LORA"},
    "DoRA": {"peft_type": "LORA", "lora_decompose": True},
    "OFT": {"peft_type": "OFT_2", "oft_side": "OUTPUT", "oft_block_size": 8, "oft_scaled": True},
}
LINEAR1 = "single_blocks.1.linear1.weight"
SAMPLE = {"prompt": "a red shape", "width": 32, "height": 32, "diffusion_steps": 2, "cfg_scale": 2.0, "seed": 3}


def options(folder: Path, **changes) -> dict:
    return {
        "base_model_name": str(folder), "model_type": "FLUX_DEV_1", "text_encoder_2_sequence_length": 24,
        "output_model_format": "COMFY_LORA", "transformer": {"gradient_checkpointing": False}, "unet": {},
        "text_encoder": {"train": False}, "text_encoder_2": {"train": False}, "timestep_distribution": "LOGIT_NORMAL",
        "dynamic_timestep_shifting": True, "optimizer": {"optimizer": "ADAMW_ADV", "scaled_optm": True},
        "learning_rate": 0.03, **changes,
    }  # fmt: skip


def falls(trainer) -> bool:
    losses = torch.tensor(list(trainer.progress.losses))
    # means of 16 images each: their noise differs by a few per cent, the loss by more
    assert len(losses) == 32
    return bool(losses[-8:].mean() < 0.8 * losses[:8].mean())


@pytest.mark.parametrize(("kind", "variant"), [("LoRA", "dev"), ("DoRA", "dev"), ("OFT", "schnell")])
def test_loss_falls(make_run, flux1_folders, kind, variant):
    run = make_run()
    trainer = run.trainer(**options(flux1_folders[variant], epochs=8, **KINDS[kind]))
    trainer.run()
    assert falls(trainer)
    # every layer of the model, by names that ComfyUI knows
    file = read_adapter(run.output)
    assert {"diffusion_model.final_layer.adaLN_modulation.1", "diffusion_model.single_blocks.1.linear2"} <= set(
        file.layers
    )
    assert ("transformer.single_transformer_blocks.1.proj_mlp" in file.layers) == (kind == "DoRA")
    assert not any("ComfyUI" in text for text in run.warnings())


def test_full_training(make_run, flux1_folders):
    """Loss falls; the file holds the trained transformer in the original layout, and loads again."""
    run = make_run()
    settings = options(
        flux1_folders["dev"], training_method="FINE_TUNE", output_model_format="ORIGINAL_TRANSFORMER", epochs=8,
        learning_rate=0.01,
    )  # fmt: skip
    trainer = run.trainer(**settings)
    trainer.run()
    assert falls(trainer) and LINEAR1 in load_file(run.output)
    again = options(flux1_folders["dev"], transformer={"model_name": str(run.output)})
    found = FluxModel.load(TrainConfig.from_dict(again), torch.device("cpu")).components["transformer"].state_dict()
    for name, tensor in trainer.model.transformer.state_dict().items():
        assert torch.equal(found[name], tensor), name
    # what the image, the caption, its summary, the time and the guidance come in by, and where the answer comes out
    roles = {
        name.removeprefix("transformer."): get_parameter_info(parameter).role
        for name, parameter in trainer.trained["transformer"].named_parameters().items()
    }
    embedders = [f"time_text_embed.{name}_embedder.linear_1" for name in ("timestep", "text", "guidance")]
    first = {name for name, role in roles.items() if role == ParameterRole.INPUT}
    assert first == {f"{name}.weight" for name in ("x_embedder", "context_embedder", *embedders)}
    assert {name for name, role in roles.items() if role == ParameterRole.OUTPUT} == {"proj_out.weight"}


def test_resumed_run_has_the_same_bytes(make_run, flux1_folders):
    settings = options(
        flux1_folders["dev"], epochs=2, samples=[SAMPLE], sample_after=3, sample_after_unit="STEP",
        masked_training=True, loss_weight_fn="SIGMA",
    )  # fmt: skip
    same_bytes_after_a_stop(make_run, settings)


def test_a_run_s_file_loads_in_diffusers(make_run, flux1_folders):
    folder = flux1_folders["dev"]
    diffusers_draws_the_same(make_run(), folder, options(folder, samples=[SAMPLE], **DRAWN), max_sequence_length=24)


def test_quantized_base(make_run, wide_flux1_folders):
    """It trains, draws and saves; and the base's layers really are in that format."""
    run, quantized = make_run(), {"train": False, "weight_dtype": "NFLOAT_4"}
    trainer = run.trainer(**options(
        wide_flux1_folders["dev"], epochs=1, train_dtype="BFLOAT_16", samples=[SAMPLE], sample_after=1,
        sample_after_unit="EPOCH", transformer={"weight_dtype": "NFLOAT_4", "gradient_checkpointing": True},
        text_encoder=quantized, text_encoder_2=quantized,
    ))  # fmt: skip
    trainer.run()
    layer = trainer.model.transformer.get_submodule("single_transformer_blocks.0.proj_mlp")
    assert isinstance(layer, QuantizedLinear) and layer.data_type == "NFLOAT_4"
    assert len(list(run.workspace.rglob("0 - */*.jpg"))) == 2
    assert read_adapter(run.output).kind.base == "LoRA"


def test_onetrainer_s_preset_passes_the_checks(make_run):
    """The options of its `Flux Dev.1/#flux LoRA`, with images."""
    run, told = make_run(), []
    listed = train_config_from_dict(run.options()).model_dump(mode="json")["concepts"]
    preset = {
        "backup_after": 10, "base_model_name": "black-forest-labs/FLUX.1-dev", "batch_size": 4, "learning_rate": 0.0003,
        "model_type": "FLUX_DEV_1", "output_model_destination": str(run.output),
        "output_model_format": "DIFFUSERS_LORA",
        "resolution": "768", "transformer": {"train": True, "weight_dtype": "NFLOAT_4"},
        "text_encoder": {"train": False, "weight_dtype": "BFLOAT_16"},
        "text_encoder_2": {"train": False, "weight_dtype": "NFLOAT_4"}, "training_method": "LORA",
        "vae": {"weight_dtype": "FLOAT_32"}, "train_dtype": "BFLOAT_16", "timestep_distribution": "LOGIT_NORMAL",
        "dynamic_timestep_shifting": True,
    }  # fmt: skip
    places = {"concepts": listed, "workspace_dir": str(run.workspace), "train_device": "cpu", "temp_device": "cpu"}
    config = train_config_from_dict(preset | places, warn=told.append)
    assert run_problems(config, told.append) == [] and told == []


def test_text_encoders_that_are_not_trained_are_told(make_run, flux1_folders):
    run, told = make_run(), []
    wanted = options(flux1_folders["dev"], text_encoder_2={"train": True})
    assert run_problems(train_config_from_dict(run.options(**wanted)), told.append) == []
    assert told == ["text_encoder_2.train has no effect: this trainer trains no text encoder of FLUX_DEV_1."]


def test_kinds_that_can_t_be_joined_are_told_at_the_start(make_run, flux1_folders):
    run = make_run()
    with pytest.raises(UserError, match="can't be joined"):
        run.train(**options(flux1_folders["dev"], **{**KINDS["DoRA"], "output_model_format": "KOHYA_LORA"}))
    assert not run.of_kind("step")
