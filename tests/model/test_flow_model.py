"""A transformer family is its components, a few hooks and its names: one is made here, trained, resumed and drawn."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modules.dataLoader.plan import PlannedBatch, PlannedSample
from modules.model.BaseModel import model_families
from modules.model.FlowModel import FlowModel
from modules.model.ModelSource import ModelSource, empty_module
from modules.modelSaver.AdapterFile import read_adapter
from modules.trainer.objective import batch_losses
from modules.util.AdapterNaming import AdapterNaming
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.enum.ModelType import ModelType
from modules.util.UserError import UserError

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pytest
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from transformers import CLIPTextModel, CLIPTokenizer

TOKENS = 16
SMALL = {
    "patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
    "num_attention_heads": 2, "joint_attention_dim": 16, "pooled_projection_dim": 16, "axes_dims_rope": (4, 6, 6),
    "guidance_embeds": False,
}  # fmt: skip
FLOW = {
    "model_type": "FLUX_DEV_1", "transformer": {"gradient_checkpointing": True}, "unet": {},
    "text_encoder": {"train": False}, "output_model_format": "KOHYA_LORA", "dynamic_timestep_shifting": True,
    "text_encoder_sequence_length": TOKENS,
}  # fmt: skip


class PlainFlowModel(FlowModel):
    """A transformer of Flux's blocks that reads one CLIP text encoder."""

    model_types = (ModelType.FLUX_DEV_1,)
    modules = {"transformer": FluxTransformer2DModel, "text_encoder": CLIPTextModel, "vae": AutoencoderKL}
    tokenizers = {"tokenizer": CLIPTokenizer}
    # the pipeline of these blocks takes no mask
    pipeline_arguments = {"hidden": "prompt_embeds", "pooled": "pooled_prompt_embeds"}
    steers_away = False
    packing = "pairs"

    @classmethod
    def planned_naming(cls) -> AdapterNaming:
        return cls.name_layers(empty_module(FluxTransformer2DModel, SMALL), {})

    @classmethod
    def open_file(cls, path: Path, config: TrainConfig) -> ModelSource:
        raise UserError(f"base_model_name: {path} is a file.")

    @property
    def image_grid(self) -> int:
        return 2 ** len(self.layers_of("vae").config.block_out_channels)

    def pack_latents(self, latents: Tensor) -> Tensor:
        return F.pixel_unshuffle(latents * self.vae.config.scaling_factor, 2)

    def unpack_latents(self, latents: Tensor) -> Tensor:
        return F.pixel_shuffle(latents, 2) / self.vae.config.scaling_factor

    def encode_text(self, captions: list[str], length: int | None) -> dict[str, Tensor]:
        tokens = self.tokenizer_of["text_encoder"](
            captions, padding=True, truncation=True, max_length=length or TOKENS, return_tensors="pt"
        ).to(self.device)
        states, mask = self.components["text_encoder"](**tokens), tokens.attention_mask.bool()
        return {"hidden": states.last_hidden_state * mask[..., None], "pooled": states.pooler_output, "mask": mask}

    def text_settings(self, component: str) -> list[Any]:
        return [self.config.text_encoder_sequence_length]

    def text_limits(self) -> dict[str, int]:
        return {"text_encoder": (self.config.text_encoder_sequence_length or TOKENS) - 2}

    def count_tokens(self, component: str, texts: Sequence[str]) -> list[int]:
        return [len(self.tokenizer_of[component](text).input_ids) - 2 for text in texts]

    def read_more(self, component: str, tokens: int) -> str:
        return f"text_encoder_sequence_length to {tokens + 2}"

    def call_transformer(self, noised: Tensor, level: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        h, w = noised.shape[2:]
        places = torch.cartesian_prod(torch.arange(1), torch.arange(h), torch.arange(w)).to(noised)
        hidden, pooled = (conditions[name].to(noised.dtype) for name in ("hidden", "pooled"))
        output = self.transformer(
            noised.flatten(2).transpose(1, 2), hidden, pooled, timestep=level, img_ids=places,
            txt_ids=torch.zeros(hidden.shape[1], 3).to(noised), return_dict=False,
        )[0]  # fmt: skip
        return self.image_of_tokens(output, h, w)

    def make_pipeline(self, scheduler: FlowMatchEulerDiscreteScheduler) -> DiffusionPipeline:
        return FluxPipeline(scheduler, self.vae, None, None, None, None, self.transformer)

    @staticmethod
    def name_layers(denoiser: nn.Module, text_encoders: Mapping[str, nn.Module]) -> AdapterNaming:
        layers = [name for name, module in denoiser.named_modules() if isinstance(module, nn.Linear)]
        names = {("transformer", name): f"lora_unet_{name.replace('.', '_')}" for name in layers}
        return AdapterNaming.build({ModelFormat.KOHYA_LORA: names}, {})

    def file_description(self) -> dict[str, str]:
        return {"architecture": "plain flow"}


@pytest.fixture
def folder(mini_base, tmp_path, monkeypatch) -> Path:
    """A base model of the family, which is known as long as a test runs."""
    monkeypatch.setitem(model_families(), ModelType.FLUX_DEV_1, PlainFlowModel)
    place = tmp_path / "base"
    for component in ("vae", "text_encoder", "tokenizer"):
        shutil.copytree(mini_base / component, place / component)
    torch.manual_seed(0)
    FluxTransformer2DModel(**SMALL).save_pretrained(place / "transformer")
    FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).save_pretrained(place / "scheduler")
    kinds = {**PlainFlowModel.modules, **PlainFlowModel.tokenizers, "scheduler": FlowMatchEulerDiscreteScheduler}
    index = {name: [kind.__module__.split(".")[0], kind.__name__] for name, kind in kinds.items()}
    (place / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return place


def test_it_learns_draws_and_resumes_to_the_same_bytes(make_run, folder, mini_concept):
    sample = {"prompt": "a red shape", "width": 32, "height": 32, "diffusion_steps": 2}
    options = {
        **FLOW, "base_model_name": str(folder), "epochs": 8, "samples": [sample], "sample_after": 16,
        "sample_after_unit": "STEP", "loss_weight_fn": "SIGMA", "learning_rate": 0.03,
        "optimizer": {"optimizer": "ADAMW_ADV", "scaled_optm": True}, "validation": True, "validate_after": 100,
        "concepts": [{"path": str(mini_concept), "type": kind} for kind in ("STANDARD", "VALIDATION")],
    }  # fmt: skip
    whole, cut = make_run("whole", own_cache=True), make_run("cut", own_cache=True)
    report = whole.train(**options)
    cut.train(stop_after=6, **options)
    cut.train(continue_last_backup=True, **options)
    assert whole.digest() == cut.digest()
    before, *_, after = [measured["loss"] for measured in report["validation"]]
    assert after < 0.9 * before
    layers = read_adapter(whole.output).layers
    assert "lora_unet_transformer_blocks_0_attn_to_q" in layers and "lora_unet_x_embedder" in layers
    pictures = [Path(file).read_bytes() for drawn in report["samples"] for file in drawn["files"]]
    assert len(pictures) == 3 and len(set(pictures)) == 3


def test_captions_of_one_batch_may_have_different_lengths(make_run, folder, draw_concept, tmp_path):
    images = tmp_path / "images"
    draw_concept(images)
    captions = ["red", "a red shape number 3 on a blue background", "a shape"]
    for place, file in enumerate(sorted(images.glob("*.txt"))):
        file.write_text(captions[place % 3], encoding="utf-8")
    trainer = make_run().trainer(**FLOW, base_model_name=str(folder), concepts=[{"path": str(images)}], epochs=1)
    trainer._prepare()
    data, lengths = trainer.data, set()
    size = data.source.size(0, 0)
    batch = data.load(PlannedBatch(tuple(PlannedSample(image, 0, 0) for image in (0, 1, 2)), size))
    for place, caption in enumerate(batch.captions):
        alone = trainer.model.encode_captions([caption])
        n = alone["mask"].shape[1]
        lengths.add(n)
        assert batch.text["mask"][place].tolist() == [True] * n + [False] * (batch.text["mask"].shape[1] - n)
        assert torch.equal(batch.text["hidden"][place, :n], alone["hidden"][0])
        assert not batch.text["hidden"][place, n:].any()
        assert torch.equal(batch.text["pooled"][place], alone["pooled"][0])
    assert len(lengths) == 3
    generator = torch.Generator().manual_seed(0)
    assert torch.isfinite(batch_losses(trainer.config, trainer.model, batch, generator, trainer.trained)).all()


def test_latents_come_back(folder):
    config = TrainConfig.from_dict({"base_model_name": str(folder), "model_type": "FLUX_DEV_1"})
    model = PlainFlowModel.load(config, torch.device("cpu"))
    packed = model.encode_images(torch.zeros(1, 3, 32, 48))
    assert packed.shape == (1, 16, 8, 12)
    latents = torch.randn(1, 4, 16, 24)
    torch.testing.assert_close(model.unpack_latents(model.pack_latents(latents)), latents)
    assert model.decode_images(packed).shape == (1, 3, 32, 48)


def test_what_has_no_meaning_for_flow_matching_is_named(make_run, folder):
    with pytest.raises(UserError, match="loss_weight_fn: MIN_SNR_GAMMA has no meaning for FLUX_DEV_1"):
        make_run().train(**FLOW, base_model_name=str(folder), loss_weight_fn="MIN_SNR_GAMMA")


def test_prior_images_change_nothing(make_run, folder, mini_concept):
    run = make_run()
    listed = [{"path": str(mini_concept), "type": "PRIOR_PREDICTION"}]
    rule = {"optimizer": {"optimizer": "ADAMW", "weight_decay": 0.0}}
    run.train(**FLOW, **rule, base_model_name=str(folder), epochs=1, concepts=listed)
    assert [(step["loss"], step["gradient_norm"]) for step in run.of_kind("step")] == [(0, 0)] * 4
