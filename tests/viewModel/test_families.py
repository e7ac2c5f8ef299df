"""What the window knows of families without loading them is what the model room says."""

from modules.model.BaseModel import model_families
from modules.util.config.SampleConfig import SampleConfig
from modules.viewModel.families import SUPPORTED, parts_of, sample_defaults_of


def test_supported_families_are_those_of_the_model_room():
    assert model_families().keys() == SUPPORTED


def test_parts_hold_all_that_a_family_can_train():
    for model_type, family in model_families().items():
        parts = parts_of(model_type)
        assert parts is not None and set(family.trainable_parts) <= set(parts), model_type
        assert "vae" in parts


def test_samples_begin_as_the_family_draws_them():
    for model_type, family in model_families().items():
        defaults = sample_defaults_of(model_type)
        assert SampleConfig.from_dict(defaults) == SampleConfig.from_dict(dict(family.sample_defaults)), model_type
