"""What a card tells of a sample or an embedding, and what a new one is like."""

from collections.abc import Sequence

from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainEmbeddingConfig import TrainEmbeddingConfig
from modules.util.enum.ModelType import ModelType
from modules.util.texts import tr, tr_n
from modules.viewModel.families import sample_defaults_of


def describe_sample(item: SampleConfig) -> tuple[str, str]:
    """Prompt; size, seed, guidance."""
    about = [
        f"{item.width} × {item.height}",
        tr("random seed") if item.random_seed else tr("seed {seed}", seed=item.seed),
        tr_n("{n} step", "{n} steps", item.diffusion_steps),
        tr("guidance {scale:g}", scale=item.cfg_scale),
    ]
    return item.prompt or tr("no prompt"), " · ".join(about)


def next_sample(items: Sequence[SampleConfig], model_type: ModelType) -> SampleConfig:
    """One like the last, so that sizes are what they were; the first is as the model family draws it."""
    if not items:
        return SampleConfig.from_dict(sample_defaults_of(model_type))
    return items[-1].model_copy(deep=True, update={"prompt": ""})


def describe_embedding(item: TrainEmbeddingConfig) -> tuple[str, str]:
    """Placeholder; where it starts and whether it is trained."""
    about = [
        tr("from {model}", model=item.model_name)
        if item.model_name
        else tr('from the words "{words}"', words=item.initial_embedding_text),
        tr_n("{n} token", "{n} tokens", item.token_count) if item.token_count else tr("as many tokens as its text"),
        tr("trained") if item.train else tr("only used"),
    ]
    return item.placeholder, " · ".join(about)


def next_embedding(items: Sequence[TrainEmbeddingConfig], placeholder: str) -> TrainEmbeddingConfig:
    """One whose placeholder no other has, nor the embedding of the run itself."""
    taken = {item.placeholder for item in items} | {placeholder}
    names = (f"<embedding{number}>" for number in range(1, len(taken) + 2))
    return TrainEmbeddingConfig(placeholder=next(name for name in names if name not in taken))
