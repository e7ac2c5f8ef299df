"""Older files of OneTrainer mean today what they meant then."""

from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.load import train_config_from_dict

import pytest


def migrate(version: int, **data):
    warnings = []
    config = train_config_from_dict({"__version": version, **data}, warn=warnings.append)
    assert warnings == []
    return config


def test_first_version():
    config = migrate(
        0,
        model_type="STABLE_DIFFUSION_15",
        training_method="LORA",
        optimizer="ADAM",
        optimizer_beta1=0.8,
        train_unet=True,
        train_unet_epochs=7,
        unet_learning_rate=1e-3,
        unet_weight_dtype="NONE",
        weight_dtype="FLOAT_16",
        train_text_encoder=False,
        vae_weight_dtype="FLOAT_32",
        min_snr_gamma=5.0,
        noising_weight=2.0,
        noising_bias=0.7,
        gradient_checkpointing=False,
        save_after=3,
        save_after_unit="EPOCH",
        lora_layer_preset=None,
        lora_layers="attn",
        token_count=3,
        embedding_model_names=["e.pt"],
        prior_model_name="p",
        output_model_format="SAFETENSORS",
    )
    assert (config.optimizer.optimizer, config.optimizer.beta1) == ("ADAM", 0.8)
    assert config.optimizer_defaults["ADAM"].beta1 == 0.8
    assert (config.unet.stop_training_after, config.unet.stop_training_after_unit) == (7, "EPOCH")
    assert (config.unet.learning_rate, config.unet.weight_dtype) == (1e-3, "FLOAT_16")
    assert (config.text_encoder.train, config.vae.weight_dtype) == (False, "FLOAT_32")
    assert (config.loss_weight_fn, config.loss_weight_strength) == ("MIN_SNR_GAMMA", 5.0)
    assert (config.timestep_distribution, config.noising_weight) == ("SIGMOID", 2.0)
    assert config.noising_bias == pytest.approx(0.2)  # 0.7 − 0.5 rounds
    assert not config.unet.gradient_checkpointing and not config.vae.gradient_checkpointing
    assert (config.save_every, config.save_every_unit) == (3, "EPOCH")
    assert (config.layer_filter, config.layer_filter_preset) == ("attn", "full")
    assert (config.embedding.token_count, config.embedding.model_name) == (3, "e.pt")
    assert config.prior.model_name == config.transformer.model_name == "p"
    assert config.output_model_format == "LEGACY_LORA"


def test_cascade_keeps_its_prior_and_gets_p2():
    config = migrate(0, model_type="WUERSTCHEN_2", train_prior=True, prior_learning_rate=2e-5)
    assert (config.loss_weight_fn, config.loss_weight_strength) == ("P2", 1.0)
    assert (config.prior.learning_rate, config.transformer.learning_rate) == (2e-5, None)
    assert config.output_model_format == "SAFETENSORS"


def test_offloading_is_spread_over_the_components():
    config = migrate(
        10,
        gradient_checkpointing="CPU_OFFLOADED",
        layer_offload_fraction=0.4,
        enable_activation_offloading=True,
        enable_async_offloading=False,
        unet={"train": False},
    )
    assert not config.async_offloading and not config.unet.train
    for component in (config.unet, config.text_encoder):
        assert (component.gradient_checkpointing, component.activation_offloading, component.offload_fraction) == (
            True,
            True,
            0.4,
        )
    assert config.text_encoder.stop_training_after == 30
    without = migrate(10, gradient_checkpointing="ON", layer_offload_fraction=0.4)
    assert (without.unet.offload_fraction, without.unet.activation_offloading) == (0.0, False)


def test_old_meaning_is_not_applied_to_files_without_version():
    config = train_config_from_dict({"noising_weight": 2.0, "noising_bias": 0.7, "output_model_format": "SAFETENSORS"})
    assert (config.timestep_distribution, config.noising_bias) == ("UNIFORM", 0.7)
    assert config.output_model_format == "SAFETENSORS"


def test_current_version_is_left_alone():
    assert migrate(11, output_model_format="SAFETENSORS").output_model_format == "SAFETENSORS"


@pytest.mark.parametrize("version", range(11))
def test_every_version_takes_an_empty_file(version):
    migrate(version)


@pytest.mark.parametrize("version", range(11))
def test_wrong_types_are_left_to_validation(version):
    data = {"unet": 3, "optimizer": {"optimizer": "ADAM"}, "lora_layers": 3, "embedding_model_names": 3}
    with pytest.raises(ValueError, match="unet: found 3, expected an object"):
        train_config_from_dict({"__version": version, **data}, warn=lambda _: None)


def test_concepts():
    old = ConceptConfig.from_dict({"__version": 0, "repeats": 3, "validation_concept": True})
    assert (old.balancing, old.type) == (3.0, "VALIDATION")
    assert ConceptConfig.from_dict({"__version": 1, "validation_concept": False}).type == "STANDARD"
    assert ConceptConfig.from_dict({"__version": 2, "type": "VALIDATION"}).type == "VALIDATION"
