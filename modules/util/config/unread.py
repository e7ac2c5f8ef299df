"""Options that no code reads. Each says at which values a run is what the user asked for; others are refused."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modules.util.config.errors import Problem, Remedy, show_value
from modules.util.config.field_type import default_of
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.DataType import DataType
from modules.util.enum.TrainingMethod import TrainingMethod

EVERY = None
"""Instead of a list of values: each that there is."""


def _always(config: TrainConfig) -> bool:
    return True


def _masks(config: TrainConfig) -> bool:
    return config.masked_training and config.training_method == TrainingMethod.LORA


def _half(config: TrainConfig) -> bool:
    return config.train_dtype == DataType.FLOAT_16


def _trains_embeddings(config: TrainConfig) -> bool:
    return config.training_method == TrainingMethod.EMBEDDING or bool(config.additional_embeddings)


@dataclass(frozen=True)
class Unread:
    """An option that changes nothing here.

    Attributes:
        reason: why, and what happens instead.
        harmless: values at which nothing is lost.
        named: other values at which the result is the same. They are told once; OneTrainer's presets hold them. Values
            that are neither are refused.
        matters: whether a run asks for the option at all.
    """

    reason: str
    harmless: tuple | None = ()
    named: tuple | None = ()
    matters: Callable[[TrainConfig], bool] = _always

    def is_named(self, value: Any) -> bool:
        """Whether a value has to be told."""
        return not _holds(self.harmless, value) and _holds(self.named, value)

    def is_refused(self, value: Any) -> bool:
        """Whether a user would get something else than they asked for."""
        return not _holds(self.harmless, value) and not _holds(self.named, value)


_FAMILY = "it belongs to families that this trainer does not have; their model_type is refused"
_SVD = "it goes with quantization.svd_dtype, which is refused"

RUN: Mapping[str, Unread] = {
    "fallback_train_dtype": Unread(
        "with FLOAT_16 a VAE that would overflow computes in the format of its weights, and nothing else falls back",
        ("BFLOAT_16",), matters=_half,
    ),
    "vb_loss_strength": Unread("no family of this trainer predicts a variance", (1.0,), EVERY),
    "force_circular_padding": Unread("convolutions can't wrap around yet", (False,)),
    "debug_mode": Unread("intermediate images are not written yet", (False,)),
    "debug_dir": Unread("it goes with debug_mode, which is refused", EVERY),
    "masked_prior_preservation_weight": Unread(
        "what is masked out is not held at the base model's prediction yet; concepts of type PRIOR_PREDICTION are",
        (0.0,), matters=_masks,
    ),
    "quantization.svd_dtype": Unread("errors of quantization are not corrected yet", ("NONE",)),
    "quantization.svd_rank": Unread(_SVD, EVERY),
    "quantization.cache_dir": Unread(_SVD, EVERY),
    "prior": Unread(_FAMILY, EVERY),
    "effnet_encoder": Unread(_FAMILY, EVERY),
    "decoder": Unread(_FAMILY, EVERY),
    "decoder_text_encoder": Unread(_FAMILY, EVERY),
    "decoder_vqgan": Unread(_FAMILY, EVERY),
    "secrets.cloud": Unread("access data of OneTrainer's cloud; kept for it", EVERY),
}  # fmt: skip
"""Options of a run by their path."""

COMPONENT: Mapping[str, Unread] = {
    "include": Unread("a component can't be left out yet", (True,)),
    "attention_mask": Unread("whether attention sees padding can't be chosen yet", (False,)),
    "train_embedding": Unread("embeddings are trained in every text encoder", (True,), matters=_trains_embeddings),
}
"""Options of each component of the run's family."""

CONCEPT: Mapping[str, Unread] = {
    "concept_stats": Unread("counts of OneTrainer's window; kept for it", EVERY),
}

SAMPLE: Mapping[str, Unread] = {
    "frames": Unread("no family of this trainer draws videos", (1,)),
    "length": Unread("no family of this trainer makes sound, and its samples have no other length", EVERY),
    "text_encoder_4_layer_skip": Unread("the text encoder that it is for is read in many layers", EVERY),
    "transformer_attention_mask": Unread("whether attention sees padding can't be chosen yet", (False,)),
}

FOREIGN: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "cloud": (lambda value: isinstance(value, dict) and value.get("enabled") is True, "runs stay on this machine"),
}
"""Keys of OneTrainer that are no options here: whether a value asks for something else than a run does, and why."""


def unread_problems(config: TrainConfig, components: Sequence[str]) -> list[Problem]:
    """Every option of a run that no code reads, at a value that can't be ignored.

    Args:
        config: of the run.
        components: of its family, as keys of the config.
    """
    found = []
    for path, option, value in _of_run(config, components):
        if option.is_refused(value):
            default = _default(path)
            text = f"found {show_value(value)}, but {option.reason}. Set it to {show_value(default)}"
            found.append(Problem(path, text, (Remedy.of({path: default}),)))
    for key, (asks, reason) in FOREIGN.items():
        if asks((config.__pydantic_extra__ or {}).get(key)):
            found.append(
                Problem("", f"{key}: OneTrainer's option is switched on, but {reason}. Remove it from the file")
            )
    return found


def unread_notes(config: TrainConfig, components: Sequence[str]) -> str | None:
    """One line that names the options of a run that are set and change nothing but speed, None if there are none."""
    named = [
        f"{path} ({option.reason})" for path, option, value in _of_run(config, components) if option.is_named(value)
    ]
    return f"without effect here: {'; '.join(named)}" if named else None


def sample_problems(sample: SampleConfig, label: str) -> list[str]:
    """What of a sample can't be drawn as it asks for, a line for each option."""
    return [
        f"{label}: {key}: found {show_value(_json(getattr(sample, key)))}, but {option.reason}. "
        f"Set it to {show_value(default_of(SampleConfig, key))}"
        for key, option in SAMPLE.items()
        if option.is_refused(_json(getattr(sample, key)))
    ]


def _of_run(config: TrainConfig, components: Sequence[str]) -> Iterator[tuple[str, Unread, Any]]:
    """Path, declaration and value, as JSON has it, of every such option that matters in a run."""
    options = dict(RUN)
    for component in components:
        options[f"{component}.include"] = COMPONENT["include"]
        if component != "vae":
            options[f"{component}.attention_mask"] = COMPONENT["attention_mask"]
        if component.startswith("text_encoder"):
            options[f"{component}.train_embedding"] = COMPONENT["train_embedding"]
    for path, option in options.items():
        if option.matters(config):
            owner, _, key = path.rpartition(".")
            yield path, option, _json(getattr(getattr(config, owner) if owner else config, key))


def _default(path: str) -> Any:
    owner, _, key = path.rpartition(".")
    return _json(getattr(default_of(TrainConfig, owner), key) if owner else default_of(TrainConfig, key))


def _json(value: Any) -> Any:
    return str(value) if isinstance(value, str) else value


def _holds(values: tuple | None, value: Any) -> bool:
    return values is EVERY or value in values
