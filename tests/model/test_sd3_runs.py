"""Whole runs on a small Stable Diffusion 3 and 3.5: kinds of training, text encoders, resume, quantized bases."""

from pathlib import Path

from modules.model.QuantizedLinear import QuantizedLinear
from modules.model.StableDiffusion3Model import StableDiffusion3Model
from modules.modelSaver.AdapterFile import read_adapter
from modules.trainer.checks import run_problems
from modules.util.config.load import train_config_from_dict
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ParameterRole import ParameterRole
from modules.util.ParameterInfo import get_parameter_info
from modules.util.UserError import UserError
from tests.model.family_checks import DRAWN, diffusers_draws_the_same, goes_on_from_a_file, same_bytes_after_a_stop
from tests.model.test_sd3_model import ENCODERS, TYPES

import torch

import pytest
from safetensors.torch import load_file

KINDS = {
    "LoRA": {"peft_type": "LORA"},
    "DoRA": {"peft_type": "LORA", "lora_decompose": True},
    "OFT": {"peft_type": "OFT_2", "oft_side": "OUTPUT", "oft_block_size": 8, "oft_scaled": True},
    "Stiefel": {"lora_init": "ORTHONORMAL", "optimizer": {"optimizer": "STIEFEL_LORA"}},
    "RITE": {"optimizer": {"optimizer": "LORA_RITE", "scaled_optm": True}},
}
SAMPLE = {"prompt": "a red shape", "width": 32, "height": 32, "diffusion_steps": 2, "cfg_scale": 2.0, "seed": 3}


def options(folders: dict[str, Path], variant: str = "3.5", **changes) -> dict:
    quiet = {encoder: {"train": False, "gradient_checkpointing": False} for encoder in ENCODERS}
    return {
        "base_model_name": str(folders[variant]), "model_type": TYPES[variant], "text_encoder_3_sequence_length": 24,
        "output_model_format": "COMFY_LORA", "transformer": {"gradient_checkpointing": False}, "unet": {},
        "timestep_distribution": "LOGIT_NORMAL", "optimizer": {"optimizer": "ADAMW_ADV", "scaled_optm": True},
        "learning_rate": 0.03, **quiet, **changes,
    }  # fmt: skip


def falls(trainer) -> bool:
    losses = torch.tensor(list(trainer.progress.losses))
    # means of 16 images each: their noise differs by a few per cent, the loss by more
    assert len(losses) == 32
    return bool(losses[-8:].mean() < 0.8 * losses[:8].mean())


@pytest.mark.parametrize(
    ("kind", "variant"), [("LoRA", "3"), ("DoRA", "3.5"), ("OFT", "3.5"), ("Stiefel", "3"), ("RITE", "3.5")]
)
def test_loss_falls(make_run, sd3_folders, kind, variant):
    run = make_run()
    trainer = run.trainer(**options(sd3_folders, variant, epochs=8, **KINDS[kind]))
    trainer.run()
    assert falls(trainer)
    # every layer of the transformer, by names that ComfyUI knows
    layers = set(read_adapter(run.output).layers)
    wanted = {"diffusion_model.final_layer.adaLN_modulation.1", "diffusion_model.joint_blocks.1.x_block.mlp.fc2"}
    assert wanted | {"diffusion_model.x_embedder.proj"} <= layers
    assert ("transformer.transformer_blocks.1.attn.to_q" in layers) == (kind == "DoRA")
    assert not any("ComfyUI" in text for text in run.warnings())


def test_full_training(make_run, sd3_folders):
    """Loss falls; the whole checkpoint has the trained transformer and one of the encoders, and loads again."""
    run = make_run()
    settings = options(
        sd3_folders, training_method="FINE_TUNE", output_model_format="ORIGINAL_SINGLE_FILE", epochs=8,
        learning_rate=0.02, text_encoder_2={"train": True, "gradient_checkpointing": False},
    )  # fmt: skip
    trainer = run.trainer(**settings)
    trainer.run()
    assert falls(trainer) and "first_stage_model.encoder.conv_in.weight" in load_file(run.output)
    parts = {name: {"model_name": str(run.output)} for name in ("transformer", *ENCODERS, "vae")}
    again = StableDiffusion3Model.load(TrainConfig.from_dict(options(sd3_folders, **parts)), torch.device("cpu"))
    for component in ("transformer", "text_encoder_2"):
        found = again.components[component].state_dict()
        for name, tensor in trainer.model.components[component].state_dict().items():
            assert torch.equal(found[name], tensor), name
    before = StableDiffusion3Model.load(TrainConfig.from_dict(options(sd3_folders)), torch.device("cpu"))
    moved = "text_model.encoder.layers.0.mlp.fc1.weight"
    assert not torch.equal(found[moved], before.components["text_encoder_2"].state_dict()[moved])
    # what the image, the captions, their summary and the time come in by, and where the answer comes out
    roles = {
        name.removeprefix("transformer."): get_parameter_info(parameter).role
        for name, parameter in trainer.trained["transformer"].named_parameters().items()
    }
    embedders = [f"time_text_embed.{name}_embedder.linear_1" for name in ("timestep", "text")]
    first = {name for name, role in roles.items() if role == ParameterRole.INPUT}
    assert first == {f"{name}.weight" for name in ("pos_embed.proj", "context_embedder", *embedders)}
    assert {name for name, role in roles.items() if role == ParameterRole.OUTPUT} == {"proj_out.weight"}


def test_text_encoders_are_trained(make_run, sd3_folders):
    """All three, with the captions read anew in each step; checkpointing changes no number, not by T5's dropout."""
    losses = []
    for checkpointing in (False, True):
        run = make_run(f"{checkpointing}")
        trained = {name: {"train": True, "gradient_checkpointing": checkpointing} for name in ENCODERS}
        trainer = run.trainer(**options(sd3_folders, epochs=1, **trained))
        trainer.run()
        losses.append(list(trainer.progress.losses))
        assert not any("ComfyUI" in text for text in run.warnings())
    file = load_file(run.output)
    for name in (
        "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1", "clip_g.transformer.text_projection",
        "t5xxl.transformer.encoder.block.1.layer.0.SelfAttention.q",
    ):  # fmt: skip
        assert file[f"text_encoders.{name}.lora_B.weight"].abs().max() > 1e-3, name
    # the repeated operations may be summed in another order
    assert len(losses[0]) == 4 and losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_resumed_run_has_the_same_bytes(make_run, sd3_folders):
    settings = options(
        sd3_folders, epochs=2, samples=[SAMPLE], sample_after=3, sample_after_unit="STEP", masked_training=True,
        loss_weight_fn="SIGMA", text_encoder={"train": True, "gradient_checkpointing": False},
    )  # fmt: skip
    same_bytes_after_a_stop(make_run, settings)


def test_a_run_s_file_loads_in_diffusers(make_run, sd3_folders):
    """With both CLIPs, which diffusers takes from such a file; T5 it does not."""
    trained = dict.fromkeys(ENCODERS[:2], {"train": True, "gradient_checkpointing": False})
    settings = options(sd3_folders, samples=[SAMPLE], **trained, **DRAWN)
    diffusers_draws_the_same(make_run(), sd3_folders["3.5"], settings, max_sequence_length=24)


def test_training_goes_on_from_a_file(make_run, sd3_folders):
    """Also from fused layers, which have the sum of the ranks that were joined."""
    goes_on_from_a_file(
        make_run, StableDiffusion3Model, options(sd3_folders, epochs=1), "transformer_blocks.0.attn2.to_k"
    )


@pytest.mark.parametrize(("weights", "kind"), [("INT_8", "LoRA"), ("FLOAT_8", "OFT"), ("NFLOAT_4", "DoRA")])
def test_quantized_base(make_run, wide_sd3_folder, weights, kind):
    """It trains, draws and saves; and the base's layers really are in that format."""
    run, quantized = make_run(), {"train": False, "weight_dtype": weights}
    trainer = run.trainer(**options(
        {"3.5": wide_sd3_folder}, epochs=1, train_dtype="BFLOAT_16", samples=[SAMPLE], sample_after=1,
        sample_after_unit="EPOCH", transformer={"weight_dtype": weights, "gradient_checkpointing": True},
        **dict.fromkeys(ENCODERS, quantized), **KINDS[kind],
    ))  # fmt: skip
    trainer.run()
    # that of the noise level looks at the format of its first layer
    for path in ("transformer_blocks.0.attn2.to_q", "time_text_embed.timestep_embedder.linear_1"):
        layer = trainer.model.transformer.get_submodule(path)
        assert isinstance(layer, QuantizedLinear) and layer.data_type == weights
    assert len(list(run.workspace.rglob("0 - */*.jpg"))) == 2
    assert len(read_adapter(run.output).layers) >= 20


@pytest.mark.parametrize("method", ["LORA", "FINE_TUNE"])
def test_onetrainer_s_presets_pass_the_checks(make_run, method):
    """The options of its `SD3/#sd 3 LoRA` and `SD3/#sd 3`, with images."""
    run, told = make_run(), []
    listed = train_config_from_dict(run.options()).model_dump(mode="json")["concepts"]
    half = {"train": False, "weight_dtype": "FLOAT_16"}
    preset = {
        "base_model_name": "stabilityai/stable-diffusion-3-medium-diffusers", "model_type": "STABLE_DIFFUSION_3",
        "output_model_destination": str(run.output), "resolution": "1024", "training_method": method,
        "text_encoder": half, "text_encoder_2": half, "text_encoder_3": half, "vae": {"weight_dtype": "FLOAT_32"},
        "timestep_distribution": "LOGIT_NORMAL",
        **(
            {"backup_after": 10, "batch_size": 4, "learning_rate": 0.0003, "output_model_format": "DIFFUSERS_LORA",
             "transformer": {"train": True, "weight_dtype": "FLOAT_16"}}
            if method == "LORA" else
            {"output_dtype": "FLOAT_16", "output_model_format": "ORIGINAL_SINGLE_FILE",
             "transformer": {"train": True, "weight_dtype": "FLOAT_32"}}
        ),
    }  # fmt: skip
    places = {"concepts": listed, "workspace_dir": str(run.workspace), "train_device": "cpu", "temp_device": "cpu"}
    config = train_config_from_dict(preset | places, warn=told.append)
    assert run_problems(config, told.append) == [] and told == []


def test_kinds_that_can_t_be_joined_are_told_at_the_start(make_run, sd3_folders):
    run = make_run()
    with pytest.raises(UserError, match="can't be joined"):
        run.train(**options(sd3_folders, **{**KINDS["DoRA"], "output_model_format": "KOHYA_LORA"}))
    assert not run.of_kind("step")
