"""Whole runs on a small PixArt: kinds of training, its text encoder, resume, formats of weights, presets."""

from modules.model.PixArtModel import PixArtModel
from modules.modelSaver.AdapterFile import read_adapter
from modules.util.config.TrainConfig import TrainConfig
from tests.model.family_checks import (
    DRAWN,
    KINDS,
    PAIR_KINDS,
    SAMPLE,
    flow_options,
    goes_on_from_a_file,
    layers_that_wait_change_nothing,
    loss_falls,
    problems_of_preset,
    quantized_base_trains,
    same_bytes_after_a_stop,
)
from tests.model.pixart_base import TYPES
from tests.model.test_pixart_keys import with_peft

import torch

import numpy as np
import pytest
from diffusers import DDIMScheduler, DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file


def options(folders: dict, variant: str = "sigma", **changes) -> dict:
    return flow_options(folders[variant], TYPES[variant], **{"timestep_distribution": "UNIFORM", **changes})


@pytest.mark.parametrize(
    ("kind", "variant"),
    [
        ("LoRA", "alpha"),
        ("DoRA", "sigma"),
        ("OFT", "alpha"),
        ("full", "alpha"),
        ("Stiefel", "sigma"),
        ("RITE", "sigma"),
    ],
)
def test_loss_falls(make_run, pixart_folders, kind, variant):
    run = make_run()
    trainer = loss_falls(run, options(pixart_folders, variant, **{**KINDS, **PAIR_KINDS}[kind]))
    if kind != "full":
        # every layer of the model, by names that ComfyUI knows
        layers = {*read_adapter(run.output).layers}
        assert {"diffusion_model.final_layer.linear", "diffusion_model.blocks.1.mlp.fc1"} <= layers
        assert ("diffusion_model.csize_embedder.mlp.0" in layers) == (variant == "alpha")
        assert ("transformer.transformer_blocks.1.attn2.to_v" in layers) == (kind in ("DoRA", "OFT"))
        return
    # the file holds the trained transformer in the original layout, and loads again
    assert "blocks.1.scale_shift_table" in load_file(run.output)
    again = options(pixart_folders, variant, transformer={"model_name": str(run.output)})
    found = PixArtModel.load(TrainConfig.from_dict(again), torch.device("cpu")).components["transformer"].state_dict()
    for name, tensor in trainer.model.transformer.state_dict().items():
        assert torch.equal(found[name], tensor), name


def test_the_text_encoder_is_trained(make_run, pixart_folders):
    """With the captions read anew in each step; checkpointing changes no number, not by T5's dropout."""
    losses = []
    for checkpointing in (False, True):
        run, trained = make_run(f"{checkpointing}"), {"train": True, "gradient_checkpointing": checkpointing}
        trainer = run.trainer(**options(pixart_folders, epochs=1, text_encoder=trained))
        trainer.run()
        losses.append(list(trainer.progress.losses))
        assert not any("ComfyUI" in text for text in run.warnings())
    name = "text_encoders.t5xxl.transformer.encoder.block.1.layer.0.SelfAttention.q.lora_B.weight"
    assert load_file(run.output)[name].abs().max() > 1e-3
    # the repeated operations may be summed in another order
    assert len(losses[0]) == 4 and losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_resumed_run_has_the_same_bytes(make_run, pixart_folders):
    settings = options(
        pixart_folders, "alpha", epochs=2, samples=[SAMPLE], sample_after=3, sample_after_unit="STEP",
        masked_training=True, loss_weight_fn="MIN_SNR_GAMMA", offset_noise_weight=0.05,
        text_encoder={"train": True, "gradient_checkpointing": False},
    )  # fmt: skip
    same_bytes_after_a_stop(make_run, settings)


def test_a_run_s_file_draws_the_same_with_peft(make_run, pixart_folders):
    """diffusers loads no adapters of this family."""
    folder, run = pixart_folders["alpha"], make_run()
    run.train(**options(pixart_folders, "alpha", samples=[SAMPLE | {"noise_scheduler": "DDIM"}], **DRAWN))
    drawn = [np.asarray(Image.open(path), int) for path in sorted(run.workspace.rglob("0 - */*.png"))]
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.transformer = with_peft(pipeline.transformer, run.output)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    image = pipeline(
        prompt="a red shape", width=32, height=32, num_inference_steps=2, guidance_scale=SAMPLE["cfg_scale"],
        generator=torch.Generator().manual_seed(3), use_resolution_binning=False, clean_caption=False,
        max_sequence_length=4,
    ).images[0]  # fmt: skip
    # one level of 256 for rounding; before the training it was another picture
    assert np.abs(np.asarray(image, int) - drawn[-1]).max() <= 1
    assert np.abs(np.asarray(image, int) - drawn[0]).max() > 1


def test_training_goes_on_from_a_file(make_run, pixart_folders):
    """From fused layers, which have the sum of the ranks that were joined."""
    settings = options(pixart_folders, epochs=1, output_model_format="KOHYA_LORA")
    goes_on_from_a_file(make_run, PixArtModel, settings, "transformer_blocks.0.attn2.to_k")


@pytest.mark.parametrize(("weights", "kind"), [("INT_8", "LoRA"), ("FLOAT_8", "DoRA"), ("NFLOAT_4", "OFT")])
def test_quantized_base(make_run, wide_pixart_folder, weights, kind):
    """It trains, draws and saves; and the base's layers really are in that format."""
    run, settings = make_run(), options({"sigma": wide_pixart_folder}, samples=[SAMPLE], **KINDS[kind])
    # that of the timestep looks at the format of its first layer
    paths = ("transformer_blocks.1.attn1.to_q", "adaln_single.emb.timestep_embedder.linear_1")
    quantized_base_trains(run, settings, weights, paths, checkpoints=True)
    assert len(read_adapter(run.output).layers) >= 20


def test_layers_that_wait_elsewhere_change_nothing(make_run, pixart_folders):
    layers_that_wait_change_nothing(make_run, options(pixart_folders, "alpha"))


# OneTrainer's `PixArt Alpha/…` and `PixArt Sigma/…` (August 2026)
BFLOAT = {"weight_dtype": "BFLOAT_16"}
QUIET = {"text_encoder": {"train": False, **BFLOAT}, "resolution": "1024"}
SIGMA = {
    "base_model_name": "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", "model_type": "PIXART_SIGMA", "transformer": BFLOAT,
    "vae": {"weight_dtype": "FLOAT_32"}, **QUIET,
}  # fmt: skip
PRESETS = {
    "alpha": {
        "base_model_name": "PixArt-alpha/PixArt-XL-2-1024-MS", "model_type": "PIXART_ALPHA", **QUIET,
        "output_model_format": "DIFFUSERS", "training_method": "FINE_TUNE",
    },
    "sigma LoRA": {
        **SIGMA, "batch_size": 4, "epochs": 50, "learning_rate": 0.00001, "output_model_format": "DIFFUSERS_LORA",
        "training_method": "LORA", "lora_rank": 16, "lora_alpha": 1.0,
    },
    "sigma": {
        **SIGMA, "batch_size": 8, "epochs": 100, "learning_rate": 0.00002, "training_method": "FINE_TUNE",
        "output_model_format": "ORIGINAL_TRANSFORMER",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_onetrainer_s_presets_pass_the_checks(make_run, name):
    found, told = problems_of_preset(make_run(), PRESETS[name])
    assert not found
    # its defaults train full weights of 16 bits without rounding by chance
    assert all("steps below 1/256 of a weight are lost" in line for line in told) and bool(told) == (name == "sigma")
