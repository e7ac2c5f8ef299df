"""Whole runs on a small SDXL: they learn, resume to the same bytes, and their adapters work in diffusers' pipeline."""

from pathlib import Path
from typing import Any

from modules.dataLoader.TrainingData import TrainingData
from modules.model.BaseModel import BaseModel
from modules.model.QuantizedLinear import QuantizedLinear
from modules.model.StableDiffusionXLModel import StableDiffusionXLModel
from modules.modelSaver.AdapterFile import read_adapter
from modules.util.enum.ModelFormat import ModelFormat

import torch

import numpy as np
import pytest
from diffusers import StableDiffusionXLPipeline
from PIL import Image

COMPONENT = {"train": True, "stop_training_after_unit": "NEVER", "gradient_checkpointing": False}
XL = {
    "model_type": "STABLE_DIFFUSION_XL_10_BASE",
    "unet": COMPONENT, "text_encoder": COMPONENT, "text_encoder_2": COMPONENT,
    "optimizer": {"optimizer": "ADAMW_ADV", "scaled_optm": True},
}  # fmt: skip
# what a run is made by -> its options; rates in units of the scaled optimizer
METHODS: dict[str, dict[str, Any]] = {
    "LoRA": {"learning_rate": 0.02},
    "DoRA": {"lora_decompose": True, "learning_rate": 0.02},
    "OFT": {"peft_type": "OFT_2", "oft_block_size": 4, "oft_scaled": True, "learning_rate": 0.02},
}
FULL = {"training_method": "FINE_TUNE", "output_model_format": "SAFETENSORS", "learning_rate": 0.01}
CAPTIONS = ["a red shape number 3", ""]
PLACEMENT = torch.tensor([[64.0, 48, 3, 1, 32, 32]] * 2)


@pytest.fixture(scope="session")
def mini_base(xl_folder) -> Path:
    """What the runs of this module train."""
    return xl_folder


def mean_loss(model: BaseModel, data: TrainingData) -> float:
    """Of all batches of an epoch, with noise and timesteps that depend on the batch alone."""
    losses = []
    with torch.no_grad():
        for index, planned in enumerate(data.plan(0)):
            prediction = model.predict_batch(data.load(planned), torch.Generator().manual_seed(index))
            losses.append((prediction.predicted - prediction.target).square().mean())
    return float(torch.stack(losses).mean())


@pytest.mark.parametrize("method", [*METHODS, "full"])
def test_loss_falls_over_thirty_steps(make_run, method):
    trainer = make_run().trainer(**XL, **METHODS.get(method, FULL), epochs=8)
    report = trainer.run()
    assert report["steps"] == 32
    untrained = StableDiffusionXLModel.load(trainer.config, torch.device("cpu"))
    assert mean_loss(trainer.model, trainer.data) < 0.9 * mean_loss(untrained, trainer.data)


# a DoRA's state holds all of a LoRA's
@pytest.mark.parametrize("method", [*(method for method in METHODS if method != "LoRA"), "full"])
def test_resumed_run_has_the_same_bytes(make_run, method):
    options = {
        **XL, **METHODS.get(method, FULL), "epochs": 1, "text_encoder": {**COMPONENT, "dropout_probability": 0.3},
        "optimizer": {**XL["optimizer"], "fused_back_pass": True},
    }  # fmt: skip
    straight, resumed = make_run("straight"), make_run("resumed")
    straight.train(**options)
    resumed.train(stop_after=2, **options)
    resumed.output.unlink()
    resumed.train(**options, continue_last_backup=True)
    assert resumed.digest() == straight.digest()


@pytest.mark.parametrize(("weights", "method"), [("INT_8", "LoRA"), ("FLOAT_8", "DoRA"), ("NFLOAT_4", "OFT")])
def test_quantized_base(make_run, weights, method):
    """It trains and saves, and what is saved is an adapter of the whole UNet."""
    run = make_run()
    quiet = {component: {**COMPONENT, "train": False} for component in ("text_encoder", "text_encoder_2")}
    options = XL | {"unet": COMPONENT | {"weight_dtype": weights}} | quiet | METHODS[method]
    trainer = run.trainer(**options, train_dtype="BFLOAT_16", epochs=1)
    trainer.run()
    quantized = [layer for layer in trainer.model.unet.modules() if isinstance(layer, QuantizedLinear)]
    assert quantized and all(layer.data_type == weights for layer in quantized)
    assert len(read_adapter(run.output).layers) == len(trainer.trained["unet"].adapters)


def test_half_precision_run_with_samples(make_run):
    run, half = make_run(), {"weight_dtype": "BFLOAT_16"}
    report = run.train(
        stop_after=2, **XL | dict.fromkeys(("unet", "text_encoder", "text_encoder_2"), COMPONENT | half),
        train_dtype="BFLOAT_16", learning_rate=0.001, sample_after=2, sample_after_unit="STEP",
        samples=[{"prompt": "a red shape", "width": 32, "height": 32, "diffusion_steps": 2}],
    )  # fmt: skip
    assert 0.5 < report["final_loss"] < 3
    # before the first step, after the second, and the two side by side
    assert [values["step"] for values in run.of_kind("sample")] == [0, 2, 2] and not run.warnings()
    for values in run.of_kind("sample"):
        assert np.asarray(Image.open(values["path"])).std() > 1


@pytest.mark.parametrize(("first", "second"), [(0.3, 0.0), (0.0, 0.1), (0.2, 0.2)])
def test_one_dropout_counts_for_both_text_encoders(make_run, first, second):
    run = make_run()
    options = {**XL, "text_encoder": {**COMPONENT, "dropout_probability": first},
               "text_encoder_2": {**COMPONENT, "dropout_probability": second}}  # fmt: skip
    run.train(**options, only_cache=True)
    told = [text for text in run.warnings() if text.startswith("text_encoder_2.dropout_probability")]
    assert len(told) == (first != second) and all(f"which is {first:g}" in text for text in told)


def test_cached_text_and_live_text_train_the_same(make_run):
    """With the encoders frozen it makes no difference whether captions were encoded before or at each step."""
    options = {
        **XL,
        "text_encoder": {**COMPONENT, "train": False},
        "text_encoder_2": {**COMPONENT, "train": False},
        "epochs": 1,
    }
    cached, live = make_run("cached"), make_run("live")
    first = cached.train(**options)
    second = live.train(**options, latent_caching=False)
    assert first["final_loss"] == second["final_loss"]


def outputs(pipeline_or_model, encoders) -> list[torch.Tensor]:
    """UNet and text encoders on fixed inputs."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 90, (2, 16), generator=generator)
    latents, steps = torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([10, 700])
    with torch.no_grad():
        first, second = (encoder(tokens, output_hidden_states=True) for encoder in encoders)
        hidden = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        added = {"text_embeds": second.text_embeds, "time_ids": PLACEMENT}
        return [pipeline_or_model.unet(latents, steps, hidden, added_cond_kwargs=added).sample, hidden,
                second.text_embeds]  # fmt: skip


def of_model(model) -> list[torch.Tensor]:
    return outputs(model, [model.components[component] for component in ("text_encoder", "text_encoder_2")])


def of_pipeline(pipeline) -> list[torch.Tensor]:
    return outputs(pipeline, [pipeline.text_encoder, pipeline.text_encoder_2])


@pytest.fixture
def trained(make_run):
    """trained(format, **options) -> the run, and what its hooked model computes."""

    def train(model_format: ModelFormat, **options: Any):
        run = make_run(model_format)
        options = {**XL, **METHODS["LoRA"], "output_model_format": model_format, **options}
        trainer = run.trainer(stop_after=2, **options)
        trainer.run()
        return run, trainer

    return train


# the pipeline's reader of kohya's names knows every layer but the two of the micro-conditioning's embedding
KNOWN = "down_blocks,mid_block,up_blocks,conv_in,conv_out,time_embedding"


@pytest.mark.parametrize(
    ("model_format", "layers"), [(ModelFormat.KOHYA_LORA, KNOWN), (ModelFormat.DIFFUSERS_LORA, "")]
)
def test_diffusers_pipeline_computes_what_the_hooked_model_does(trained, xl_folder, model_format, layers):
    run, trainer = trained(model_format, lora_alpha=3.0, layer_filter=layers)
    pipeline = StableDiffusionXLPipeline.from_pretrained(xl_folder, add_watermarker=False)
    plain = of_pipeline(pipeline)
    pipeline.load_lora_weights(str(run.output.parent), weight_name=run.output.name)
    # the sums stand in another order
    for found, expected, before in zip(of_pipeline(pipeline), of_model(trainer.model), plain, strict=True):
        assert (expected - before).abs().max() > 0.01
        assert (found - expected).abs().max() < 1e-4


WRITTEN = [(method, model_format) for method in METHODS
           for model_format in (ModelFormat.KOHYA_LORA, ModelFormat.COMFY_LORA)]  # fmt: skip
# diffusers has no names for the others
WRITTEN.append(("LoRA", ModelFormat.DIFFUSERS_LORA))


@pytest.mark.parametrize(("method", "model_format"), WRITTEN)
def test_a_run_continues_from_each_format(trained, make_run, method, model_format):
    run, trainer = trained(model_format, **METHODS[method])
    again = make_run("again").trainer(
        stop_after=1, **XL, **METHODS[method] | {"learning_rate": 0.0, "lora_model_name": str(run.output)}
    )
    again.run()
    for found, expected in zip(of_model(again.model), of_model(trainer.model), strict=True):
        # alpha, or the scale of rotations, was multiplied in and out again
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_prior_images_change_nothing(make_run, mini_concept, method):
    run = make_run()
    listed = [{"path": str(mini_concept), "type": "PRIOR_PREDICTION"}]
    rule = {"optimizer": {"optimizer": "ADAMW", "weight_decay": 0.0}}
    run.train(**XL | METHODS[method] | rule, epochs=1, concepts=listed)
    assert [(step["loss"], step["gradient_norm"]) for step in run.of_kind("step")] == [(0, 0)] * 4
