"""No option is accepted and ignored: code reads it, or a table says what becomes of each of its values."""

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

from modules.model.BaseModel import model_families
from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.check_lists import list_problems
from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.document import config_classes
from modules.util.config.field_type import field_type
from modules.util.config.QuantizationConfig import QuantizationConfig
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.SecretsConfig import SecretsConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.config.TrainEmbeddingConfig import TrainEmbeddingConfig
from modules.util.config.TrainModelPartConfig import TrainModelPartConfig
from modules.util.config.TrainOptimizerConfig import TrainOptimizerConfig
from modules.util.config.unread import COMPONENT, CONCEPT, RUN, SAMPLE, unread_notes, unread_problems

import pytest

ROOT = Path(__file__).resolve().parents[3]
UNREAD_IN: dict[type[BaseConfig], set[str]] = {
    TrainConfig: {path for path in RUN if "." not in path},
    QuantizationConfig: {path.partition(".")[2] for path in RUN if path.startswith("quantization.")},
    SecretsConfig: {path.partition(".")[2] for path in RUN if path.startswith("secrets.")},
    TrainModelPartConfig: set(COMPONENT),
    ConceptConfig: set(CONCEPT),
    SampleConfig: set(SAMPLE),
}
# keys that several configs have, where the name alone does not show whose it is: what stands somewhere in the code
READERS: dict[tuple[type[BaseConfig], str], str] = {
    (TrainConfig, "seed"): r"config\.seed",
    # of the config's own room: the lists are read there
    (TrainConfig, "concept_file_name"): r"resolve_concepts\(",
    (TrainConfig, "sample_definition_file_name"): r"resolve_samples\(",
    (ConceptConfig, "seed"): r"concept\.seed",
    (SampleConfig, "seed"): r"sample\.seed",
    (TrainConfig, "cache_dir"): r"config\.cache_dir",
    (TrainConfig, "text_encoder_2_layer_skip"): r"own\.text_encoder_2_layer_skip",
    (TrainConfig, "text_encoder_2_sequence_length"): r"own\.text_encoder_2_sequence_length",
    (TrainConfig, "text_encoder_3_layer_skip"): r"getattr\(self\.config, f.\{component\}_layer_skip",
    (TrainConfig, "text_encoder_4_layer_skip"): r"getattr\(self\.config, f.\{component\}_layer_skip",
    (SampleConfig, "text_encoder_3_layer_skip"): r"getattr\(sample, f.text_encoder_\{number\}_layer_skip",
    (TrainConfig, "text_encoder_3_sequence_length"): r"self\.long_text_encoder\}_sequence_length",
    (
        SampleConfig,
        "text_encoder_3_sequence_length",
    ): r"sample, f.text_encoder_\{number or 1\}_sequence_length",
    (SampleConfig, "text_encoder_2_layer_skip"): r"sample\.text_encoder_2_layer_skip",
    (SampleConfig, "text_encoder_2_sequence_length"): r"sample\.text_encoder_2_sequence_length",
    (TrainConfig, "learning_rate"): r"config\.learning_rate\b",
    (TrainModelPartConfig, "learning_rate"): r"options_of\(config, name\)\.learning_rate",
    # `TrainConfig.component_weight_dtype` reads both
    (TrainConfig, "weight_dtype"): r"config\.component_weight_dtype\(",
    (TrainModelPartConfig, "weight_dtype"): r"config\.component_weight_dtype\(",
    (TrainConfig, "layer_filter"): r"LayerFilter\.from_config\(config",
    (TrainConfig, "layer_filter_preset"): r"LayerFilter\.from_config\(config",
    (TrainConfig, "layer_filter_regex"): r"LayerFilter\.from_config\(config",
    (QuantizationConfig, "layer_filter"): r"own = .*config\.quantization[\s\S]*LayerFilter\.from_config\(own",
    (QuantizationConfig, "layer_filter_preset"): r"own = .*config\.quantization[\s\S]*LayerFilter\.from_config\(own",
    (QuantizationConfig, "layer_filter_regex"): r"own = .*config\.quantization[\s\S]*LayerFilter\.from_config\(own",
    (TrainConfig, "dropout_probability"): r"config\.dropout_probability",
    (TrainModelPartConfig, "dropout_probability"): r"text_encoder\.dropout_probability",
    (ConceptConfig, "enabled"): r"concept\.enabled",
    (SampleConfig, "enabled"): r"for s in resolve_samples\(.* if s\.enabled",
    (TrainModelPartConfig, "model_name"): r"getattr\(config, component\)\.model_name",
    (TrainEmbeddingConfig, "model_name"): r"fit_embedding\(own\.model_name",
    (TrainModelPartConfig, "train"): r"getattr\(config, component\)\.train\b",
    (TrainEmbeddingConfig, "train"): r"config\.embedding\.train\b",
    (TrainModelPartConfig, "stop_training_after"): r"options\.stop_training_after",
    (TrainModelPartConfig, "stop_training_after_unit"): r"options\.stop_training_after_unit",
    (TrainEmbeddingConfig, "stop_training_after"): r"own\.stop_training_after",
    (TrainEmbeddingConfig, "stop_training_after_unit"): r"own\.stop_training_after_unit",
}
# other things have attributes of these names, or the option is refused a second time
ALSO_OF_OTHERS = {"attention_mask", "svd_dtype", "frames", "decoder", "compile", "include", "length"}
COMPONENTS = ("unet", "text_encoder", "vae")
COMPONENTS = {name for family in model_families().values() for name in family.modules}
FIELDS = [
    (owner, name) for owner in config_classes() if owner is not TrainOptimizerConfig for name in owner.model_fields
]
SHARED = {name for name, count in Counter(name for _, name in FIELDS).items() if count > 1}


def files() -> list[Path]:
    """All code but the config's room and this test's tables."""
    found = [*(ROOT / "modules").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]
    return [path for path in found if (ROOT / "modules" / "util" / "config") not in path.parents]


@cache
def sources() -> list[str]:
    return [path.read_text(encoding="utf-8") for path in files()]


@cache
def read_names() -> tuple[set[str], list[re.Pattern]]:
    """Attribute names that code outside of the config's room reads, and patterns of computed ones."""
    names, computed = set(), []
    for text in sources():
        tree = ast.parse(text)
        imported = {
            (alias.asname or alias.name).split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                if not (isinstance(node.value, ast.Name) and node.value.id in imported):
                    names.add(node.attr)
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "getattr":
                key = node.args[1]
                if isinstance(key, ast.Constant):
                    names.add(key.value)
                elif isinstance(key, ast.JoinedStr):
                    texts = [re.escape(v.value) if isinstance(v, ast.Constant) else r"\w+" for v in key.values]
                    # two wildcards would say nothing
                    if len(texts) == 2 and max(map(len, texts)) > 4:
                        computed.append(re.compile("".join(texts)))
    return names, computed


def is_read(owner: type[BaseConfig], name: str) -> bool:
    if (owner, name) in READERS or name in SHARED:
        reader = READERS.get((owner, name))
        return reader is not None and any(re.search(reader, text) for text in sources())
    if owner is TrainConfig and name in COMPONENTS:
        return True
    names, computed = read_names()
    return name in names or any(pattern.fullmatch(name) for pattern in computed)


def test_every_option_is_read_or_accounted_for():
    unread = [(owner, name) for owner, name in FIELDS if not is_read(owner, name)]
    assert [key for key in unread if key[1] not in UNREAD_IN.get(key[0], ())] == []


def test_what_is_read_does_not_stand_among_the_unread():
    listed = [(owner, name) for owner, names in UNREAD_IN.items() for name in names if name not in ALSO_OF_OTHERS]
    assert [key for key in listed if is_read(*key)] == []


def test_the_tables_name_options_that_there_are():
    for path, option in RUN.items():
        owner, _, key = path.rpartition(".")
        kind = field_type(TrainConfig, owner).kind if owner else TrainConfig
        assert key in kind.model_fields and option.reason
    for owner, table in ((TrainModelPartConfig, COMPONENT), (ConceptConfig, CONCEPT), (SampleConfig, SAMPLE)):
        assert table.keys() <= owner.model_fields.keys()


def test_a_default_is_never_refused_or_told():
    config = TrainConfig()
    for components in (family.modules for family in model_families().values()):
        own = [name for name in components if name in TrainConfig.model_fields]
        assert unread_problems(config, own) == [] and unread_notes(config, own) is None


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"fallback_train_dtype": "FLOAT_32", "train_dtype": "FLOAT_16"}, "fallback_train_dtype"),
        ({"force_circular_padding": True}, "force_circular_padding"),
        ({"debug_mode": True}, "debug_mode"),
        (
            {"training_method": "LORA", "masked_training": True, "masked_prior_preservation_weight": 0.5},
            "masked_prior_preservation_weight",
        ),
        ({"quantization": {"svd_dtype": "FLOAT_32"}}, "quantization.svd_dtype"),
        ({"vae": {"include": False}}, "vae.include"),
        ({"text_encoder": {"attention_mask": True}}, "text_encoder.attention_mask"),
        ({"text_encoder": {"train_embedding": False}, "additional_embeddings": [{}]}, "text_encoder.train_embedding"),
    ],
)
def test_what_would_be_another_run_is_refused_and_the_remedy_helps(changes, path):
    config = TrainConfig.from_dict(changes)
    (problem,) = unread_problems(config, COMPONENTS)
    assert problem.path == path and problem.text.startswith("found ") and ", but " in problem.text
    ((key, value),) = problem.remedies[0].values
    data = config.to_dict()
    owner, _, name = key.rpartition(".")
    (data[owner] if owner else data)[name] = value
    assert unread_problems(TrainConfig.from_dict(data), COMPONENTS) == []


def test_what_only_costs_time_is_told_in_one_line():
    config = TrainConfig.from_dict({"vb_loss_strength": 0.5})
    assert unread_problems(config, COMPONENTS) == []
    note = unread_notes(config, COMPONENTS)
    assert "\n" not in note and note.count("vb_loss_strength (") == 1
    config.vb_loss_strength = 1.0
    assert unread_notes(config, COMPONENTS) is None


def test_options_of_what_is_refused_or_of_other_families_are_left_alone():
    data = {
        "debug_dir": "x",
        "prior": {"train": True},
        "fallback_train_dtype": "FLOAT_32",
        "train_dtype": "BFLOAT_16",
        "quantization": {"svd_rank": 4, "cache_dir": "y"},
    }
    config = TrainConfig.from_dict(data)
    assert unread_problems(config, COMPONENTS) == [] and unread_notes(config, COMPONENTS) is None


def test_other_machines_are_refused():
    (problem,) = unread_problems(TrainConfig.from_dict({"cloud": {"enabled": True}}), COMPONENTS)
    assert problem.text.startswith("cloud: ")
    assert unread_problems(TrainConfig.from_dict({"cloud": {"enabled": False}}), COMPONENTS) == []


def test_a_sample_that_would_be_another_picture_is_refused(tmp_path):
    changes = {"frames": 25, "transformer_attention_mask": True, "length": 3.0}
    config = TrainConfig.from_dict({"samples": [{}, changes, {**changes, "enabled": False}], "concepts": []})
    found = [problem.text for problem in list_problems(config) if problem.path == "samples"]
    assert [text.split(": found")[0] for text in found] == [
        "sample 2: frames", "sample 2: transformer_attention_mask",
    ]  # fmt: skip
