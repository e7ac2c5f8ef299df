"""Whole runs on a small Sana: kinds of training, resume, formats of weights, and OneTrainer's own preset."""

import json

from modules.model.SanaModel import SanaModel
from modules.modelSaver.AdapterFile import read_adapter
from modules.util.UserError import UserError
from tests.model.family_checks import (
    DRAWN,
    KINDS,
    PAIR_KINDS,
    SAMPLE,
    diffusers_draws_the_same,
    flow_options,
    goes_on_from_a_file,
    layers_that_wait_change_nothing,
    loss_falls,
    problems_of_preset,
    quantized_base_trains,
    same_bytes_after_a_stop,
)

import torch

import pytest
from diffusers import DiffusionPipeline

# all but the convolution of single channels, in which diffusers' library wants a rank that its channels divide
LINEAR = {"layer_filter": "attn1,attn2,caption_projection,proj_out"}
SAMPLE = SAMPLE | {"cfg_scale": 2.0}


def options(folder, **changes) -> dict:
    return flow_options(folder, "SANA", **{"output_model_format": "DIFFUSERS_LORA", **changes})


@pytest.mark.parametrize("kind", ["LoRA", "DoRA", "OFT", "Stiefel", "RITE"])
def test_loss_falls(make_run, sana_folder, kind):
    run, settings = make_run(), {**KINDS, **PAIR_KINDS}[kind] | {"output_model_format": "LEGACY_LORA"}
    trainer = loss_falls(run, options(sana_folder, **settings))
    layers = {*read_adapter(run.output).layers}
    expected = trainer.model.adapter_naming().written("LEGACY_LORA")
    # a rotation of single channels turns nothing
    assert layers == expected or (kind == "OFT" and layers < expected)
    assert "lora_transformer_transformer_blocks_1_ff_conv_inverted" in layers
    assert any("ComfyUI does not know this model" in text for text in run.warnings())


def test_full_weights_as_a_folder(make_run, sana_folder):
    run = make_run()
    folder = {"output_model_format": "DIFFUSERS", "output_model_destination": str(run.workspace / "whole")}
    trainer = loss_falls(run, options(sana_folder, **KINDS["full"] | folder))
    assert json.loads((run.workspace / "whole" / "model_index.json").read_text())["_class_name"] == "SanaPipeline"
    found = DiffusionPipeline.from_pretrained(run.workspace / "whole").transformer.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in trainer.model.transformer.state_dict().items())


def test_resumed_run_has_the_same_bytes(make_run, sana_folder):
    settings = options(
        sana_folder, epochs=2, samples=[SAMPLE], sample_after=3, sample_after_unit="STEP", masked_training=True,
        loss_weight_fn="SIGMA",
    )  # fmt: skip
    same_bytes_after_a_stop(make_run, settings)


def test_a_run_s_file_loads_in_diffusers(make_run, sana_folder):
    settings = options(sana_folder, samples=[SAMPLE], **LINEAR, **DRAWN)
    diffusers_draws_the_same(
        make_run(), sana_folder, settings, negative_prompt="", use_resolution_binning=False, clean_caption=False
    )


def test_training_goes_on_from_a_file(make_run, sana_folder):
    settings = options(sana_folder, epochs=1, output_model_format="KOHYA_LORA")
    goes_on_from_a_file(make_run, SanaModel, settings, "transformer_blocks.0.attn2.to_k")


@pytest.mark.parametrize(("weights", "kind"), [("INT_8", "LoRA"), ("FLOAT_8", "DoRA"), ("NFLOAT_4", "OFT")])
def test_quantized_base(make_run, wide_sana_folder, weights, kind):
    run = make_run()
    settings = options(wide_sana_folder, samples=[SAMPLE], **KINDS[kind] | {"output_model_format": "LEGACY_LORA"})
    paths = ("transformer_blocks.1.attn1.to_q", "time_embed.emb.timestep_embedder.linear_1")
    quantized_base_trains(run, settings, weights, paths, checkpoints=True)


def test_layers_that_wait_elsewhere_change_nothing(make_run, sana_folder):
    layers_that_wait_change_nothing(make_run, options(sana_folder))


def test_comfyui_s_format_is_refused(make_run, sana_folder):
    with pytest.raises(UserError, match="COMFY_LORA"):
        make_run().train(**options(sana_folder, output_model_format="COMFY_LORA"))


def test_onetrainer_s_preset_passes_the_checks(make_run):
    """`Sana/#sana 1.6b` (August 2026)."""
    preset = {
        "base_model_name": "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers", "model_type": "SANA",
        "output_model_format": "DIFFUSERS", "resolution": "1024", "training_method": "FINE_TUNE",
        "text_encoder": {"train": False, "weight_dtype": "BFLOAT_16"}, "train_dtype": "BFLOAT_16",
    }  # fmt: skip
    found, told = problems_of_preset(make_run(), preset)
    assert not found and not told
