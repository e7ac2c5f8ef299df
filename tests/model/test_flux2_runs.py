"""Whole runs on a small Flux.2: every kind of training, masks, resume, and what is refused at the start."""

from pathlib import Path

from modules.model.Flux2Model import Flux2Model
from modules.model.QuantizedLinear import QuantizedLinear
from modules.modelSaver.AdapterFile import read_adapter
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError
from tests.model.family_checks import DRAWN, diffusers_draws_the_same, goes_on_from_a_file, same_bytes_after_a_stop

import torch

import pytest
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

KINDS = {
    "LoRA": {"peft_type": "LORA"},
    "DoRA": {"peft_type": "LORA", "lora_decompose": True, "lora_decompose_output_axis": True},
    "OFT": {"peft_type": "OFT_2", "oft_side": "OUTPUT", "oft_block_size": 8, "oft_scaled": True},
}


def options(folder: Path, **changes) -> dict:
    return {
        "base_model_name": str(folder), "model_type": "FLUX_2", "text_encoder_sequence_length": 40,
        "output_model_format": "COMFY_LORA", "transformer": {"gradient_checkpointing": False}, "unet": {},
        "text_encoder": {"train": False}, "timestep_distribution": "LOGIT_NORMAL", "dynamic_timestep_shifting": True,
        "optimizer": {"optimizer": "ADAMW_ADV", "scaled_optm": True}, "learning_rate": 0.03, **changes,
    }  # fmt: skip


@pytest.fixture(params=["dev", "klein"])
def folder(request, flux2_folders) -> Path:
    return flux2_folders[request.param]


@pytest.mark.parametrize("kind", KINDS)
def test_loss_falls(make_run, folder, kind):
    run = make_run()
    trainer = run.trainer(**options(folder, epochs=8, **KINDS[kind]))
    trainer.run()
    losses = torch.tensor(list(trainer.progress.losses))
    # means of 16 images each: their noise differs by a few per cent, the loss by more
    assert len(losses) == 32 and losses[-8:].mean() < 0.8 * losses[:8].mean()
    # every layer of the original model that the adapters can be in
    file = read_adapter(run.output)
    assert all(name.startswith("diffusion_model.") for name in file.layers)
    assert {"diffusion_model.final_layer.adaLN_modulation.1", "diffusion_model.double_blocks.1.txt_attn.qkv"} <= set(
        file.layers
    )


def test_resumed_run_has_the_same_bytes(make_run, folder):
    sample = {"prompt": "a red shape", "width": 32, "height": 32, "diffusion_steps": 2}
    settings = options(
        folder, epochs=2, samples=[sample], sample_after=3, sample_after_unit="STEP", masked_training=True,
        loss_weight_fn="SIGMA", offset_noise_weight=0.05,
    )  # fmt: skip
    same_bytes_after_a_stop(make_run, settings)


def test_a_run_s_file_loads_in_diffusers(make_run, folder):
    sample = {"prompt": "a red shape", "width": 32, "height": 32, "diffusion_steps": 2, "cfg_scale": 2.0, "seed": 3}
    diffusers_draws_the_same(make_run(), folder, options(folder, samples=[sample], **DRAWN), max_sequence_length=40)


@pytest.mark.parametrize("model_format", ["COMFY_LORA", "LEGACY_LORA"])
def test_training_goes_on_from_a_file(make_run, flux2_folders, model_format):
    """Also from fused layers, which have the sum of the ranks that were joined."""
    settings = options(flux2_folders["klein"], epochs=1, output_model_format=model_format)
    goes_on_from_a_file(make_run, Flux2Model, settings, "transformer_blocks.0.attn.to_k")


def test_half_precision_with_checkpoints(make_run, folder):
    run = make_run()
    components = {component: {"weight_dtype": "BFLOAT_16"} for component in ("transformer", "text_encoder", "vae")}
    components["text_encoder"]["train"] = False
    run.train(**options(folder, train_dtype="BFLOAT_16", epochs=1, **components))
    assert read_adapter(run.output).kind.base == "LoRA"


@pytest.mark.parametrize(("weights", "kind"), [("INT_8", "LoRA"), ("FLOAT_8", "DoRA"), ("NFLOAT_4", "OFT")])
def test_quantized_base(make_run, folder, weights, kind):
    """It trains, draws and saves; and the base's layers really are in that format."""
    run = make_run()
    sample = {"prompt": "a red shape", "width": 32, "height": 32, "diffusion_steps": 2}
    trainer = run.trainer(**options(
        folder, epochs=1, train_dtype="BFLOAT_16", samples=[sample], sample_after=1, sample_after_unit="EPOCH",
        transformer={"weight_dtype": weights, "gradient_checkpointing": False},
        text_encoder={"train": False, "weight_dtype": "BFLOAT_16"}, **KINDS[kind],
    ))  # fmt: skip
    trainer.run()
    layer = trainer.model.transformer.get_submodule("single_transformer_blocks.0.attn.to_out")
    assert isinstance(layer, QuantizedLinear) and layer.data_type == weights
    assert len(read_adapter(run.output).layers) == len(trainer.model.adapter_naming().write["COMFY_LORA"]) + 2 * 2 + 1
    assert len(list(run.workspace.rglob("0 - */*.jpg"))) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "OFT_2", "oft_block_size": 8}, r"img_attn_qkv, and OFT of several layers.*LEGACY_LORA"),
        ({"lora_decompose": True}, r"DoRA on inputs of several layers can't be joined"),
        ({"layer_filter": "to_q", **KINDS["DoRA"]}, r"layers that are not trained together"),
        (
            {"peft_type": "LOKR", "lokr_decompose_factor": 1, "layer_filter": "norm_out"},
            r"two halves\. Choose one of LEGACY_LORA, INTERNAL, or leave norm_out\.linear out",
        ),
        ({"loss_weight_fn": "P2"}, "expected CONSTANT or SIGMA"),
        ({"transformer": {"train": False}}, r"switch on transformer\.train"),
    ],
)
def test_what_could_not_be_saved_or_trained_is_told_at_the_start(make_run, flux2_folders, changes, words):
    run = make_run()
    with pytest.raises(UserError, match=words):
        run.train(**{**options(flux2_folders["klein"], **changes), "output_model_format": "KOHYA_LORA"})
    assert not run.of_kind("step")


def test_kinds_that_can_t_be_joined_train_where_nothing_is_joined(make_run, flux2_folders):
    run = make_run()
    settings = {"lora_decompose": True, "layer_filter": "transformer_block", "epochs": 1}
    run.train(**options(flux2_folders["klein"], **settings, output_model_format="LEGACY_LORA"))
    file = read_adapter(run.output)
    assert file.kind.dora == "input" and len(file.layers) == 2 * 12 + 2 * 2
    run.train(**options(flux2_folders["klein"], **{**settings, "layer_filter": "single_transformer_blocks"}))
    assert len(read_adapter(run.output).layers) == 4
    # ComfyUI has names for the layers of a fused one
    run.train(**options(flux2_folders["klein"], **settings))
    assert len(read_adapter(run.output).layers) == 2 * 12 + 2 * 2 and read_adapter(run.output).kind.dora == "input"


@pytest.mark.parametrize(
    ("model_format", "line"),
    [
        ("COMFY_LORA", ""),
        ("KOHYA_LORA", "KOHYA_LORA: OneTrainer cannot go on from it, as it holds layers that are joined."),
        ("LEGACY_LORA", "LEGACY_LORA: ComfyUI finds 32 of the model's 37 layers by their names in it."),
        ("ORIGINAL_LORA", "ORIGINAL_LORA: ComfyUI finds 0 of the model's 29 layers by their names in it."),
    ],
)
def test_a_run_tells_what_its_file_will_not_do(make_run, flux2_folders, model_format, line):
    run = make_run()
    run.train(**{**options(flux2_folders["klein"], epochs=1), "output_model_format": model_format})
    told = [text for text in run.warnings() if "ComfyUI" in text or "OneTrainer" in text]
    assert len(told) == bool(line) and all(text.startswith(line) for text in told)


def test_full_training_of_klein(make_run, flux2_folders):
    """Loss falls; the file holds the trained transformer in the original layout, and loads again."""
    run = make_run()
    settings = options(
        flux2_folders["klein"], training_method="FINE_TUNE", output_model_format="ORIGINAL_TRANSFORMER", epochs=8,
        learning_rate=0.01,
    )  # fmt: skip
    trainer = run.trainer(**settings)
    trainer.run()
    losses = torch.tensor(list(trainer.progress.losses))
    assert len(losses) == 32 and losses[-8:].mean() < 0.8 * losses[:8].mean()
    again = options(flux2_folders["klein"], transformer={"model_name": str(run.output)})
    found = Flux2Model.load(TrainConfig.from_dict(again), torch.device("cpu")).components["transformer"].state_dict()
    assert "double_blocks.0.img_attn.qkv.weight" in load_file(run.output)
    for name, tensor in trainer.model.transformer.state_dict().items():
        assert torch.equal(found[name], tensor), name


def test_full_training_is_saved_as_a_folder(make_run, folder):
    run = make_run()
    output = run.root / "out" / "model"
    components = {"text_encoder": {"train": False, "weight_dtype": "BFLOAT_16"}}
    trainer = run.trainer(**options(
        folder, training_method="FINE_TUNE", output_model_format="DIFFUSERS", output_model_destination=str(output),
        epochs=1, **components,
    ))  # fmt: skip
    trainer.run()
    pipeline = DiffusionPipeline.from_pretrained(output)
    before = DiffusionPipeline.from_pretrained(folder)
    trained = trainer.model.transformer.state_dict()
    for name, tensor in pipeline.transformer.state_dict().items():
        assert torch.equal(tensor, trained[name])
    assert not torch.equal(trained["proj_out.weight"], before.transformer.proj_out.weight)
    # what was not trained is as it was, though the run had it in half precision
    for name, tensor in pipeline.text_encoder.state_dict().items():
        assert torch.equal(tensor, before.text_encoder.state_dict()[name])


@pytest.mark.parametrize("kind", KINDS)
def test_prior_images_change_nothing(make_run, folder, mini_concept, kind):
    run = make_run()
    listed = [{"path": str(mini_concept), "type": "PRIOR_PREDICTION"}]
    rule = {"optimizer": {"optimizer": "ADAMW", "weight_decay": 0.0}}
    run.train(**options(folder, epochs=1, concepts=listed, **KINDS[kind]) | rule)
    assert [(step["loss"], step["gradient_norm"]) for step in run.of_kind("step")] == [(0, 0)] * 4
