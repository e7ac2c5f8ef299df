"""Models that describe an image in words: BLIP, BLIP-2, Florence-2, chat models that see, and taggers.

Configuration, processor and model are of the classes that transformers has for the type in `config.json`. Code that a
model brings along (`auto_map`) is never run.
"""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from modules.model.hub import Hub, Snapshot
from modules.model.hub_components import fetch_settings
from modules.model.load_errors import LOAD_ERRORS
from modules.tool.caption_names import CHAT_PROMPT, FLORENCE_TASK, FLORENCE_TASKS, MOST_TOKENS, THRESHOLD
from modules.tool.model_place import KEY, file_names, find_model
from modules.tool.tagger import MODEL_FILE, TAGS_FILE, Tagger
from modules.tool.vision_model import LOCAL, find_weights, load_weights, read_config, reason, told
from modules.util.out_of_memory import is_out_of_memory
from modules.util.UserError import UserError

import torch

from jinja2 import TemplateError
from PIL import Image
from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

MOST_PIXELS = 1 << 20
"""Larger images are scaled down first: chat models read a token for some hundred pixels, and a photo has millions."""

KINDS = "a BLIP, BLIP-2 or Florence-2 model, a chat model that sees, or a tagger (model.onnx with selected_tags.csv)"
VIDEOS, ADAPTER = "video_processor", "adapter_config.json"
HINTS = {"florence2": " florence-community/Florence-2-base and -large need none."}


@dataclass(frozen=True)
class Asked:
    """What a model is asked.

    Attributes:
        prompt: BLIP: how the caption begins; Florence-2: a task; chat models: an instruction. Empty: the kind's own.
        most_tokens: of the answer, at least 1.
        threshold: of taggers, 0 to 1: tags below are left out.
    """

    prompt: str = ""
    most_tokens: int = MOST_TOKENS
    threshold: float = THRESHOLD


class Captioner(Protocol):
    """Describes images."""

    def describe(self, image: Image.Image) -> str:
        """The caption of an 8-bit RGB image, one line, possibly empty. The same image has the same caption.

        Raises:
            UserError: memory is too little, or its files do not fit one another.
        """


def load_captioner(name: str, device: torch.device, hub: Hub, asked: Asked) -> Captioner:
    """A captioning model, ready to describe.

    Args:
        name: a folder, or a name on the hub.
        device: that computes. On CUDA in bfloat16, elsewhere in float32; taggers always compute on the CPU.
        hub: as the run sees it.
        asked: of each image.

    Raises:
        UserError: it can't be had or loaded, is of no kind that is known here, or can't be asked this.
    """
    place = find_model(name, hub, KINDS)
    if isinstance(place, Path) and not place.is_dir():
        raise UserError(f"{KEY}: {name} is a file, expected the folder of {KINDS}, or its name on the hub.")
    names = file_names(place)
    if TAGS_FILE in names:
        if asked.prompt:
            raise UserError(f"--prompt: {name} is a tagger, which can't be asked anything. Leave the prompt out.")
        if isinstance(place, Snapshot):
            place.fetch([TAGS_FILE, MODEL_FILE], "the tagger")
            place = place.folder
        return Tagger(place, asked.threshold)
    if ADAPTER in names:
        # its base would be loaded by a name that it gives
        raise UserError(f"{KEY}: {name} is an adapter for another model, expected {KINDS}.")
    if isinstance(place, Snapshot):
        fetch_settings(place, [""])
    folder = place.folder if isinstance(place, Snapshot) else place
    config, remark = _read_config(name, folder)
    with told(name, remark):
        processor = _processor(config, folder)
    kind = _kind(name, config, processor)
    kind.check(asked.prompt)
    with told(name, remark):
        weights = find_weights(place, names, "the captioning model")
        kind_of_model = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        model = load_weights(kind_of_model, config, folder, weights, device, dtype)
    return kind(model, processor, asked)


class TransformersCaptioner:
    """What the models of transformers share.

    Args:
        model: in eval mode on its device.
        processor: makes its inputs.
        asked: of each image.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, asked: Asked) -> None:
        self.model, self.processor, self.asked = model, processor, asked

    @classmethod
    def check(cls, prompt: str) -> None:
        """Raises UserError if this kind can't be asked this."""

    def describe(self, image: Image.Image) -> str:
        try:
            with torch.inference_mode():
                return " ".join(self.answer(_scaled(image)).split())
        # a prompt that is too long, settings or a template that do not fit the model
        except (*LOAD_ERRORS, LookupError, MemoryError, TemplateError) as error:
            if not is_out_of_memory(error):
                raise UserError(f"The model can't describe an image: {reason(error)}.") from error
            raise UserError(
                "There is too little memory to describe an image. Take a smaller model, end other programs on the "
                "GPU, or compute with --device cpu, which is slow."
            ) from error

    def answer(self, image: Image.Image) -> str:
        """What the model says of an image."""
        raise NotImplementedError

    def generate(self, inputs: Any) -> torch.Tensor:
        """Token ids [1, length], greedy or by the beams of the model's own settings."""
        inputs = inputs.to(self.model.device, self.model.dtype)
        return self.model.generate(**inputs, do_sample=False, max_new_tokens=self.asked.most_tokens)


class BlipCaptioner(TransformersCaptioner):
    """BLIP and BLIP-2, which go on from a text."""

    def answer(self, image: Image.Image) -> str:
        text = {"text": self.asked.prompt} if self.asked.prompt else {}
        ids = self.generate(self.processor(images=image, **text, return_tensors="pt"))
        return self.processor.batch_decode(ids, skip_special_tokens=True)[0]


class FlorenceCaptioner(TransformersCaptioner):
    """Florence-2, which does one of a list of tasks."""

    @classmethod
    def check(cls, prompt: str) -> None:
        if prompt and prompt not in FLORENCE_TASKS:
            raise UserError(
                f"--prompt: found {prompt!r}, but Florence-2 takes one of its tasks: {', '.join(FLORENCE_TASKS)}."
            )

    def answer(self, image: Image.Image) -> str:
        task = self.asked.prompt or FLORENCE_TASK
        ids = self.generate(self.processor(images=image, text=task, return_tensors="pt"))
        text = self.processor.batch_decode(ids, skip_special_tokens=False)[0]
        # its own clean-up knows the other two marks
        text = text.replace(self.processor.tokenizer.pad_token or "<pad>", "")
        return self.processor.post_process_generation(text=text, task=task, image_size=image.size)[task]


class ChatCaptioner(TransformersCaptioner):
    """Models that answer an instruction about an image."""

    def answer(self, image: Image.Image) -> str:
        text = self.asked.prompt or CHAT_PROMPT
        said = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}]
        inputs = self.processor.apply_chat_template(
            said, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        ids = self.generate(inputs)[:, inputs["input_ids"].shape[1] :]
        # some think aloud first
        return self.processor.batch_decode(ids, skip_special_tokens=True)[0].rpartition("</think>")[2]


OWN_KINDS = {"blip": BlipCaptioner, "blip-2": BlipCaptioner, "florence2": FlorenceCaptioner}
"""Type in `config.json` -> kind, of those that are no chat models."""


def _kind(name: str, config: PreTrainedConfig, processor: ProcessorMixin) -> type[TransformersCaptioner]:
    if (kind := OWN_KINDS.get(config.model_type)) is not None:
        return kind
    if not processor.chat_template:
        raise UserError(
            f"{KEY}: {name} is of the type {config.model_type} and has no chat template, so it can't be asked to "
            f"describe an image. Expected {KINDS}."
        )
    return ChatCaptioner


def _read_config(name: str, folder: Path) -> tuple[PreTrainedConfig, str]:
    """See `read_config`. UserError if it is no captioning model."""
    config, remark = read_config(name, folder, KINDS, HINTS)
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING or type(config) not in PROCESSOR_MAPPING:
        raise UserError(f"{KEY}: {name} is of the type {config.model_type}, expected {KINDS}.{remark}")
    return config, remark


def _processor(config: PreTrainedConfig, folder: Path) -> ProcessorMixin:
    kind = PROCESSOR_MAPPING[type(config)]
    videos = inspect.signature(kind.__init__).parameters.get(VIDEOS)
    # where it has no default, the model can't do without it
    if videos is not None and videos.default is None:
        kind = _without_videos(kind)
    return kind.from_pretrained(folder, **LOCAL)


def _without_videos(kind: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """A processor without its part for videos: that needs torchvision, and no video is ever shown."""

    class Processor(kind):
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in super().get_attributes() if name != VIDEOS]

    return Processor


def _scaled(image: Image.Image) -> Image.Image:
    """An image of at most `MOST_PIXELS`."""
    share = (MOST_PIXELS / (image.width * image.height)) ** 0.5
    if share >= 1:
        return image
    size = max(1, round(image.width * share)), max(1, round(image.height * share))
    return image.resize(size, Image.Resampling.LANCZOS)
