"""What families with a transformer share, whatever they are trained to say."""

import hashlib
import json
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, ClassVar

from modules.model.BaseModel import BaseModel
from modules.model.Draw import Draw
from modules.model.families import StandardModel, standard_models_of
from modules.model.ModelSource import ModelSource
from modules.util.config.errors import Problem, Remedy
from modules.util.config.field_type import default_of
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.AttentionMechanism import AttentionMechanism

import torch
from torch import Tensor, nn

from diffusers import DiffusionPipeline, SchedulerMixin
from PIL import Image
from transformers import PreTrainedTokenizerBase

_SKIPS = tuple(f"text_encoder{number}_layer_skip" for number in ("", "_2", "_3", "_4"))


class TransformerModel(BaseModel):
    """A transformer that denoises latents.

    How noise is mixed in, and what the transformer should say of it, is a matter of `FlowModel` or of `ScheduledNoise`.
    A family is one of these, its components, and these hooks: `pack_latents` and `unpack_latents`, `encode_text` with
    `text_settings`, `call_transformer`, `make_pipeline`, and `name_layers` with its map of keys. Axes: `b` batch, `c`
    channels of packed latents, `h w` their sides, `l` tokens of an image.

    Attributes:
        tokenizer_of: text encoder -> its tokenizer.
    """

    trainable_components = ("transformer",)
    # whether last layers of text encoders can be left out, as `text_encoder_layer_skip` and its like say
    skips_layers: ClassVar[bool] = False
    # of the family, where its messages name it
    title: ClassVar[str] = ""
    # the text encoder that reads captions token by token; its option for their length counts
    long_text_encoder: ClassVar[str] = "text_encoder"
    # whether captions of a batch have different lengths, and a mask hides from attention what fills them up
    hides_padding: ClassVar[bool] = False
    # whether the family's pipeline does so in samples, too, with the prompt and the one that it steers away from
    prompts_side_by_side: ClassVar[bool] = False
    # why xformers can't be used with such masks
    without_xformers: ClassVar[str] = (
        "diffusers gives that library the mask of captions of different lengths as numbers that hide nothing"
    )
    # whether the VAE takes videos, of which an image is one frame
    vae_of_videos: ClassVar[bool] = False
    # what `encode_text` gives -> the pipeline's argument for it; what it has no argument for stays out
    pipeline_arguments: ClassVar[Mapping[str, str]] = {"hidden": "prompt_embeds"}
    # the pipeline's argument for what `pipeline_guidance` gives
    guidance_argument: ClassVar[str] = "guidance_scale"

    def __init__(self, config: TrainConfig, source: ModelSource, device: torch.device) -> None:
        super().__init__(config, source, device)
        self.tokenizer_of: dict[str, PreTrainedTokenizerBase] = {
            name.replace("tokenizer", "text_encoder"): source.tokenizer(name) for name in self.tokenizers
        }

    @classmethod
    def check_config(cls, config: TrainConfig) -> list[Problem]:
        found = super().check_config(config)
        for key in () if cls.skips_layers else _SKIPS:
            if getattr(config, key):
                text = f"has no meaning for {config.model_type}; set it to its default"
                found.append(Problem(key, text, (Remedy.of({key: default_of(TrainConfig, key)}),)))
        mechanism, together = config.attention_mechanism, cls.hides_padding and config.batch_size > 1
        if mechanism == AttentionMechanism.XFORMERS and (together or cls.prompts_side_by_side):
            where = f"batches of {config.batch_size}" if together else "samples, whose two prompts are one batch"
            text = f"found {mechanism} with {where}, but {cls.without_xformers}. Set it to SDP"
            remedies = [Remedy.of({"attention_mechanism": "SDP"})]
            if not cls.prompts_side_by_side:
                text += ", or batch_size to 1"
                remedies.append(Remedy.of({"batch_size": 1}))
            found.append(Problem("attention_mechanism", text, tuple(remedies)))
        return found

    # -- what a family says of itself -----------------------------------------------------------------------------

    @abstractmethod
    def pack_latents(self, latents: Tensor) -> Tensor:
        """The VAE's latents, float32, -> those of about unit variance to which noise is added; `h · w = l`."""

    @abstractmethod
    def unpack_latents(self, latents: Tensor) -> Tensor:
        """Undoes `pack_latents`."""

    @property
    @abstractmethod
    def packing(self) -> str:
        """Names everything of `pack_latents` that is no weight of the VAE; a part of cached latents' keys."""

    @abstractmethod
    def encode_text(self, captions: list[str], length: int | None) -> dict[str, Tensor]:
        """What `call_transformer` needs of each text, `[b, ...]`.

        Texts may have different lengths if `mask` `[b, n]` is among it, False where one is filled up with zeros.

        Args:
            captions: the texts.
            length: tokens that are read; None: as many as the published models do.
        """

    @abstractmethod
    def text_settings(self, component: str) -> list[Any]:
        """Everything on which a text encoder's `encode_text` depends beside weights and tokenizer, for JSON."""

    @abstractmethod
    def time_of(self, draw: Draw) -> Tensor:
        """How noisy images are, `[b]` on the device, as the transformer is told: a level or a timestep."""

    @abstractmethod
    def call_transformer(self, noised: Tensor, time: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """One call of the transformer.

        Args:
            noised: `[b, c, h, w]` in the transformer's format.
            time: of `time_of`: of flow matching `[b]` noise levels in 0 … 1, float32.
            conditions: of `encode_text`, and `placement`, see `predict_drawn`.

        Returns:
            What the model says, as `target` has it (of flow matching ε − x), `[b, c, h, w]`.
        """

    @abstractmethod
    def make_pipeline(self, scheduler: SchedulerMixin) -> DiffusionPipeline:
        """A diffusers pipeline around these very components, without text encoders: prompts come encoded."""

    @abstractmethod
    def sampler(self, sample: SampleConfig) -> DiffusionPipeline:
        """`make_pipeline` with the scheduler that a sample asks for. Raises UserError if there is no such scheduler."""

    def image_of_tokens(self, latents: Tensor, height: int, width: int) -> Tensor:
        """Latents as the pipeline has them, `[b, l, c]`, -> `[b, c, h, w]`."""
        return latents.transpose(1, 2).unflatten(2, (height, width))

    def token_count(self, shape: torch.Size) -> int:
        """Tokens of an image with latents of the shape `[b, c, h, w]`, from which its shift follows."""
        return math.prod(shape[2:])

    def pipeline_prompts(self, prompts: Mapping[str, Tensor]) -> dict[str, Any]:
        """What `encode_prompts` gives, `[1, ...]` each in the transformer's format, as the pipeline takes it."""
        return dict(prompts)

    def pipeline_guidance(self, scale: float) -> float:
        """`cfg_scale`, of which 1 is none, as the pipeline counts it."""
        return scale

    @property
    def standard_model(self) -> StandardModel:
        """Which of the family's published models this is."""
        (model,) = standard_models_of(self.config.model_type)
        return model

    def file_description(self) -> dict[str, str]:
        return {"architecture": self.standard_model.architecture, "base_version": self.standard_model.base_version}

    # -- components -----------------------------------------------------------------------------------------------

    @property
    def transformer(self) -> nn.Module:
        return self.components["transformer"]

    @property
    def vae(self) -> nn.Module:
        return self.components["vae"]

    @property
    def transformer_dtype(self) -> torch.dtype:
        return unquantized_dtype(self.transformer)

    # -- images and captions --------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """`[b, 3, H, W]` -> packed latents `[b, c, h, w]`."""
        pixels = pixels.to(device=self.device, dtype=self.vae.dtype)
        pixels = pixels[:, :, None] if self.vae_of_videos else pixels
        latents = self.vae.encode(pixels).latent_dist.mode().float()
        return self.pack_latents(latents[:, :, 0] if self.vae_of_videos else latents)

    @torch.no_grad()
    def decode_images(self, latents: Tensor) -> Tensor:
        """Undoes `encode_images`."""
        latents = self.unpack_latents(latents.float()).to(self.vae.dtype)
        latents = latents[:, :, None] if self.vae_of_videos else latents
        pixels = self.vae.decode(latents, return_dict=False)[0].float()
        return pixels[:, :, 0] if self.vae_of_videos else pixels

    def image_fingerprint(self) -> str:
        return f"{self.weights_fingerprint('vae')} {self.packing}"

    def encode_captions(self, captions: list[str]) -> dict[str, Tensor]:
        """In the text encoder's format: a caption may take 16 MB in bfloat16."""
        with nullcontext() if self.text_encoder_trained else torch.no_grad():
            return self.encode_text(captions, self.text_length())

    def text_length(self, sample: SampleConfig | None = None) -> int | None:
        """Tokens that captions are read with, or the prompts of a sample, as the config says; None: the model's own."""
        _, _, number = self.long_text_encoder.partition("text_encoder_")
        own = getattr(sample, f"text_encoder_{number or 1}_sequence_length") if sample else None
        return own or getattr(self.config, f"{self.long_text_encoder}_sequence_length")

    def text_fingerprint(self) -> str:
        return " | ".join(self._encoder_fingerprint(component) for component in self.tokenizer_of)

    def _encoder_fingerprint(self, component: str) -> str:
        tokenizer = self.tokenizer_of[component]
        words = [tokenizer.get_vocab(), tokenizer.chat_template, tokenizer.padding_side]
        known = json.dumps([self.text_settings(component), words], sort_keys=True)
        digest = hashlib.sha256(known.encode()).hexdigest()[:16]
        return f"{self.weights_fingerprint(component)} {digest}"

    # -- training -------------------------------------------------------------------------------------------------

    def denoise(self, noised: Tensor, conditions: Mapping[str, Tensor], draw: Draw) -> Tensor:
        autocast = torch.is_autocast_enabled(self.device.type)
        dtype = torch.get_autocast_dtype(self.device.type) if autocast else self.transformer_dtype
        return self.call_transformer(noised.to(dtype), self.time_of(draw), conditions)

    # -- samples --------------------------------------------------------------------------------------------------

    @property
    def steers_away(self) -> bool:
        """Whether samples are steered away from a second prompt."""
        return True

    def encode_prompt(self, text: str, sample: SampleConfig) -> dict[str, Tensor]:
        """`encode_text` of one prompt, as a sample's options `text_encoder_…` say."""
        return self.encode_text([text], self.text_length(sample))

    def encode_prompts(self, sample: SampleConfig) -> dict[str, Tensor]:
        texts = {"": sample.prompt} | ({"negative_": sample.negative_prompt} if self.steers_away else {})
        encoded = [self.encode_prompt(text, sample) for text in texts.values()]
        # each alone, as pipelines know no mask; they name the second prompt's arguments like the first's
        return {
            f"{prefix}{self.pipeline_arguments[name]}": value
            for prefix, tensors in zip(texts, encoded, strict=True)
            for name, value in tensors.items()
            if name in self.pipeline_arguments
        }

    def step_callback(self, report: Callable[[int, Tensor], None]) -> dict[str, Any]:
        """The pipeline's arguments by which it tells `report` the number of a step, from 0, and its latents."""

        def tell(pipeline, step: int, timestep, tensors: dict) -> dict:
            report(step, tensors["latents"])
            return tensors

        return {"callback_on_step_end": tell}

    @torch.no_grad()
    def sample(self, sample: SampleConfig, seed: int, on_step: Callable[[int, int], None]) -> Image.Image:
        steps, (height, width) = sample.diffusion_steps, self.sample_size(sample)
        pipeline, dtype = self.sampler(sample), self.transformer_dtype
        # masks stay boolean: attention adds numbers to its logits, and 0 and 1 hide nothing (diffusers' issue 12116)
        prompts = {
            name: tensor.to(dtype) if tensor.is_floating_point() else tensor
            for name, tensor in self.prompts(sample).items()
        }
        arguments: dict[str, Any] = self.pipeline_prompts(prompts)
        arguments |= {
            "height": height,
            "width": width,
            self.guidance_argument: self.pipeline_guidance(sample.cfg_scale),
        }
        drawn: list[Tensor] = []

        def report(step: int, latents: Tensor) -> None:
            on_step(step + 1, steps)
            drawn[:] = [latents]

        pipeline(
            **{**arguments, **self.sample_conditioning(sample)},
            **self.step_callback(report),
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(seed),
            # decoded here, as the VAE may have another number format; what pipelines return differs
            output_type="latent",
        )
        grid = self.image_grid
        pixels = self.decode_images(self.image_of_tokens(drawn[0], height // grid, width // grid))
        return pipeline.image_processor.postprocess(pixels)[0]


def unquantized_dtype(module: nn.Module) -> torch.dtype:
    """That of a norm or bias: matrices may be quantized."""
    return next(p.dtype for p in module.parameters() if p.dim() == 1 and p.is_floating_point())


def of_one_length(prompts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Encoded prompts and their masks `[1, n, …]`, filled up with zeros to the length of the longest."""
    longest = max(tensor.shape[1] for tensor in prompts.values())
    return {
        name: torch.cat([tensor, tensor.new_zeros(1, longest - tensor.shape[1], *tensor.shape[2:])], dim=1)
        for name, tensor in prompts.items()
    }
