"""What cards tell of samples and embeddings, and what new ones are like."""

from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainEmbeddingConfig import TrainEmbeddingConfig
from modules.util.enum.ModelType import ModelType
from modules.viewModel.list_items import describe_embedding, describe_sample, next_embedding, next_sample


def test_a_sample_is_told():
    one = SampleConfig(prompt="a cat", width=64, height=32, seed=7, diffusion_steps=5, cfg_scale=1.5)
    assert describe_sample(one) == ("a cat", "64 × 32 · seed 7 · 5 steps · guidance 1.5")
    title, about = describe_sample(SampleConfig(random_seed=True))
    assert title == "no prompt" and "random seed" in about


def test_a_new_sample_is_like_the_last_or_as_the_family_draws():
    first = next_sample([], ModelType.STABLE_DIFFUSION_XL_10_BASE)
    assert (first.width, first.height) == (1024, 1024)
    last = SampleConfig(prompt="a cat", width=64, seed=7)
    after = next_sample([first, last], ModelType.STABLE_DIFFUSION_XL_10_BASE)
    assert (after.prompt, after.width, after.seed) == ("", 64, 7) and last.prompt == "a cat"


def test_an_embedding_is_told():
    one = TrainEmbeddingConfig(placeholder="<a>", initial_embedding_text="a cat", token_count=None)
    assert describe_embedding(one) == ("<a>", 'from the words "a cat" · as many tokens as its text · trained')
    one.model_name, one.token_count, one.train = "a.pt", 2, False
    assert describe_embedding(one) == ("<a>", "from a.pt · 2 tokens · only used")


def test_a_new_placeholder_is_nobody_elses():
    items = [TrainEmbeddingConfig(placeholder="<embedding1>"), TrainEmbeddingConfig(placeholder="<embedding3>")]
    assert next_embedding(items, "<embedding2>").placeholder == "<embedding4>"
    assert next_embedding([], "<embedding>").placeholder == "<embedding1>"
