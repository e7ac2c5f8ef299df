"""Options that differ between configs."""

from modules.util.config.load import train_config_from_dict
from modules.viewModel.config_difference import differences


def config(**options):
    return train_config_from_dict(options)


def test_differences_have_titles_and_values_of_all_and_those_that_matter_come_first():
    one = config(workspace_dir="a", learning_rate=1e-3, peft_type="LORA", unet={"learning_rate": 0.5})
    two = config(workspace_dir="b", learning_rate=1e-3, peft_type="OFT_2")
    three = config(workspace_dir="b", learning_rate=2e-3)
    found = {one.path: one for one in differences([one, two, three])}
    assert set(found) == {"workspace_dir", "learning_rate", "peft_type", "unet.learning_rate"}
    assert found["learning_rate"].values == ("0.001", "0.001", "0.002")
    assert found["peft_type"].values == ("LoRA", "OFT", "LoRA")
    assert (
        found["unet.learning_rate"].title == "U-Net › Learning rate"
        and found["unet.learning_rate"].values[1] == "empty"
    )
    assert not found["workspace_dir"].matters and list(found)[-1] == "workspace_dir"
    assert not differences([one, one.model_copy(deep=True)])


def test_lists_are_compared_item_by_item():
    found = differences(
        [config(concepts=[{"path": "a"}]), config(concepts=[{"path": "b"}, {"path": "c", "name": "x"}])]
    )
    titles = {one.title: one.values for one in found}
    assert titles["Concepts › 1 › Folder"] == ("a", "b") and titles["Concepts › 2 › Folder"] == ("–", "c")


def test_an_optimizers_own_default_is_filled_in_and_tokens_are_not_shown():
    one = config(optimizer={"optimizer": "ADAMW"}, secrets={"huggingface_token": "hf"})
    two = config(optimizer={"optimizer": "ADAMW", "beta1": 0.8})
    (only,) = differences([one, two], {"ADAMW": {"beta1": 0.9}})
    assert only.path == "optimizer.beta1" and only.values == ("0.9", "0.8")
    assert not differences([one, config(optimizer={"optimizer": "ADAMW", "beta1": 0.9})], {"ADAMW": {"beta1": 0.9}})
