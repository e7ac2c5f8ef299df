"""Qwen-Image-Edit and its successors 2509 and 2511 ("Plus"), which edit an image that they are shown.

They are Qwen-Image, but that the text encoder reads the picture together with the caption, and the transformer the
picture's latents behind the noised ones. Axes: `b` batch, `c` channels of packed latents, `h w` their sides, `n`
tokens.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modules.model.families import QWEN_EDIT, StandardModel, facts_of
from modules.model.ModelSource import FolderSource, ModelSource
from modules.model.native_file import NativeTensor, fill_from_file
from modules.model.QwenModel import QwenModel
from modules.model.QwenTexts import BESIDE_TEXT, NOT_READ
from modules.model.StandardSource import StandardSource
from modules.model.weights_file import WeightsFile
from modules.util.CheckpointTensor import CheckpointTensor
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ConditioningSource import ConditioningSource
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.UserError import UserError

import torch
from torch import Tensor, nn

from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, QwenImagePipeline
from PIL import Image
from transformers import BatchEncoding, Qwen2_5_VLModel, Qwen2VLImageProcessorPil

# the text that the models were trained with, around picture and caption
BEFORE = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, objects, "
    "background), then explain how the user's text instruction should alter or modify the image. Generate a new image "
    "that meets the user's requirements while maintaining consistency with the original input where appropriate."
    "<|im_end|>\n<|im_start|>user\n"
)
PICTURE, NUMBERED = "<|image_pad|>", "Picture 1: "
# pixels of the picture that text encoders are shown by diffusers' pipelines
WHOLE_AREA, SMALL_AREA = 1024 * 1024, 384 * 384
PLUS = "QwenImageEditPlusPipeline"
# by this name without content files tell that what is shown is free of noise
CLEAN_MARK = "__index_timestep_zero__"
_HEAD = BESIDE_TEXT[-1]
# pattern of names in folders, published ones and those that transformers 5 writes -> what they are called here
_FOLDER_NAMES = {
    r"^model\.(language_model|visual)\.": r"\1.",
    r"^model\.(?!language_model\.|visual\.)": "language_model.",
}


class QwenPictureEncoder(Qwen2_5_VLModel):
    """Qwen2.5-VL without its head, which stays in its files."""

    _keys_to_ignore_on_load_unexpected = NOT_READ[-1:]

    @classmethod
    def from_pretrained(cls, *given: Any, **named: Any) -> Any:
        # transformers knows the names of files by those of its own classes
        return super().from_pretrained(*given, key_mapping=_FOLDER_NAMES, **named)


class _EditPipeline(QwenImagePipeline):
    """Draws as diffusers' pipelines for editing do, whose own choose another size, and take no latents."""

    def encode_prompt(self, *given: Any, prompt_embeds: Tensor, **named: Any) -> tuple[Tensor, None]:
        """The prompt as it was read, uncut: the picture's tokens are among it."""
        return prompt_embeds, None

    @torch.no_grad()
    def __call__(self, *given: Any, shown: Tensor, **named: Any) -> Any:
        """`shown` `[1, c, h, w]`: packed latents of the picture."""
        with _showing(self.transformer, shown):
            return super().__call__(*given, **named)


class QwenEditModel(QwenModel):
    """Which of its models it is follows from the base model's folder: Plus is told by the pipeline there.

    What the text encoder sees has the size of the shown image, at most that of diffusers' pipeline; in Plus always
    that.
    """

    title = "Qwen-Image-Edit"
    model_types = QWEN_EDIT.model_types
    sample_defaults = QWEN_EDIT.sample_defaults
    conditioning = ConditioningSource.FILE
    captions_see_conditioning = True
    modules = QwenModel.modules | {"text_encoder": QwenPictureEncoder}
    preparers = {"processor": Qwen2VLImageProcessorPil}
    of_others = ("use_additional_t_cond", "use_layer3d_rope")
    cut_tokens = 64

    def __init__(self, config: TrainConfig, source: ModelSource, device: torch.device) -> None:
        super().__init__(config, source, device)
        self.processor: Qwen2VLImageProcessorPil = source.preparer("processor")

    @property
    def is_plus(self) -> bool:
        """Whether it is one of the successors, whose pictures have numbers in the text."""
        assert isinstance(self.source, FolderSource | StandardSource)
        return self.source.index().get("_class_name") == PLUS

    @property
    def shows_clean(self) -> bool:
        """Whether the transformer is told that what it is shown is free of noise, as 2511 is."""
        return bool(self.layers_of("transformer").config.zero_cond_t)

    @property
    def standard_model(self) -> StandardModel:
        facts = facts_of(self.config.model_type)
        assert facts is not None
        return facts.standard_models[self.is_plus + self.shows_clean]

    def read_component(self, path: Path, component: str, dtype: torch.dtype) -> nn.Module:
        if component == "vae":
            return super().read_component(path, component, dtype)
        module = self.source.empty(component)
        if component == "transformer":
            _check_mark(path, bool(module.config.zero_cond_t))
            return fill_from_file(path, module, dtype, NativeTensor, (CLEAN_MARK,))
        module = fill_from_file(path, module, dtype, _published, (_HEAD,))
        # frequencies are computed, and in no file
        texts, pictures = module.language_model, module.visual
        texts.rotary_emb = type(texts.rotary_emb)(config=texts.config)
        pictures.rotary_pos_emb = type(pictures.rotary_pos_emb)(pictures.config)
        return module

    # -- captions -------------------------------------------------------------------------------------------------

    @property
    def before(self) -> str:
        return f"{BEFORE}{NUMBERED if self.is_plus else ''}<|vision_start|>{PICTURE}<|vision_end|>"

    def text_settings(self, component: str) -> list[Any]:
        return [*super().text_settings(component), WHOLE_AREA, SMALL_AREA, self.processor.to_json_string()]

    def read(self, captions: Sequence[str], **options: Any) -> BatchEncoding:
        # in a caption it would stand for a second picture
        return super().read([caption.replace(PICTURE, "") for caption in captions], **options)

    def encode_text(self, captions: list[str], length: int | None) -> dict[str, Tensor]:
        raise NotImplementedError(f"{self.title} reads captions together with a picture: encode_instructions")

    def encode_instructions(self, captions: list[str], pixels: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            return self._read_both(captions, pixels, self.text_length())

    def encode_prompts(self, sample: SampleConfig) -> dict[str, Tensor]:
        """With the picture's latents, as the VAE has room to encode it while the transformer is not there."""
        pixels, _ = self.sample_pictures(sample)
        with torch.autocast(self.device.type, enabled=False):
            shown = self.encode_images(pixels)
        return {**super().encode_prompts(sample), "shown": shown}

    def encode_prompt(self, text: str, sample: SampleConfig) -> dict[str, Tensor]:
        return self._read_both([text], self.sample_pictures(sample)[0], self.text_length(sample))

    def _read_both(self, captions: list[str], pixels: Tensor, length: int | None) -> dict[str, Tensor]:
        """`hidden` `[b, n, d]` in the text encoder's format, with the picture's tokens, and `mask` `[b, n]`.

        Args:
            captions: the texts.
            pixels: `[b, 3, h, w]` in [-1, 1].
            length: tokens of a text, of which those of the picture are none.
        """
        seen = self.processor([self._seen(image) for image in pixels], return_tensors="pt")
        count = int(seen["image_grid_thw"][0].prod()) // self.processor.merge_size**2
        tokens = self.tokenize(captions, length, padding="longest", padding_side="right")
        picture = self.text_encoder.config.image_token_id
        ids, mask = tokens.input_ids, tokens.attention_mask
        # the texts begin alike; the tokens of a plan have no meaning
        place = (ids[0] == picture).long().argmax() if bool((ids[0] == picture).any()) else self.cut_tokens
        widened = [
            torch.cat([own[:, :place], own.new_full((len(own), count), value), own[:, place + 1 :]], dim=1)
            for own, value in ((ids, picture), (mask, 1), (torch.zeros_like(ids), 1))
        ]
        ids, mask, kinds = widened
        hidden = self.text_encoder(
            input_ids=ids,
            attention_mask=mask,
            pixel_values=seen["pixel_values"].to(self.device),
            image_grid_thw=seen["image_grid_thw"].to(self.device),
            # without it transformers gives the picture's tokens no rows and columns, as in diffusers' issue 14194
            mm_token_type_ids=kinds,
            use_cache=False,
        ).last_hidden_state[:, self.cut_tokens :]
        mask = mask[:, self.cut_tokens :].bool()
        return {"hidden": hidden * mask[..., None], "mask": mask}

    def _seen(self, pixels: Tensor) -> Image.Image:
        """What the text encoder is shown of `[3, h, w]`."""
        levels = ((pixels / 2 + 0.5) * 255).round().clamp(0, 255).byte().movedim(0, -1)
        image = Image.fromarray(levels.cpu().numpy())
        area = SMALL_AREA if self.is_plus else WHOLE_AREA
        if not self.is_plus and image.width * image.height <= area:
            return image
        ratio = image.width / image.height
        width = math.sqrt(area * ratio)
        sides = (max(32, round(side / 32) * 32) for side in (width, width / ratio))
        return image.resize(tuple(sides), Image.Resampling.LANCZOS)

    # -- training -------------------------------------------------------------------------------------------------

    def image_tokens(self, noised: Tensor, conditions: Mapping[str, Tensor]) -> dict[str, Any]:
        return _with_shown(super().image_tokens(noised, conditions), conditions["conditioning_latents"])

    # -- samples and files ----------------------------------------------------------------------------------------

    def make_pipeline(self, scheduler: FlowMatchEulerDiscreteScheduler) -> DiffusionPipeline:
        return _EditPipeline(scheduler, self.vae, None, None, self.transformer)

    def pipeline_prompts(self, prompts: Mapping[str, Tensor]) -> dict[str, Any]:
        return dict(prompts)

    def pipeline_conditioning(self, pixels: Tensor, mask: Tensor | None) -> dict[str, Any]:
        # it is among the prompts
        return {}

    def checkpoint_tensors(self, model_format: ModelFormat) -> list[CheckpointTensor]:
        marks = [CheckpointTensor(CLEAN_MARK, ())] if self.shows_clean else []
        return super().checkpoint_tensors(model_format) + marks


def _published(name: str) -> NativeTensor:
    """Where published files have a tensor of `QwenPictureEncoder`."""
    return NativeTensor(f"model.{name.removeprefix('language_model.')}" if name.startswith("language_model.") else name)


def _check_mark(path: Path, clean: bool) -> None:
    """UserError if a file is of 2511 and the base model is not. The other way round files may lack the mark."""
    if not clean and any(name.endswith(CLEAN_MARK) for name in WeightsFile(path).shapes):
        raise UserError(
            f"transformer.model_name: {path} is of Qwen-Image-Edit 2511, but the base model is an older one. Name a "
            "folder of Qwen-Image-Edit-2511 as base_model_name."
        )


def _with_shown(arguments: Mapping[str, Any], shown: Tensor) -> dict[str, Any]:
    """Arguments of the transformer with the tokens of what is shown, `[b, c, h, w]`, in a second frame."""
    noised = arguments["hidden_states"]
    tokens = shown.flatten(2).transpose(1, 2).to(noised)
    return {
        **arguments,
        "hidden_states": torch.cat([noised, tokens], dim=1),
        "img_shapes": [[*frames, (1, *shown.shape[2:])] for frames in arguments["img_shapes"]],
    }


@contextmanager
def _showing(transformer: nn.Module, shown: Tensor) -> Iterator[None]:
    """Meanwhile the transformer reads these latents behind those that it is given, and answers for the latter alone."""
    lengths: list[int] = []

    def add(_: nn.Module, given: tuple, named: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        lengths[:] = [named["hidden_states"].shape[1]]
        return given, _with_shown(named, shown)

    def cut(_: nn.Module, given: tuple, output: tuple) -> tuple:
        return (output[0][:, : lengths[0]], *output[1:])

    hooks = transformer.register_forward_pre_hook(add, with_kwargs=True), transformer.register_forward_hook(cut)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
