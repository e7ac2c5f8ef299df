"""What the tools find: the alpha calculator, and what the scripts say of wrong files."""

from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.Optimizer import Optimizer
from modules.util.enum.TrainingMethod import TrainingMethod
from modules.util.UserError import UserError
from modules.viewModel.ToolModel import AlphaInput, InspectInput, alpha_input, inspect, rebase

import pytest


def test_a_quarter_of_alpha_needs_twice_the_rate_of_adam_and_four_times_that_of_sgd():
    for optimizer, factor in ((Optimizer.ADAMW, 2), (Optimizer.SGD, 4)):
        config = TrainConfig(training_method=TrainingMethod.LORA, optimizer={"optimizer": str(optimizer)})
        wish = AlphaInput(lora_rank=16, lora_alpha=16.0, learning_rate=1e-4, optimizer=optimizer, new_alpha=4.0)
        values = rebase(config, wish).values
        assert values["learning_rate"] == pytest.approx(factor * 1e-4)
        assert values["lora_alpha"] == 4 and values["lora_init_scale"] == pytest.approx(2 * config.lora_init_scale)


def test_the_same_alpha_changes_nothing():
    config = TrainConfig(lora_rank=8, lora_alpha=8.0)
    assert alpha_input(config).new_alpha == 8 and not rebase(config, alpha_input(config)).values


def test_no_file_is_asked_for():
    with pytest.raises(UserError, match="Choose an adapter file"):
        inspect(InspectInput())
