"""The optimizer's form has what the optimizer has, and refuses what it would refuse."""

from modules.trainer.optimizers import OPTIMIZERS, create_optimizer
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.Optimizer import Optimizer
from modules.util.UserError import UserError
from modules.viewModel.OptimizerCatalog import OptimizerCatalog
from modules.viewModel.OptimizerForm import MEMORY, OptimizerForm
from modules.viewModel.recommended import RECOMMENDATIONS
from modules.viewModel.TrainForm import TrainForm

import torch

import pytest

SCALED, FISHER, CENTERED = RECOMMENDATIONS


@pytest.fixture(scope="module")
def catalog() -> OptimizerCatalog:
    return OptimizerCatalog.load()


@pytest.fixture
def optimizer(catalog) -> OptimizerForm:
    form = TrainForm(TrainConfig.from_dict({"training_method": "LORA", "optimizer": {"optimizer": "ADAMW_ADV"}}))
    form.catalog = catalog
    return OptimizerForm(form, catalog)


def shown(optimizer: OptimizerForm) -> set[str]:
    return {one.path for section in optimizer.sections() if section.key != MEMORY for one in section.fields}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_exactly_the_options_of_an_optimizer_are_shown(optimizer, name):
    optimizer.choose(name)
    own = shown(optimizer)
    top = {path.removeprefix("optimizer.") for path in own if path.count(".") == 1}
    assert top == set(OPTIMIZERS[name].defaults) - {"muon_adam_config"}
    assert any(path.startswith("optimizer.muon_adam_config.") for path in own) == (
        "muon_adam_config" in OPTIMIZERS[name].defaults
    )
    # with their bound, the zeros of a fresh adapter would never move
    asking = "max_unorm" in OPTIMIZERS[name].defaults
    assert (optimizer.catalog.problems(optimizer.form.config) == []) != asking


def test_what_is_set_and_not_its_own_is_shown_and_named_as_wrong(optimizer):
    optimizer.choose(Optimizer.ADAMW)
    optimizer.form.set_value("optimizer.fisher_wd", True)
    assert "optimizer.fisher_wd" in shown(optimizer)
    (problem,) = optimizer.catalog.problems(optimizer.form.config)
    assert problem.path == "optimizer.fisher_wd" and "it is an option of ADAMW_ADV" in problem.text
    with pytest.raises(UserError, match="optimizer.fisher_wd"):
        create_optimizer(optimizer.form.config.optimizer, [{"params": [torch.zeros(1)], "lr": 1.0, "name": "unet"}])
    optimizer.form.reset("optimizer.fisher_wd")
    assert "optimizer.fisher_wd" not in shown(optimizer)


def test_options_are_remembered_for_each_optimizer(optimizer):
    optimizer.form.set_text("optimizer.beta1", "0.8")
    optimizer.choose(Optimizer.LION_ADV)
    assert optimizer.form.config.optimizer.beta1 is None
    optimizer.form.set_text("optimizer.beta1", "0.7")
    optimizer.choose(Optimizer.ADAMW_ADV)
    assert optimizer.form.config.optimizer.beta1 == 0.8
    optimizer.choose(Optimizer.LION_ADV)
    assert optimizer.form.config.optimizer.beta1 == 0.7
    assert TrainConfig.from_dict(optimizer.form.config.to_dict()) == optimizer.form.config


def test_what_cannot_be_combined_cannot_be_chosen_and_says_why(optimizer):
    assert optimizer.why_not("optimizer.Simplified_AdEMAMix", "true") == ""
    optimizer.form.set_value("optimizer.use_AdEMAMix", True)
    assert "takes the place of “AdEMAMix”" in optimizer.why_not("optimizer.Simplified_AdEMAMix", "true")
    assert optimizer.why_not("optimizer.nesterov", "true") == ""
    assert optimizer.form.config.optimizer.Simplified_AdEMAMix is None


def test_the_rest_of_the_run_has_a_say(optimizer):
    optimizer.form.set_text("train_dtype", "BFLOAT_16")
    assert optimizer.why_not("optimizer.fused_back_pass", "true") == ""
    optimizer.form.set_text("gradient_accumulation_steps", "2")
    assert "gradients can't be added up" in optimizer.why_not("optimizer.fused_back_pass", "true")


def test_what_is_wrong_already_does_not_lock_the_way_out(optimizer):
    optimizer.form.set_value("optimizer.use_AdEMAMix", True)
    optimizer.form.set_value("optimizer.Simplified_AdEMAMix", True)
    assert [problem.path for problem in optimizer.catalog.problems(optimizer.form.config)] == [
        "optimizer.Simplified_AdEMAMix"
    ]
    for path in ("optimizer.use_AdEMAMix", "optimizer.Simplified_AdEMAMix", "optimizer.use_grams"):
        assert optimizer.why_not(path, "false" if "AdEMAMix" in path else "true") == ""


def test_options_of_the_adam_beside_a_muon(optimizer):
    optimizer.choose(Optimizer.MUON_ADV)
    path = "optimizer.muon_adam_config.beta2"
    # the rule's own value for it, and what is common comes from Muon's options
    assert optimizer.default(path) == 0.99
    optimizer.form.set_text("optimizer.weight_decay", "0.25")
    assert optimizer.default("optimizer.muon_adam_config.weight_decay") == 0.25
    optimizer.form.set_text(path, "0.5")
    assert optimizer.form.config.optimizer.muon_adam_config.beta2 == 0.5
    optimizer.form.set_text("optimizer.muon_adam_config.use_AdEMAMix", "true")
    assert optimizer.why_not("optimizer.muon_adam_config.Simplified_AdEMAMix", "true")
    optimizer.form.set_text("optimizer.beta1", "abc")
    optimizer.reset()
    assert optimizer.form.config.optimizer.muon_adam_config is None and optimizer.chosen == Optimizer.MUON_ADV
    assert optimizer.form.text("optimizer.beta1") == "" and not optimizer.form.has_refused_texts


def test_defaults_are_shown_where_an_option_is_empty(optimizer):
    assert optimizer.shown_text("optimizer.stochastic_rounding") == "true"
    assert optimizer.placeholder("optimizer.beta2") == "default: 0.999"
    optimizer.form.set_text("optimizer.stochastic_rounding", "false")
    assert optimizer.shown_text("optimizer.stochastic_rounding") == "false"


@pytest.mark.parametrize(
    ("base", "rate", "both", "source"),
    [
        ("models/tiny_sd", 1.7e-2, 1.7e-2, "measured on the tiny base"),
        ("stabilityai/stable-diffusion-xl-base-1.0", 3e-4, 3e-4, "OneTrainer PR 1344"),
    ],
)
def test_scaled_sets_rate_and_alpha_and_says_whose_they_are(optimizer, base, rate, both, source):
    optimizer.choose(Optimizer.SGD)
    optimizer.form.set_text("base_model_name", base)
    optimizer.form.set_text("lora_rank", "24")
    assert f"The rate {rate:g} is" in optimizer.explain(SCALED) and source in optimizer.explain(SCALED)
    changed = optimizer.apply(SCALED)
    config = optimizer.form.config
    assert (config.optimizer.optimizer, config.optimizer.scaled_optm) == (Optimizer.ADAMW_ADV, True)
    assert (config.learning_rate, config.lora_alpha) == (rate, 24)
    assert f"“Learning rate” {rate}" in changed
    optimizer.form.set_values({"peft_type": "OFT_2", "lora_decompose": True})
    optimizer.apply(SCALED)
    assert config.learning_rate == both and config.oft_scaled


def test_fisher_decay_is_the_same_per_step_with_and_without_scaled_steps(optimizer):
    optimizer.form.set_text("learning_rate", "2e-4")
    optimizer.apply(FISHER)
    own = optimizer.form.config.optimizer
    assert own.fisher_wd and own.weight_decay * 2e-4 == pytest.approx(1e-6) and own.beta2 == 0.99
    optimizer.form.set_value("optimizer.scaled_optm", True)
    optimizer.form.set_text("optimizer.beta2", "0.95")
    optimizer.apply(FISHER)
    assert own.weight_decay == 1e-6 and own.beta2 == 0.95


def test_centered_decay_is_for_what_starts_from_weights(optimizer):
    assert "DoRA and full" in optimizer.why_not_recommended(CENTERED)
    optimizer.form.set_value("training_method", "FINE_TUNE")
    assert not optimizer.why_not_recommended(CENTERED)
    optimizer.form.set_values({"training_method": "LORA", "lora_decompose": True, "learning_rate": 3e-4})
    assert not optimizer.why_not_recommended(CENTERED)
    optimizer.apply(CENTERED)
    own = optimizer.form.config.optimizer
    assert own.centered_wd * 3e-4 == pytest.approx(1e-4)
    assert "nobody has measured" in CENTERED.help(optimizer.form.config)
    # with scaled steps it goes with the learning rate
    optimizer.form.set_value("optimizer.scaled_optm", True)
    optimizer.apply(CENTERED)
    assert own.centered_wd == 1.8e-4 and own.weight_decay == 1e-6
    assert "tiny base" in CENTERED.help(optimizer.form.config)
    assert optimizer.catalog.problems(optimizer.form.config) == []


@pytest.mark.parametrize("recommendation", RECOMMENDATIONS, ids=lambda one: one.title)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_recommendation_never_makes_a_config_wrong(optimizer, recommendation, name):
    optimizer.form.set_values({"lora_decompose": True})
    optimizer.choose(name)
    before = {problem.path for problem in optimizer.catalog.problems(optimizer.form.config)}
    optimizer.apply(recommendation)
    assert {problem.path for problem in optimizer.catalog.problems(optimizer.form.config)} <= before


def test_what_excludes_another_option_is_told_from_where_one_stands(optimizer):
    optimizer.choose(Optimizer.ADAMW_ADV)
    optimizer.form.set_value("optimizer.use_grams", True)
    assert (
        optimizer.why_not("optimizer.use_cautious", "true") == "“Grams” is on already; only one of the two can be used"
    )
    optimizer.form.set_value("optimizer.use_grams", False)
    assert optimizer.why_not("optimizer.use_cautious", "true") == ""


@pytest.mark.parametrize("kind", [Optimizer.STIEFEL_LORA, Optimizer.LORA_RITE])
def test_optimizers_of_pairs_cannot_be_picked_for_full_fine_tuning(optimizer, kind):
    form = optimizer.form
    form.set_value("training_method", "LORA")
    assert optimizer.why_not("optimizer.optimizer", str(kind)) == ""
    form.set_value("training_method", "FINE_TUNE")
    assert "of which FINE_TUNE has none" in optimizer.why_not("optimizer.optimizer", str(kind))
    assert optimizer.why_not("optimizer.optimizer", "ADAMW_ADV") == ""
    optimizer.choose(kind)
    assert any(problem.path == "optimizer.optimizer" and "pairs" not in problem.path for problem in form.problems())
    form.set_value("training_method", "LORA")


def test_a_scaled_rate_is_offered_only_where_somebody_has_measured_one(optimizer):
    optimizer.form.set_value("training_method", "EMBEDDING")
    assert "nobody has measured" in optimizer.why_not_recommended(SCALED)
    assert "Not now: nobody has measured" in optimizer.explain(SCALED)
    for method in ("FINE_TUNE", "LORA"):
        optimizer.form.set_value("training_method", method)
        assert optimizer.why_not_recommended(SCALED) == ""
