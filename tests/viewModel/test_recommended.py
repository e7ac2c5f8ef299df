"""What goes with a choice is offered, taken whole or not at all, and every rate names its source."""

from modules.trainer.optimizers import OPTIMIZERS
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.Optimizer import Optimizer
from modules.viewModel.recommended import FAMILIES, RATES, TINY_RATES, companions, rate_for
from modules.viewModel.TrainForm import CHOICES, TrainForm
from modules.viewModel.TrainHints import TrainHints

import pytest


def form(**options) -> TrainForm:
    """A LoRA on the tiny base by AdamW, as it goes together."""
    own = {
        "training_method": "LORA", "base_model_name": "models/tiny_sd", "lora_rank": 8, "lora_alpha": 1.0,
        "learning_rate": 0.002, "output_model_format": "KOHYA_LORA", "optimizer": {"optimizer": "ADAMW"},
    }  # fmt: skip
    return TrainForm(TrainConfig.from_dict({**own, **options}))


def test_nothing_is_offered_where_nothing_was_chosen():
    assert form(learning_rate=1.0).offer() is None, "what a person typed is theirs"
    assert companions(form().config) == {}


def test_another_optimizer_brings_rate_alpha_and_start_values():
    own = form()
    own.choose_optimizer(Optimizer.STIEFEL_LORA)
    offer = own.offer()
    assert offer.values == {"learning_rate": 0.034, "lora_init": "ORTHONORMAL", "lora_alpha": 8.0}
    for words in ("“Optimizer” STIEFEL_LORA", "“Learning rate” 0.034", "“Start values” ORTHONORMAL", "tiny base"):
        assert words in offer.text, words
    own.take_offer()
    assert own.offer() is None and companions(own.config) == {}
    assert (own.config.learning_rate, own.config.lora_init, own.config.lora_alpha) == (0.034, "ORTHONORMAL", 8.0)
    # nothing stays behind
    own.set_text("optimizer.optimizer", "ADAMW")
    assert own.offer().values == {"learning_rate": 0.002, "lora_init": "KAIMING"}


def test_another_method_brings_format_and_rate():
    own = form(base_model_name="some/model", learning_rate=1e-4)
    own.set_text("training_method", "FINE_TUNE")
    assert own.offer().values == {"learning_rate": 1e-5, "output_model_format": "SAFETENSORS"}
    assert "example script" in own.offer().text
    own.take_offer()
    own.set_text("output_model_format", "DIFFUSERS")
    own.set_text("training_method", "LORA")
    assert own.offer().values == {"learning_rate": 1e-4, "output_model_format": "SAFETENSORS"}


@pytest.mark.parametrize(("path", "value"), [("lora_decompose", "true"), ("optimizer.scaled_optm", "true")])
def test_other_adapters_and_steps_bring_their_rate(path, value):
    own = form(optimizer={"optimizer": "ADAMW_ADV"}, learning_rate=1.0)
    own.set_text(path, value)
    assert own.asked == path and own.offer().values["learning_rate"] == rate_for(own.config).value


def test_an_offer_is_declined_until_the_next_choice():
    own, told = form(learning_rate=1.0), []
    own.listen(told.append)
    own.set_text("lora_decompose", "true")
    assert own.offer()
    own.decline_offer()
    assert own.offer() is None and told and own.config.learning_rate == 1.0
    own.set_text("lora_rank", "16")
    assert own.offer() is None
    own.set_text("lora_decompose", "false")
    assert own.offer()
    own.replace(TrainConfig())
    assert own.offer() is None, "a preset goes together as its author wants"


def test_a_choice_that_changes_nothing_or_is_refused_offers_nothing():
    own = form(learning_rate=1.0)
    own.set_value("peft_type", "LORA")
    own.set_value("lora_decompose", "maybe")
    assert own.offer() is None


def test_what_was_typed_meanwhile_counts():
    own = form(learning_rate=1.0)
    own.set_text("lora_decompose", "true")
    own.set_text("learning_rate", "0.002")
    assert own.offer() is None


def test_where_nobody_has_measured_no_rate_is_offered():
    assert rate_for(form(peft_type="LOKR").config) is None
    assert rate_for(form(optimizer={"optimizer": "RMSPROP"}).config) is None
    assert rate_for(form(training_method="EMBEDDING").config) is None


def test_prodigy_takes_1_whatever_is_trained():
    for changes in ({}, {"training_method": "FINE_TUNE"}, {"peft_type": "LOHA"}):
        assert rate_for(form(optimizer={"optimizer": "PRODIGY_ADV", "scaled_optm": True}, **changes).config).value == 1


@pytest.mark.parametrize("rates", [TINY_RATES, RATES], ids=["tiny", "other"])
def test_every_rate_says_what_it_was_measured_on_or_that_it_was_not(rates):
    assert all("measured" in rate.source or "arXiv" in rate.source for rate in rates.values())
    assert all("not measured" in rate.source or "arXiv" in rate.source for rate in rates.values()) == (rates is RATES)


def test_the_optimizers_of_the_tables_are_ones_that_can_be_trained_with():
    assert set(FAMILIES) <= set(OPTIMIZERS)


def test_choices_are_options():
    assert set(CHOICES) <= set(form().fields)


def test_help_of_the_rate_says_which_one_goes_with_what_is_chosen():
    own = form()
    assert "goes 0.002: measured on the tiny base" in TrainHints(own).help("learning_rate")
    own.set_text("peft_type", "LOKR")
    assert "With what is chosen" not in TrainHints(own).help("learning_rate")
