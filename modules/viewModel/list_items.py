"""What a card tells of a sample or an embedding, and what a new one is like."""

from collections.abc import Sequence

from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainEmbeddingConfig import TrainEmbeddingConfig
from modules.util.enum.ModelType import ModelType
from modules.viewModel.families import sample_defaults_of


def describe_sample(item: SampleConfig) -> tuple[str, str]:
    """Prompt; size, seed, guidance."""
    seed = "random seed" if item.random_seed else f"seed {item.seed}"
    about = f"{item.width} × {item.height} · {seed} · {item.diffusion_steps} steps · guidance {item.cfg_scale:g}"
    return item.prompt or "no prompt", about


def next_sample(items: Sequence[SampleConfig], model_type: ModelType) -> SampleConfig:
    """One like the last, so that sizes are what they were; the first is as the model family draws it."""
    if not items:
        return SampleConfig.from_dict(sample_defaults_of(model_type))
    return items[-1].model_copy(deep=True, update={"prompt": ""})


def describe_embedding(item: TrainEmbeddingConfig) -> tuple[str, str]:
    """Placeholder; where it starts and whether it is trained."""
    start = f"from {item.model_name}" if item.model_name else f'from the words "{item.initial_embedding_text}"'
    tokens = (
        f"{item.token_count} token{'s' if item.token_count > 1 else ''}"
        if item.token_count
        else "as many tokens as its text"
    )
    return item.placeholder, f"{start} · {tokens} · {'trained' if item.train else 'only used'}"


def next_embedding(items: Sequence[TrainEmbeddingConfig], placeholder: str) -> TrainEmbeddingConfig:
    """One whose placeholder no other has, nor the embedding of the run itself."""
    taken = {item.placeholder for item in items} | {placeholder}
    names = (f"<embedding{number}>" for number in range(1, len(taken) + 2))
    return TrainEmbeddingConfig(placeholder=next(name for name in names if name not in taken))
