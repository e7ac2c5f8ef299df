import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modules.model.clip_tokenizer import clip_tokenizer
from modules.model.families import facts_of, standard_models_of
from modules.model.ModelSource import empty_module
from modules.model.single_file import RESOURCES, TOKENIZERS, config_file
from modules.util.enum.ModelType import ModelType
from modules.util.UserError import UserError

import torch
from torch import nn

import diffusers
import transformers
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class _Description:
    """Where a model is described.

    Attributes:
        folder: in `resources/`; what it lacks is in the one above.
        components: names of the components.
        changes: component -> options that differ.
    """

    folder: str
    components: Sequence[str]
    changes: Mapping[str, Mapping[str, object]] = field(default_factory=dict)


class StandardSource:
    """The standard model of a type without its weights, from `resources/`: enough to plan a run. See `ModelSource`.

    Args:
        model_type: of the run.
        base_model_name: tells which model it is where the type has several.

    Raises:
        UserError: there are no files of this type in `resources/`, or the name does not tell which of them.
    """

    def __init__(self, model_type: ModelType, base_model_name: str = "") -> None:
        self._model = _described(model_type, base_model_name)
        self.name = f"the standard model of {model_type}"
        if len(standard_models_of(model_type)) > 1:
            self.name += f" ({self._model.folder.rsplit('/', 1)[-1]})"
        self._empty: dict[str, nn.Module] = {}
        self.classes = {component: self._class(component) for component in self._model.components}

    def module(self, component: str, dtype: torch.dtype) -> nn.Module:
        raise UserError(f"{self.name} has no weights here.")

    def files(self, component: str) -> list[Path]:
        return []

    def empty(self, component: str) -> nn.Module:
        if component not in self._empty:
            kind, config = self.classes[component], self._config(component)
            own = kind.config_class.from_dict(config) if issubclass(kind, PreTrainedModel) else config
            self._empty[component] = empty_module(kind, own)
        return self._empty[component]

    def tokenizer(self, component: str) -> "PreTrainedTokenizerBase | FullLengthTokenizer":
        assert component in TOKENIZERS
        if self._file(component) is None:
            return FullLengthTokenizer()
        return clip_tokenizer(str(self._config(component)["pad_token"]))

    def preparer(self, component: str) -> Any:
        config = self._config(component)
        return getattr(transformers, config["image_processor_type"]).from_dict(config)

    def scheduler_config(self) -> dict[str, Any]:
        config = self._config("scheduler")
        return dict(getattr(diffusers, config["_class_name"]).from_config(config).config)

    def index(self) -> dict[str, Any]:
        """What a `model_index.json` would say besides the components, where models of a type differ in that."""
        return dict(self._model.changes.get("index", {}))

    def _class(self, component: str) -> type[nn.Module]:
        config = self._config(component)
        if "_class_name" in config:
            return getattr(diffusers, config["_class_name"])
        return getattr(transformers, config["architectures"][0])

    def _file(self, component: str) -> Path | None:
        folder = RESOURCES / self._model.folder
        return next(
            (f for f in (folder / config_file(component), folder.parent / config_file(component)) if f.is_file()), None
        )

    def _config(self, component: str) -> dict[str, Any]:
        config = json.loads(self._file(component).read_text(encoding="utf-8"))
        return {**config, **self._model.changes.get(component, {})}


class FullLengthTokenizer:
    """Stands for the tokenizer of a family that reads captions of any length, with captions of full length.

    What a run needs depends on how many tokens there are and not on which, so that plans need none of the vocabularies,
    which are larger than all the rest of a model's description.
    """

    def apply_chat_template(self, conversations: Sequence[Any], *, max_length: int, **options: Any) -> BatchEncoding:
        """`max_length` tokens for each conversation. The options are those of a tokenizer of transformers."""
        # tables, which have their numbers where other tensors have none: families read lengths and places from them
        ids, mask = (torch.full((len(conversations), max_length), value) for value in (0, 1))
        return BatchEncoding({"input_ids": ids, "attention_mask": mask})

    def __call__(self, texts: Sequence[str], *, max_length: int, **options: Any) -> BatchEncoding:
        """The same for each text."""
        return self.apply_chat_template(texts, max_length=max_length, **options)


def _described(model_type: ModelType, base_model_name: str) -> _Description:
    # the smaller ones first: a name with 4b in it is meant so, whatever else it says
    known = standard_models_of(model_type)[::-1]
    start = "base_model_name: the model can't be reached, and "
    if not known:
        raise UserError(
            f"{start}for {model_type} there is no description of it here. Name a folder or file of it, or go online: "
            "only its small configuration files are loaded."
        )
    own = known if len(known) == 1 else [model for model in known if model.mark in base_model_name.lower()]
    if not own:
        raise UserError(
            f"{start}its name {base_model_name} does not tell which one of {model_type} it is. Name a folder of it, go "
            f"online, or take a name with {', '.join(model.mark for model in known)} in it."
        )
    return _Description(own[0].folder, facts_of(model_type).components, own[0].types[model_type])
