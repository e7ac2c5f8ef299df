"""What the window knows of families without loading them is what the model room says."""

import subprocess
import sys
from pathlib import Path

from modules.model.BaseModel import model_families
from modules.model.families import FAMILIES
from modules.model.single_file import RESOURCES
from modules.util.config.SampleConfig import SampleConfig
from modules.viewModel.families import SUPPORTED, components_of, sample_defaults_of

ROOT = Path(__file__).resolve().parents[2]


def test_supported_families_are_those_of_the_model_room():
    assert model_families().keys() == SUPPORTED


def test_the_registry_loads_no_torch():
    """The window asks it before the model room is there."""
    code = "import sys, modules.viewModel.families; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_registry_says_what_the_classes_are():
    for facts in FAMILIES:
        family = model_families()[facts.model_types[0]]
        assert family.__name__ == facts.class_name and family.model_types == facts.model_types
        assert set(facts.components) == set(family.modules) and facts.components[0] == family.trainable_components[0]
        assert facts.conditioning == family.conditioning
        # captions that are encoded in each step are encoded without pictures
        texts = family.embedding_keys or any(part.startswith("text_encoder") for part in family.trainable_components)
        assert not (family.captions_see_conditioning and texts)
        for model in facts.standard_models:
            assert set(model.types) <= set(facts.model_types) and (RESOURCES / model.folder).is_dir()
        for kind in facts.model_types:
            described = [model for model in facts.standard_models if kind in model.types]
            marks = [model.mark for model in described]
            assert len(described) == 1 or (all(marks) and len(set(marks)) == len(marks)), "a name tells which it is"


def test_components_hold_all_that_a_family_can_train():
    for model_type, family in model_families().items():
        components = components_of(model_type)
        assert components is not None and set(family.trainable_components) <= set(components), model_type
        assert "vae" in components


def test_samples_begin_as_the_family_draws_them():
    for model_type, family in model_families().items():
        defaults = sample_defaults_of(model_type)
        assert SampleConfig.from_dict(defaults) == SampleConfig.from_dict(dict(family.sample_defaults)), model_type
