"""The coordinate check on a small model of each family; every method on a U-Net and on a transformer."""

from modules.tool.coord_check.CheckedBase import CheckedBase
from modules.tool.coord_check.methods import CHECKED
from modules.tool.coord_check.variants import prepared, variants_of
from modules.util.config.load import train_config_from_dict

import pytest

COMPONENT = {"train": True, "gradient_checkpointing": True}
SCALED = {"optimizer": {"optimizer": "ADAMW_ADV", "scaled_optm": True}, "learning_rate": 0.001}
FAMILIES = {
    "SD 1.5": {"model_type": "STABLE_DIFFUSION_15", "text_encoder": COMPONENT},
    "SDXL": {"model_type": "STABLE_DIFFUSION_XL_10_BASE", "text_encoder": COMPONENT, "text_encoder_2": COMPONENT},
    "SD 3.5": {
        "model_type": "STABLE_DIFFUSION_35", "output_model_format": "COMFY_LORA", "transformer": COMPONENT, "unet": {},
        "text_encoder": COMPONENT, "text_encoder_2": COMPONENT, "text_encoder_3": COMPONENT,
    },
    "Flux.1": {
        "model_type": "FLUX_DEV_1", "output_model_format": "COMFY_LORA", "transformer": COMPONENT, "unet": {},
        "text_encoder": {"train": False}, "text_encoder_2": {"train": False}, "dynamic_timestep_shifting": True,
    },
    "Flux.2 dev": {
        "model_type": "FLUX_2", "text_encoder_sequence_length": 40, "output_model_format": "COMFY_LORA",
        "transformer": COMPONENT, "unet": {}, "text_encoder": {"train": False}, "dynamic_timestep_shifting": True,
    },
}  # fmt: skip
FAMILIES["Flux.2 Klein"] = {**FAMILIES["Flux.2 dev"], "train_dtype": "BFLOAT_16"}
FAMILIES["Z-Image"] = {**FAMILIES["Flux.2 dev"], "model_type": "Z_IMAGE"}
FAMILIES["Chroma"] = {**FAMILIES["Flux.2 dev"], "model_type": "CHROMA_1"}
FAMILIES["Qwen-Image"] = {**FAMILIES["Flux.2 dev"], "model_type": "QWEN"}
FAMILIES["Ernie-Image"] = {**FAMILIES["Flux.2 dev"], "model_type": "ERNIE"}
FAMILIES["Krea 2"] = {**FAMILIES["Flux.2 dev"], "model_type": "KREA_2"}
FAMILIES["Anima"] = {**FAMILIES["Flux.2 dev"], "model_type": "ANIMA", "dynamic_timestep_shifting": False}
FAMILIES["HiDream"] = {**FAMILIES["SD 3.5"], "model_type": "HI_DREAM_FULL", "text_encoder_4": {"train": False}}
FAMILIES["PixArt alpha"] = {
    "model_type": "PIXART_ALPHA", "output_model_format": "COMFY_LORA", "transformer": COMPONENT, "unet": {},
    "text_encoder": COMPONENT,
}  # fmt: skip
FAMILIES["Sana"] = {
    **FAMILIES["Flux.2 dev"], "model_type": "SANA", "output_model_format": "DIFFUSERS_LORA",
    "dynamic_timestep_shifting": False,
}  # fmt: skip
FAMILIES["Ideogram 4"] = {
    **FAMILIES["Flux.2 dev"], "model_type": "IDEOGRAM_4", "output_model_format": "LEGACY_LORA"
}  # fmt: skip
# what a method does to a layer is the same in each family: the others show that their layers are found and measured
EVERY_METHOD = ("SD 1.5", "Flux.2 Klein")


@pytest.mark.parametrize("family", FAMILIES)
def test_methods_are_measured(make_run, folder_of, family):
    options = make_run().options(
        **{"unet": COMPONENT, **SCALED, **FAMILIES[family], "base_model_name": str(folder_of(family))}
    )
    config = prepared(train_config_from_dict(options), None, pytest.fail)
    remarks: list[str] = []
    base = CheckedBase(config, 2, 2, remarks.append)
    components = {name.split(".")[0] for name in base.inputs}
    assert components == {
        component for component in base.model.trainable_components if getattr(config, component).train
    }
    methods = list(CHECKED) if family in EVERY_METHOD else ["lora", "oft", "full"]
    found = {}
    for variant in variants_of(config, methods, ranks=(4,), blocks=(4,)):
        change = base.measure(variant, (1,))[1]
        found[variant.method] = change
        moved = [value for value in change.layers.values() if value > 0]
        # last layers of text encoders are not used; a rotation cannot sit on every layer
        assert len(moved) > 0.75 * len(base.inputs), variant.name
        assert 0 < change.prediction < 1 and max(moved) < 1, variant.name
    assert found.keys() == set(methods)
    # predictions in bfloat16 may be alike by chance
    each = {tuple(change.layers.items()) for change in found.values()}
    assert len(each) == len(found), "each is another training"
