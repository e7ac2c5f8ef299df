from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.ConceptImageConfig import ConceptImageConfig
from modules.util.config.load import train_config_from_dict
from modules.viewModel.concept_advice import RANDOM_CHANGES, advice, one_variation, random_changes
from modules.viewModel.format_help import comfy_note
from modules.viewModel.TrainForm import TrainForm

import pytest

FLIPPED = {"path": "cats", "image": {"enable_random_flip": True}}


def test_every_random_change_is_known():
    names = {name for name in ConceptImageConfig.model_fields if name.startswith("enable_random_")}
    assert names == set(RANDOM_CHANGES)


@pytest.mark.parametrize("name", list(RANDOM_CHANGES))
def test_one_variation_of_a_random_change_is_warned_of(name):
    concept = ConceptConfig.from_dict({"image": {name: True}})
    amount = RANDOM_CHANGES[name]
    if amount:
        assert one_variation(concept) == "", "as much as nothing is changed"
        setattr(concept.image, amount, 0.5)
    assert len(random_changes(concept)) == 1 and random_changes(concept)[0] in one_variation(concept)
    concept.image_variations = 2
    assert one_variation(concept) == ""


def test_concepts_that_are_not_trained_are_left_out():
    concepts = [ConceptConfig.from_dict(FLIPPED | own) for own in ({"enabled": False}, {"type": "VALIDATION"}, {})]
    assert [one.place for one in advice(concepts)] == [2]
    assert advice([ConceptConfig()]) == []


def test_it_is_offered_after_choices_and_not_again_once_declined():
    form = TrainForm(train_config_from_dict({"training_method": "LORA", "concepts": [{"path": "dogs"}, FLIPPED]}))
    assert form.offer() is None
    form.look_at_concepts()
    assert form.offer().concept == 1 and form.offer().text.startswith("cats: With 1 image variation")
    form.set_text("optimizer.optimizer", "STIEFEL_LORA")
    assert form.offer().concept is None, "what was just chosen comes first"
    form.decline_offer()
    assert form.offer().concept == 1
    form.decline_offer()
    assert form.offer() is None
    form.look_at_concepts()
    assert form.offer() is None
    form.config.concepts[1].image.enable_random_hue, form.config.concepts[1].image.random_hue_max_strength = True, 0.1
    form.look_at_concepts()
    assert "Random hue" in form.offer().text


@pytest.mark.parametrize(
    ("options", "words", "warns"),
    [
        ({}, "loads it as it is", False),
        ({"output_model_format": "COMFY_LORA", "peft_type": "LOKR"}, "loads it as it is", False),
        ({"output_model_format": "DIFFUSERS_LORA"}, "For ComfyUI choose “kohya", True),
        ({"output_model_format": "LEGACY_LORA"}, "For ComfyUI choose “kohya", True),
        ({"peft_type": "OFT_2"}, "stock ComfyUI cannot apply it", True),
        ({"lora_decompose": True, "lora_decompose_output_axis": True}, "Choose COMFY_LORA", True),
        ({"model_type": "SANA"}, "does not know this model", True),
        ({"training_method": "FINE_TUNE", "output_model_format": "DIFFUSERS"}, "no diffusers folder", True),
        ({"training_method": "FINE_TUNE", "output_model_format": "SAFETENSORS"}, "", False),
        ({"training_method": "EMBEDDING"}, "", False),
        ({"output_model_format": "DIFFUSERS"}, "", False),
    ],
)
def test_the_output_format_says_what_comfyui_makes_of_it(options, words, warns):
    config = train_config_from_dict(
        {"training_method": "LORA", "output_model_format": "KOHYA_LORA", "peft_type": "LORA"} | options
    )
    note = comfy_note(config)
    assert words in note.text and note.warns == warns and bool(note.text) == bool(words)
