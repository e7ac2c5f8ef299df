from modules.util.config.TrainConfig import TrainConfig
from modules.viewModel.TrainForm import TrainForm
from modules.viewModel.TrainHints import TrainHints
from modules.viewModel.value_names import NAMES, value_name

import pytest


@pytest.mark.parametrize("kind", NAMES, ids=lambda kind: kind.__name__)
def test_every_value_has_a_name_of_its_own(kind):
    assert set(NAMES[kind]) == set(kind)
    assert len(set(NAMES[kind].values())) == len(kind)


def test_lists_show_names_beside_values():
    hints = TrainHints(TrainForm(TrainConfig()))
    choice = next(one for one in hints.choices("model_type") if one.text == "STABLE_DIFFUSION_XL_10_BASE")
    assert choice.label == "SDXL   ·   STABLE_DIFFUSION_XL_10_BASE"
    assert hints.name("peft_type", "OFT_2") == "OFT" and hints.name("train_device", "cuda") == "cuda"
    assert value_name(str, "LORA") == value_name(None, "LORA") == "LORA"
