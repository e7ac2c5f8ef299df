import json
from typing import Any

from modules.model.clip_tokenizer import clip_tokenizer
from modules.model.ModelSource import empty_module
from modules.model.single_file import RESOURCES, SDXL, STANDARD, TOKENIZERS, XL_CLASSES, config_file
from modules.util.enum.ModelType import ModelType
from modules.util.UserError import UserError

import torch
from torch import nn

import diffusers
from transformers import CLIPTextConfig, PreTrainedModel, PreTrainedTokenizerBase


class StandardSource:
    """The standard model of a type without its weights, from `resources/`: enough to plan a run. See `ModelSource`.

    Args:
        model_type: of the run.

    Raises:
        UserError: there are no files of this type in `resources/`.
    """

    def __init__(self, model_type: ModelType) -> None:
        if model_type not in STANDARD:
            raise UserError(
                f"base_model_name: the model can't be reached, and for {model_type} there is no description of it "
                "here. Name a folder or file of it, or go online: only its small configuration files are loaded."
            )
        self.name = f"the standard model of {model_type}"
        self._folder, self._changes = STANDARD[model_type]
        self._empty: dict[str, nn.Module] = {}
        self.classes = {part: kind for part, kind in XL_CLASSES.items() if self._folder == SDXL or part[-1] != "2"}

    def module(self, part: str, dtype: torch.dtype) -> nn.Module:
        raise UserError(f"{self.name} has no weights here.")

    def empty(self, part: str) -> nn.Module:
        if part not in self._empty:
            kind, config = self.classes[part], self._config(part)
            own = CLIPTextConfig.from_dict(config) if issubclass(kind, PreTrainedModel) else config
            self._empty[part] = empty_module(kind, own)
        return self._empty[part]

    def tokenizer(self, part: str) -> PreTrainedTokenizerBase:
        assert part in TOKENIZERS
        return clip_tokenizer(str(self._config(part)["pad_token"]))

    def scheduler_config(self) -> dict[str, Any]:
        config = self._config("scheduler")
        return dict(getattr(diffusers, config["_class_name"]).from_config(config).config)

    def _config(self, part: str) -> dict[str, Any]:
        config = json.loads((RESOURCES / self._folder / config_file(part)).read_text(encoding="utf-8"))
        return {**config, **self._changes.get(part, {})}
