"""Files: what can be read, how it is resolved, and what is said about the rest."""

import json
import logging

from modules.util.config.check_lists import list_problems
from modules.util.config.errors import ConfigError
from modules.util.config.load import (
    load_concepts,
    load_samples,
    load_train_config,
    pack,
    resolve_concepts,
    resolve_samples,
    train_config_from_dict,
)
from modules.util.config.TrainConfig import TrainConfig

import pytest

PRESETS = {
    "SD 1.5 LoRA": {
        "base_model_name": "models/sd15.safetensors",
        "batch_size": 4,
        "epochs": 40,
        "learning_rate": 3e-4,
        "model_type": "STABLE_DIFFUSION_15",
        "training_method": "LORA",
        "output_model_format": "KOHYA_LORA",
        "output_dtype": "FLOAT_16",
        "resolution": "512,640",
        "text_encoder": {"train": False, "weight_dtype": "FLOAT_16"},
        "unet": {"weight_dtype": "FLOAT_16"},
        "vae": {"weight_dtype": "FLOAT_32"},
        "weight_dtype": "FLOAT_16",
        "layer_filter": "attentions",
        "layer_filter_preset": "attn-mlp",
    },
    "SDXL DoRA with Prodigy": {
        "model_type": "STABLE_DIFFUSION_XL_10_BASE",
        "training_method": "LORA",
        "lora_decompose": True,
        "lora_rank": 8,
        "learning_rate": 1,
        "learning_rate_scheduler": "COSINE",
        "train_dtype": "BFLOAT_16",
        "optimizer": {"__version": 0, "optimizer": "PRODIGY", "growth_rate": "inf", "decouple": True, "beta3": None},
        "optimizer_defaults": {"PRODIGY": {"__version": 0, "optimizer": "PRODIGY", "d_coef": 0.5}},
        "loss_weight_fn": "MIN_SNR_GAMMA",
        "loss_weight_strength": 5,
        "ema": "CPU",
    },
    "Flux 2 OFT": {
        "model_type": "FLUX_2",
        "training_method": "LORA",
        "peft_type": "OFT_2",
        "oft_scaled": True,
        "compile": True,
        "transformer": {"train": True, "weight_dtype": "NFLOAT_4", "offload_fraction": 0.5},
        "quantization": {"layer_filter": "transformer_block", "layer_filter_preset": "blocks"},
        "timestep_distribution": "LOGIT_NORMAL",
        "dynamic_timestep_shifting": True,
        "attention_mechanism": "CUDNN",
    },
    "Finetune of a family that comes later": {
        "model_type": "STABLE_CASCADE_1",
        "training_method": "FINE_TUNE",
        "prior": {"weight_dtype": "BFLOAT_16"},
        "decoder": {"model_name": "somebody/cascade", "weight_dtype": "FLOAT_16"},
        "optimizer": {"optimizer": "ADAFACTOR", "decay_rate": -0.8, "eps": 1e-30, "eps2": 1e-3, "relative_step": False},
    },
    "embedding": {
        "model_type": "STABLE_DIFFUSION_21",
        "training_method": "EMBEDDING",
        "output_model_format": "SAFETENSORS",
        "embedding": {"token_count": 4, "placeholder": "<cat>"},
        "embedding_learning_rate": 1e-3,
        "masked_training": True,
        "max_noising_strength": 0.8,
    },
}


@pytest.fixture
def write(tmp_path):
    def write_file(content, name="my.json"):
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write_file


def message_of(path, *arguments) -> str:
    with pytest.raises(ConfigError) as caught:
        load_train_config(path, *arguments)
    return str(caught.value).replace(str(path), "my.json")


@pytest.mark.parametrize("name", PRESETS)
def test_preset_loads_and_survives_saving(write, tmp_path, name):
    warnings = []
    config = load_train_config(write(PRESETS[name]), warn=warnings.append)
    assert warnings == []
    for sparse in (False, True):
        config.save(tmp_path / "again.json", sparse=sparse)
        assert load_train_config(tmp_path / "again.json", warn=warnings.append) == config
    written = json.loads((tmp_path / "again.json").read_text(encoding="utf-8"))
    assert set(written) <= set(PRESETS[name]), "a sparse file names nothing that the preset did not"


def test_what_a_preset_does_not_name_has_its_default(write):
    config = load_train_config(write({"lora_rank": 4, "optimizer": {"optimizer": "LION"}}))
    expected = TrainConfig()
    expected.lora_rank = 4
    expected.optimizer.optimizer = "LION"
    assert config == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "my.json: is empty, expected JSON"),
        (b"\xef\xbb\xbf  \n", "my.json: is empty, expected JSON"),
        (b'{"a": 1\n "b": 2}', "my.json: is not valid JSON: line 2, column 2: Expecting ',' delimiter"),
        (b"[]", "my.json: holds an empty list, expected an object {…}"),
        (b'"x"', 'my.json: holds "x", expected an object {…}'),
        (b'{"a": "\xff"}', "my.json: is not UTF-8 text (byte 7); save it as UTF-8"),
        ('{"epochs": 3}'.encode("utf-16"), "my.json: is not UTF-8 text (byte 0); save it as UTF-8"),
        (b'{"epochs": 3, "epochs": 4}', "my.json: the key 'epochs' stands twice in one object"),
        (b'{"x": "\\ud800"}', "my.json: is not valid JSON: half of a \\ud800–\\udfff pair stands alone"),
        (b'{"x": ' + b"[" * 100 + b"]" * 100 + b"}", "my.json: is not a config: it is nested deeper than 50 levels"),
        (b'{"x": ' + b"[" * 200000 + b"}", "my.json: is not a config: a value in it is nested too deeply or too long"),
        (
            b'{"epochs": ' + b"1" * 5000 + b"}",
            "my.json: is not a config: a value in it is nested too deeply or too long",
        ),
        (b'{"learning_rate": NaN}', 'my.json: learning_rate: found "nan", expected a number of at least 0'),
        (b'{"learning_rate": 1e999}', 'my.json: learning_rate: found "inf", expected a number of at least 0'),
        (
            b'{"min_noising_strength": 0.9, "max_noising_strength": 0.5}',
            "my.json: min_noising_strength: found 0.9, expected less than max_noising_strength, which is 0.5",
        ),
        (
            b'{"force_v_prediction": true, "force_epsilon_prediction": true}',
            "my.json: force_v_prediction: found true, expected false, as force_epsilon_prediction is true",
        ),
        (
            b'{"mse_strength": 0}',
            (
                "my.json: mse_strength: found 0, expected at least one of mse_strength, mae_strength, "
                "log_cosh_strength, huber_strength above 0"
            ),
        ),
        (
            b'{"layer_filter": "attn,(ff", "layer_filter_regex": true}',
            (
                'my.json: layer_filter: found "(ff", expected a '
                "regular expression: missing ), unterminated subpattern at position 0"
            ),
        ),
        (
            b'{"learning_rate_scheduler": "CUSTOM"}',
            (
                "my.json: custom_learning_rate_scheduler: found null, expected "
                "module.Class, as learning_rate_scheduler is CUSTOM"
            ),
        ),
        (
            b'{"scheduler_params": [{"key": "a"}]}',
            'my.json: scheduler_params.0: expected an object with "key" (a text) and "value"',
        ),
        (
            b'{"concepts": [{"text": {"tag_dropout_special_tags": "[", "tag_dropout_special_tags_regex": true}}]}',
            (
                'my.json: concepts.0.text.tag_dropout_special_tags: found "[", expected a regular expression: '
                "unterminated character set at position 0"
            ),
        ),
        (b'{"__version": -1}', "my.json: __version: found -1, expected a whole number of at least 0"),
    ],
)
def test_unusable_file_gives_one_line(write, content, message):
    assert message_of(write(content)) == message


def test_missing_file_and_folder(tmp_path):
    assert message_of(tmp_path / "none.json").endswith("my.json: there is no such file")
    assert message_of(tmp_path).endswith(": is a folder, expected a JSON file")
    with pytest.raises(ConfigError, match="cannot be read|no such file"):
        load_train_config("a\0b")


def test_byte_order_mark_and_umlauts(write):
    path = write(b"\xef\xbb\xbf" + '{"workspace_dir": "Läufe/1"}'.encode())
    assert load_train_config(path).workspace_dir == "Läufe/1"


def test_comments_are_silent_and_kept_before_their_key(write, tmp_path):
    warnings = []
    config = load_train_config(
        write(
            '{"//": "top", "//lora_rank": "small", "lora_rank": 4, "__comment": "a", "__comment": "b",'
            '"concepts": [{"//path": "here", "path": "x"}]}'
        ),
        warn=warnings.append,
    )
    assert warnings == []
    config.save(tmp_path / "out.json")
    lines = [line.strip() for line in (tmp_path / "out.json").read_text(encoding="utf-8").splitlines()]
    assert lines[lines.index('"//lora_rank": "small",') + 1] == '"lora_rank": 4,'
    assert lines[lines.index('"//path": "here",') + 1] == '"path": "x",'
    assert load_train_config(tmp_path / "out.json") == config


def test_unknown_keys_are_named_once_and_kept(write, tmp_path, caplog):
    data = {
        "lora_rnak": 8,
        "beta2": 0.9,
        "gradient_checkpointing": True,
        "frames": "49",
        "zzz": {"deep": [1, None]},
        "unet": {"trian": True},
        "concepts": [{"repeats": 3, "image": {"flip": True}}],
        "optimizer_defaults": {"LION": {"betal": 1}},
    }
    with caplog.at_level(logging.WARNING):
        config = load_train_config(write(data))
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith(f"{tmp_path / 'my.json'}: 9 unknown keys have no effect, but will be kept")
    for text in (
        "lora_rnak (did you mean lora_rank?)",
        "beta2 (it belongs into optimizer: optimizer.beta2)",
        "gradient_checkpointing (an old spelling, write unet.gradient_checkpointing (one for each component))",
        "frames (an option of OneTrainer that this trainer does not have)",
        ", zzz,",
        "unet.trian (did you mean train?)",
        "concepts.0.repeats (an old spelling, write balancing)",
        "concepts.0.image.flip",
        "optimizer_defaults.LION.betal (did you mean beta1?)",
    ):
        assert text in message
    config.save(tmp_path / "out.json")
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert written["zzz"] == data["zzz"] and written["unet"]["trian"] is True
    assert written["concepts"][0]["image"]["flip"] is True
    assert load_train_config(tmp_path / "out.json", warn=lambda _: None) == config


def test_onetrainer_options_without_effect_are_silent_at_their_defaults(write):
    warnings = []
    load_train_config(
        write({"fused_gradient_reduce": True, "frames": "25", "cloud": {"enabled": False, "name": "x"}}),
        warn=warnings.append,
    )
    assert warnings == []
    switched = {"cloud": {"enabled": True}, "fused_gradient_reduce": False}
    load_train_config(write(switched), warn=warnings.append)
    assert len(warnings) == 1 and "2 unknown keys" in warnings[0]


def test_newer_format_is_announced(write):
    warnings = []
    assert load_train_config(write({"__version": 99, "lora_rank": 3}), warn=warnings.append).lora_rank == 3
    assert len(warnings) == 1 and "newer program (format 99, this one knows 11)" in warnings[0]


def test_scaled_oft_of_onetrainer_files():
    assert train_config_from_dict({"oft_scaled": True}).oft_scale_mode == "ELEMENTS"
    assert train_config_from_dict({"oft_scaled": True, "__version": 11}).oft_scale_mode == "ROW"
    assert train_config_from_dict({"oft_scaled": False, "__version": 11}).oft_scale_mode == "ELEMENTS"
    ours = train_config_from_dict({"oft_scaled": True})
    assert train_config_from_dict(ours.to_dict()) == ours, "our own files name the mode"


def test_oft_of_onetrainer_files_rotates_whole_kernels():
    oft = {"peft_type": "OFT_2"}
    assert train_config_from_dict({**oft, "__version": 11}).oft_kernels
    assert not train_config_from_dict(oft).oft_kernels, "a preset says what it means"
    assert not train_config_from_dict({"peft_type": "LORA", "__version": 11}).oft_kernels
    ours = train_config_from_dict(oft)
    assert train_config_from_dict(ours.to_dict()) == ours, "our own files name the layout"
    older = {key: value for key, value in ours.to_dict().items() if key != "oft_kernels"}
    assert "__version" in older and not train_config_from_dict(older).oft_kernels, "our older files mean channels"


def test_concepts_inline_and_from_file(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write([{"name": "a", "path": "p"}, {"enabled": False}], "concepts.json")
    config = load_train_config(write({"concept_file_name": "concepts.json"}))
    assert [concept.name for concept in resolve_concepts(config)] == ["a", ""]
    inline = load_train_config(write({"concept_file_name": "concepts.json", "concepts": [{"name": "b"}]}))
    assert [concept.name for concept in resolve_concepts(inline)] == ["b"]


def test_errors_in_concept_and_sample_files_name_file_and_key(write):
    path = write([{"path": "a"}, {"type": "STANDRAD", "image": {"random_hue_max_strength": 3}}, 4], "concepts.json")
    with pytest.raises(ConfigError) as caught:
        load_concepts(path)
    assert str(caught.value).splitlines() == [
        f"{path}: 3 problems",
        "  1.image.random_hue_max_strength: found 3, expected a number from -1 to 1",
        '  1.type: found "STANDRAD", expected one of STANDARD, VALIDATION, PRIOR_PREDICTION; did you mean "STANDARD"?',
        "  2: found 4, expected an object",
    ]
    with pytest.raises(ConfigError, match=r"samples.json: 0.width: found 0, expected a whole number from 8 to 16384"):
        load_samples(write([{"width": 0}], "samples.json"))
    with pytest.raises(ConfigError, match=r"holds an object, expected a list"):
        load_samples(write({"width": 0}, "samples.json"))


def test_missing_concept_file(tmp_path):
    config = train_config_from_dict({"concept_file_name": str(tmp_path / "no.json"), "sample_definition_file_name": ""})
    with pytest.raises(ConfigError, match=r"no.json: there is no such file. .* set concept_file_name to another one"):
        resolve_concepts(config)
    with pytest.raises(ConfigError, match="sample_definition_file_name: found an empty text"):
        resolve_samples(config)


def test_a_run_without_the_usual_sample_file_has_no_samples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = train_config_from_dict({})
    assert resolve_samples(config) == []
    assert not [one for one in list_problems(config) if "sample" in one.path]
    usual = tmp_path / config.sample_definition_file_name
    usual.parent.mkdir()
    usual.write_text('[{"prompt": "a"}]')
    assert [sample.prompt for sample in resolve_samples(config)] == ["a"]
    config.sample_definition_file_name = "other.json"
    with pytest.raises(ConfigError, match="other.json: there is no such file"):
        resolve_samples(config)


def test_unknown_keys_in_concept_files(write):
    warnings = []
    (concept,) = load_concepts(
        write([{"paht": "x", "concept_stats": {"image_count": 3}}], "c.json"), warn=warnings.append
    )
    assert concept.concept_stats == {"image_count": 3}
    assert len(warnings) == 1 and "0.paht (did you mean path?)" in warnings[0]


def test_samples_take_the_familys_defaults(write):
    path = write([{"prompt": "a", "width": 64}], "samples.json")
    config = train_config_from_dict({"sample_definition_file_name": str(path)})
    (sample,) = resolve_samples(config, {"width": 1024, "height": 1024})
    assert (sample.width, sample.height, sample.seed) == (64, 1024, 42)


def test_packed_config_needs_no_other_files(write):
    concepts, samples = write([{"path": "p"}], "c.json"), write([{"prompt": "q"}], "s.json")
    config = train_config_from_dict({"concept_file_name": str(concepts), "sample_definition_file_name": str(samples)})
    packed = pack(config)
    concepts.unlink()
    samples.unlink()
    again = train_config_from_dict(packed.to_dict())
    assert resolve_concepts(again)[0].path == "p" and resolve_samples(again)[0].prompt == "q"
    assert config.concepts is None
