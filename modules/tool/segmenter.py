"""Models of transformers that find something in a picture: CLIPSeg by a text, and segmentation by labels."""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from modules.model.hub import Snapshot
from modules.model.load_errors import LOAD_ERRORS
from modules.tool.mask_names import KINDS
from modules.tool.model_place import KEY
from modules.tool.vision_model import LOCAL, find_weights, load_weights, read_config, reason, told
from modules.util.out_of_memory import is_out_of_memory
from modules.util.UserError import UserError

import torch

import numpy as np
from PIL import Image
from transformers import AutoImageProcessor, CLIPSegForImageSegmentation, CLIPSegProcessor, PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING,
)

HINTS = {"": " For backgrounds name an ONNX copy, such as onnx-community/BiRefNet_lite-ONNX."}
CLIPSEG, QUERIES = "clipseg", ("mask2former", "maskformer")
MOVING = ("do_center_crop", "do_pad")
MOST_NAMED = 40


def load_segmenter(
    name: str, place: Path | Snapshot, names: Sequence[str], device: torch.device, prompt: str
) -> "TransformersMasker":
    """A model of transformers that makes masks; see `load_masker`.

    Args:
        name, device, prompt: as there.
        place: where its files are, the settings fetched.
        names: of its files.
    """
    folder = place.folder if isinstance(place, Snapshot) else place
    config, remark = read_config(name, folder, KINDS, HINTS)
    kind, model_class = _kind(name, config, remark)
    with told(name, remark):
        processor = kind.processor(folder)
    asked = kind.read(config, prompt)
    with told(name, remark):
        weights = find_weights(place, list(names), "the mask model")
        # they are small, and edges are worth more than speed
        model = load_weights(model_class, config, folder, weights, device, torch.float32)
    return kind(model, processor, asked)


def _kind(name: str, config: PreTrainedConfig, remark: str) -> tuple[type["TransformersMasker"], type]:
    """Which masker a type of model is for, and its class in transformers."""
    if config.model_type == CLIPSEG:
        return ClipSegMasker, CLIPSegForImageSegmentation
    if config.model_type in QUERIES and type(config) in MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING:
        return QueryMasker, MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING[type(config)]
    if type(config) in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING:
        return LabelMasker, MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING[type(config)]
    raise UserError(f"{KEY}: {name} is of the type {config.model_type}, expected {KINDS}.{remark}")


class TransformersMasker:
    """What the models of transformers share.

    Args:
        model: in eval mode on its device.
        processor: makes its inputs.
        asked: what is looked for, see `read`.
    """

    def __init__(self, model: Any, processor: Any, asked: Any) -> None:
        self.model, self.asked, self._processor = model, asked, processor

    @classmethod
    def read(cls, config: PreTrainedConfig, prompt: str) -> Any:
        """What a prompt asks of a model. Raises UserError if it can't be asked this."""
        raise NotImplementedError

    @classmethod
    def processor(cls, folder: Path) -> Any:
        """What makes the model's inputs."""
        return _in_place(AutoImageProcessor.from_pretrained(folder, backend="pil", **LOCAL))

    def segment(self, image: Image.Image) -> np.ndarray:
        try:
            with torch.inference_mode():
                return self.find(image).clamp(0, 1).cpu().numpy()
        except (*LOAD_ERRORS, LookupError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise UserError(f"The model can't segment a picture: {reason(error)}.") from error
            raise UserError(
                "There is too little memory to segment a picture. Take a smaller model, end other programs on the "
                "GPU, or compute with --device cpu, which is slow."
            ) from error

    def find(self, image: Image.Image) -> torch.Tensor:
        """`[h, w]`, from 0 to 1."""
        raise NotImplementedError

    def answer(self, **inputs: Any) -> Any:
        """What the model says of what its processor made of a picture."""
        made = self._processor(**inputs, return_tensors="pt")
        return self.model(**{key: value.to(self.model.device) for key, value in made.items()})


class ClipSegMasker(TransformersMasker):
    """CLIPSeg, which finds what a text says; of several texts, where one of them is."""

    @classmethod
    def read(cls, config: PreTrainedConfig, prompt: str) -> list[str]:
        texts = [text.strip() for text in prompt.split(",") if text.strip()]
        if not texts:
            raise UserError("--prompt: this model finds what a text says. Say what, such as: a person")
        return texts

    @classmethod
    def processor(cls, folder: Path) -> CLIPSegProcessor:
        made = CLIPSegProcessor.from_pretrained(folder, **LOCAL)
        _in_place(made.image_processor)
        return made

    def find(self, image: Image.Image) -> torch.Tensor:
        found = [self.answer(text=[text], images=[image]).logits for text in self.asked]
        return torch.stack([logits.reshape(logits.shape[-2:]) for logits in found]).sigmoid().amax(0)


class LabelMasker(TransformersMasker):
    """Semantic segmentation: each pixel has one of a list of labels."""

    @classmethod
    def read(cls, config: PreTrainedConfig, prompt: str) -> list[int]:
        labels = {_plain(label): int(index) for index, label in config.id2label.items()}
        known = ", ".join(list(labels)[:MOST_NAMED]) + (" …" if len(labels) > MOST_NAMED else "")
        if not prompt.strip():
            raise UserError(f"--prompt: this model finds labels. Name those that are wanted, of: {known}")
        # some labels have commas of their own
        if _plain(prompt) in labels:
            return [labels[_plain(prompt)]]
        wanted = [_plain(one) for one in prompt.split(",") if one.strip()]
        for one in wanted:
            if one not in labels:
                near = get_close_matches(one, labels, n=3)
                hint = f"Did you mean {' or '.join(near)}?" if near else f"It has: {known}"
                raise UserError(f"--prompt: this model has no label {one!r}. {hint}")
        return [labels[one] for one in wanted]

    def find(self, image: Image.Image) -> torch.Tensor:
        return self.answer(images=image).logits[0].softmax(0)[self.asked].sum(0)


class QueryMasker(LabelMasker):
    """Mask2Former and MaskFormer: queries, each with a label and a mask.

    value(label, pixel) = min(1, Σ over queries of softmax(class logits)[label] · sigmoid(mask logits)[pixel])
    """

    def find(self, image: Image.Image) -> torch.Tensor:
        said = self.answer(images=image)
        # the last class is that of queries that found nothing
        classes = said.class_queries_logits[0].softmax(-1)[:, :-1]
        return torch.einsum("q,qhw->hw", classes[:, self.asked].sum(1), said.masks_queries_logits[0].sigmoid())


def _in_place(processor: Any) -> Any:
    """Without what moves the picture against its mask."""
    for option in MOVING:
        if hasattr(processor, option):
            setattr(processor, option, False)
    return processor


def _plain(label: str) -> str:
    return " ".join(label.lower().split())
