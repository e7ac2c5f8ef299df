from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Self

from modules.model.BaseModel import BaseModel
from modules.modelSaver.embedding_file import fit_embedding
from modules.util.config.TrainConfig import TrainConfig
from modules.util.config.TrainEmbeddingConfig import TrainEmbeddingConfig
from modules.util.dtypes import FLOAT_DTYPES
from modules.util.enum.ParameterRole import ParameterRole
from modules.util.ParameterInfo import ParameterInfo, set_parameter_info
from modules.util.UserError import UserError

import torch
from torch import Tensor, nn


class EmbeddingSet:
    """One embedding: vectors `[tokens, width]` in each text encoder of a model; see `TrainedSet`.

    With `preserve_embedding_norm` an encoder sees each vector v as c·v/‖v‖, c the mean length of its own vectors; v
    itself is trained freely.

    Args:
        name: of the set in its run.
        model: whose captions and prompts know the placeholder from now on.
        config: of the run.
        own: the embedding's options.

    Raises:
        UserError: the family has no embeddings, or the file to start from can't be read or does not fit.
    """

    def __init__(self, name: str, model: BaseModel, config: TrainConfig, own: TrainEmbeddingConfig) -> None:
        if not model.embedding_keys:
            raise UserError(f"Embeddings: {config.model_type} has no text encoder to which words can be added.")
        self.name, self.placeholder = name, own.placeholder
        self.notes: list[str] = []
        self._keys = model.embedding_keys
        self._parameters: dict[str, nn.Parameter] = {}
        self._start_vectors: dict[str, Tensor] = {}
        self._in_effect: Mapping[str, Tensor] = self._parameters
        self._lengths: dict[str, float] = {}
        dtype = FLOAT_DTYPES[config.embedding_weight_dtype]
        for component, start in self._start(model, own).items():
            layer = "text_model.embeddings.token_embedding"
            self._parameters[component] = parameter = nn.Parameter(start.to(model.device, dtype))
            self._start_vectors[component] = parameter.detach().clone()
            set_parameter_info(parameter, ParameterInfo(ParameterRole.INPUT, component, layer, f"{name}.{component}"))
            if config.preserve_embedding_norm:
                table = model.components[component].get_input_embeddings().weight
                self._lengths[component] = torch.linalg.vector_norm(table.detach().float(), dim=1).mean().item()
        model.add_word(
            own.placeholder,
            {component: lambda component=component: self.vectors(component) for component in self._keys},
        )

    def vectors(self, component: str) -> Tensor:
        """What a text encoder sees, `[tokens, width]`, with gradient."""
        raw = self._in_effect[component]
        if component not in self._lengths:
            return raw
        long = raw.float()
        return self._lengths[component] * long / torch.linalg.vector_norm(long, dim=1, keepdim=True).clamp(min=1e-12)

    def tensors(self) -> dict[str, Tensor]:
        """The vectors under their names in files, without gradient."""
        return {key: self.vectors(component).detach() for component, key in self._keys.items()}

    def parameters(self) -> list[nn.Parameter]:
        return list(self._parameters.values())

    def train(self, mode: bool = True) -> Self:
        return self

    def eval(self) -> Self:
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        for parameter in self._parameters.values():
            parameter.requires_grad_(requires_grad)
        return self

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """Meanwhile the word has the vectors with which its training began."""
        self._in_effect = self._start_vectors
        try:
            yield
        finally:
            self._in_effect = self._parameters

    def state_dict(self) -> dict[str, Tensor]:
        return {f"{self.name}.{component}": parameter.detach() for component, parameter in self._parameters.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        found = {key: list(tensor.shape) for key, tensor in state.items()}
        wanted = {key: list(tensor.shape) for key, tensor in self.state_dict().items()}
        if found != wanted:
            raise UserError(
                f"The backup holds {found or 'nothing'} for the embedding {self.placeholder}, expected {wanted}. "
                "Restore the config that is stored in it, or set continue_last_backup to false."
            )
        for component, parameter in self._parameters.items():
            parameter.copy_(state[f"{self.name}.{component}"])

    def _start(self, model: BaseModel, own: TrainEmbeddingConfig) -> dict[str, Tensor]:
        if own.model_name:
            start = _vectors_of_file(model, own)
            count = len(next(iter(start.values())))
            if own.token_count not in (None, count):
                self.notes.append(
                    f"embedding {own.placeholder}: {own.model_name} has {count} tokens, which count instead of "
                    f"token_count {own.token_count}."
                )
            return start
        start = {
            component: model.added_words[component].vectors_of(model.components[component], own.initial_embedding_text)
            for component in model.embedding_keys
        }
        found = min(len(tensor) for tensor in start.values())
        if not found:
            raise _without_start(own)
        count = own.token_count or found
        if found > count:
            self.notes.append(
                f"embedding {own.placeholder}: the initial text has {found} tokens, of which only the first {count} "
                "are used. Raise token_count to use all."
            )
        # where the text is shorter it starts again
        return {component: tensor[torch.arange(count) % len(tensor)] for component, tensor in start.items()}


def token_count(model: BaseModel, own: TrainEmbeddingConfig) -> int:
    """How many tokens an embedding's word has in captions. None of the model's weights are read.

    Raises:
        UserError: its file can't be read or does not fit, or there is nothing to start from.
    """
    if own.model_name:
        return len(next(iter(_vectors_of_file(model, own).values())))
    text, known = own.initial_embedding_text, model.added_words
    found = min(len(known[name].tokenizer(text, add_special_tokens=False).input_ids) for name in model.embedding_keys)
    if not found:
        raise _without_start(own)
    return own.token_count or found


def _vectors_of_file(model: BaseModel, own: TrainEmbeddingConfig) -> dict[str, Tensor]:
    widths = {
        component: model.layers_of(component).get_input_embeddings().embedding_dim for component in model.embedding_keys
    }
    return fit_embedding(own.model_name, model.embedding_keys, widths)


def _without_start(own: TrainEmbeddingConfig) -> UserError:
    return UserError(
        f"embedding {own.placeholder}: initial_embedding_text is empty. Give a word or two that are near to what is "
        "trained."
    )
