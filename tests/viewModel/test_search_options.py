"""Options are found by key, title, section and help."""

from modules.util.enum.Optimizer import Optimizer
from modules.viewModel.OptimizerCatalog import OptimizerCatalog
from modules.viewModel.search_options import place_in_items, search_options, tab_of_list
from modules.viewModel.TrainForm import TrainForm

import pytest


@pytest.fixture(scope="module")
def form() -> TrainForm:
    return TrainForm()


@pytest.mark.parametrize(
    ("query", "path"),
    [
        ("learning rate", "learning_rate"),
        ("learning_rate", "learning_rate"),
        ("LORA_RANK", "lora_rank"),
        ("warm-up", "learning_rate_warmup_steps"),
        ("offset noise", "offset_noise_weight"),
        ("fisher", "optimizer.fisher_wd"),
        ("text_encoder_2.train", "text_encoder_2.train"),
    ],
)
def test_a_name_is_found_first(form, query, path):
    assert search_options(form, query)[0].path == path


@pytest.mark.parametrize(
    ("query", "path", "tab", "section"),
    [
        ("random flip", "concepts.*.image.enable_random_flip", "concepts", "Images"),
        ("balancing", "concepts.*.balancing", "concepts", "Concept"),
        ("diffusion_steps", "samples.*.diffusion_steps", "sampling", "Sample"),
        ("initial embedding text", "additional_embeddings.*.initial_embedding_text", "embeddings", "Embeddings"),
    ],
)
def test_options_of_concepts_samples_and_embeddings_are_found(form, query, path, tab, section):
    found = search_options(form, query)[0]
    assert found.path == path and found.place == f"{tab} › {place_in_items(path).each} › {section}"
    place = place_in_items(path)
    assert (place.tab, place.section) == (tab, section) and place.title
    assert place_in_items("concepts") is None and place_in_items("unet.train") is None


def test_what_means_nothing_where_it_stands_is_not_found(form):
    found = [one.path for one in search_options(form, "guidance scale")]
    assert "transformer.guidance_scale" in found and "unet.guidance_scale" not in found
    assert "vae.dropout_probability" not in [one.path for one in search_options(form, "dropout")]


def test_help_is_searched(form):
    # these words stand in no name
    assert [found.path for found in search_options(form, "seamless textures")] == ["force_circular_padding"]
    assert "tensorboard_expose" in [found.path for found in search_options(form, "other computers")]


def test_all_words_count_in_any_order_and_place(form):
    assert search_options(form, "rate embedding")[0].path == "embedding_learning_rate"
    assert search_options(form, "U-Net dtype")[0].path == "unet.weight_dtype"
    assert search_options(form, "no such thing at all") == [] and search_options(form, "  ") == []


def test_every_option_is_found_by_its_key(form):
    for path, one in form.fields.items():
        assert path in [found.path for found in search_options(form, path, limit=10_000)], one.name


def test_what_does_not_matter_now_comes_later_and_says_so(form):
    found = search_options(form, "train embedding", limit=100)
    matters = [not one.missing for one in found if one.path.endswith("train_embedding")]
    assert matters == sorted(matters, reverse=True) and not all(matters)
    missing = next(one.missing for one in search_options(form, "oft_block_size"))
    assert "“Adapter” OFT_2" in missing


def test_optimizers_that_have_an_option_are_named():
    form = TrainForm()
    form.catalog = OptimizerCatalog.load()
    form.choose_optimizer(Optimizer.LION_ADV)
    assert "the optimizer ADAMW_ADV" in next(one.missing for one in search_options(form, "fisher_wd"))
    assert next(one.missing for one in search_options(form, "freeze_on_flip")) == ""


def test_lists_have_tabs_of_their_own():
    assert [tab_of_list(path) for path in ("concepts", "concepts.0.path", "samples.3.prompt")] == [
        "concepts", "concepts", "sampling",
    ]  # fmt: skip
    assert tab_of_list("additional_embeddings") == "embeddings" and tab_of_list("concept_file_name") == ""
