"""docs/models.md: every cell of its tables is a test here, and every family and format has its cells.

The suite tries half of the kinds of adapters of each family; `--long` all.
"""

import itertools
from functools import cache
from pathlib import Path

from modules.model.BaseModel import BaseModel, family_of, model_families
from modules.modelSaver.adapter_output import check_adapter_output, save_adapters
from modules.modelSaver.AdapterFile import read_adapter
from modules.module.AdapterSet import AdapterSet
from modules.trainer.adapters import make_adapters
from modules.trainer.trained import make_trained, methods_of, save_trained
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ConditioningSource import ConditioningSource
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.found_problems import raise_problems
from modules.util.UserError import UserError

import torch

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
CPU = torch.device("cpu")
YES, NO = "✓", "–"
FAMILIES = {
    "SD 1.5, 2.x": "STABLE_DIFFUSION_15",
    "SDXL": "STABLE_DIFFUSION_XL_10_BASE",
    "SD 3, 3.5": "STABLE_DIFFUSION_35",
    "Flux.1": "FLUX_DEV_1",
    "Flux.2 dev": "FLUX_2",
    "Flux.2 Klein": "FLUX_2",
    "Z-Image": "Z_IMAGE",
    "Chroma": "CHROMA_1",
    "Qwen-Image": "QWEN",
    "Ernie-Image": "ERNIE",
    "Krea 2": "KREA_2",
    "Anima": "ANIMA",
    "HiDream": "HI_DREAM_FULL",
    "PixArt": "PIXART_ALPHA",
    "Sana": "SANA",
    "Ideogram 4": "IDEOGRAM_4",
}
# rows for several models -> the one that is tried
TRIED = {"SD 1.5, 2.x": "SD 1.5", "SD 3, 3.5": "SD 3.5", "PixArt": "PixArt alpha"}
# families without rows of their own -> their type, the rows that hold for them, and the methods that are tried: their
# layers are those of these rows, but for the size of the first one
ALIKE = {
    "SD 1.5 inpainting": ("STABLE_DIFFUSION_15_INPAINTING", "SD 1.5, 2.x", ("LoRA",)),
    "SD 2.0 inpainting": ("STABLE_DIFFUSION_20_INPAINTING", "SD 1.5, 2.x", ()),
    "SDXL inpainting": ("STABLE_DIFFUSION_XL_10_BASE_INPAINTING", "SDXL", ("DoRA, outputs",)),
    "Flux.1 Kontext": ("FLUX_KONTEXT_DEV_1", "Flux.1", ("LoRA",)),
    "Qwen-Image-Edit": ("QWEN_EDIT", "Qwen-Image", ("LoRA",)),
    "Flux.1 Fill": ("FLUX_FILL_DEV_1", "Flux.1", ("LoRA", "DoRA", "DoRA, outputs", "OFT", "LoKr")),
}
TYPES = FAMILIES | {family: kind for family, (kind, _, _) in ALIKE.items()}
ROW = {family: row for family, (_, row, _) in ALIKE.items()}
OUTPUT = {"oft_side": "OUTPUT"}
METHODS = {
    "LoRA": {},
    "DoRA": {"lora_decompose": True},
    "DoRA, outputs": {"lora_decompose": True, "lora_decompose_output_axis": True},
    "OFT": {"peft_type": "OFT_2"},
    "OFT, outputs": {"peft_type": "OFT_2", **OUTPUT},
    "DoRA-OFT": {"peft_type": "OFT_2", "lora_decompose": True},
    "LoHa": {"peft_type": "LOHA"},
    "LoKr": {"peft_type": "LOKR"},
}
FULL = "Full weights"


def table_rows(heading: str) -> list[tuple[str, str, str, str]]:
    """(family, method, format, cell) of the table below a heading."""
    text = PAGE.read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    formats = lines[0][2:]
    return [
        (*line[:2], name.strip("`"), cell) for line in lines[2:] for name, cell in zip(formats, line[2:], strict=True)
    ]


ADAPTERS, WEIGHTS = table_rows("Adapters"), table_rows("Full fine-tuning")


def test_the_tables_are_complete():
    served_alike = {"STABLE_DIFFUSION_20", "STABLE_DIFFUSION_21", "STABLE_DIFFUSION_3", "PIXART_SIGMA"}
    assert {*TYPES.values()} | served_alike >= {
        kind.removesuffix("_BASE") if kind.startswith("STABLE_DIFFUSION_2") else str(kind) for kind in model_families()
    }
    assert {row[:2] for row in ADAPTERS} == set(itertools.product(FAMILIES, METHODS))
    assert {row[2] for row in ADAPTERS} == {name for name in ModelFormat if name.endswith("_LORA")} | {"INTERNAL"}
    assert {row[:2] for row in WEIGHTS} == {(family, FULL) for family in FAMILIES}
    assert {row[3] for row in ADAPTERS + WEIGHTS} == {YES, NO}


def config_of(folder: Path, family: str, **changes) -> TrainConfig:
    encoders = ("text_encoder", *(f"text_encoder_{number}" for number in (2, 3, 4)))
    quiet = {component: {"train": False} for component in encoders}
    return TrainConfig.from_dict({
        "base_model_name": str(folder), "model_type": TYPES[family], "lora_rank": 4, "oft_block_size": 8,
        "lora_init_scale": 1.0, "output_dtype": "FLOAT_32", "text_encoder_sequence_length": 40, "concepts": [],
        **quiet, **changes,
    })  # fmt: skip


@cache
def load(folder: Path, family: str) -> BaseModel:
    config = config_of(folder, family)
    return family_of(config).load(config, CPU)


def prediction(model: BaseModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    pixels = torch.rand(1, 3, 32, 32, generator=generator) * 2 - 1
    sees, texts = model.captions_see_conditioning, ["red cat"]
    encoded = model.encode_instructions(texts, pixels.flip(3)) if sees else model.encode_captions(texts)
    conditions = {**encoded, "placement": torch.tensor([[32.0, 32, 0, 0, 32, 32]])}
    if model.conditioning != ConditioningSource.NONE:
        mask = (pixels[:, :1] > 0).float() if model.conditioning == ConditioningSource.MASK else None
        conditions |= model.encode_conditioning(pixels.flip(3), mask)
    with torch.no_grad():
        return model.predict(model.encode_images(pixels), conditions, generator).predicted


def disturb(parameters) -> None:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def pytest_generate_tests(metafunc):
    if "method" not in metafunc.fixturenames:
        return
    alike = [(family, own) for family, (*_, some) in ALIKE.items() for own in some]
    pairs = [*itertools.product(FAMILIES, METHODS), *alike]
    if not metafunc.config.getoption("--long"):
        # half of the kinds of each family, the other half of the next one
        pairs = [
            (family, method) for place, family in enumerate(FAMILIES)
            for method in itertools.islice(METHODS, place % 2, None, 2)
        ] + alike[::2]  # fmt: skip
    metafunc.parametrize(("family", "method"), pairs)


def test_adapters_come_back_from_each_format_or_are_refused(folder_of, tmp_path, family, method):
    folder = folder_of(TRIED.get(family, family))
    model, component = load(folder, family), load(folder, family).trainable_components[0]
    settings = {**METHODS[method], component: {"gradient_checkpointing": False}}
    config = config_of(folder, family, **settings)
    plain = prediction(model)
    sets = make_adapters(model, config, [component], lambda text: None)
    disturb(sets[component].parameters())
    sets[component].eval()
    expected = prediction(model)
    sets[component].unhook()
    assert (expected - plain).abs().max() > 1e-3 and torch.equal(prediction(model), plain)
    found = {}
    rows = [row for row in ADAPTERS if row[:2] == (ROW.get(family, family), method)]
    for own in rows:
        path = tmp_path / f"{own[2]}.safetensors"
        written = config.model_copy(update={"output_model_format": ModelFormat(own[2])})
        try:
            check_adapter_output(written, model.adapter_naming(), lambda text: None)
        except UserError:
            found[own[2]] = NO
            continue
        save_adapters(path, sets, model, written, lambda text: None)
        file = read_adapter(path)
        layers = file.fit(model.adapter_naming(), model.components)[component]
        again = AdapterSet.from_parts(component, model.components[component], layers, bool(file.neumann))
        again.hook()
        again.eval()
        try:
            # what the format itself rounds: sums of joined factors, lengths that a reader computes anew
            torch.testing.assert_close(prediction(model), expected, atol=1e-4, rtol=1e-4)
        finally:
            again.unhook()
        found[own[2]] = YES
    assert found == {row[2]: row[3] for row in rows}


@pytest.mark.parametrize("family", TYPES)
def test_full_weights_come_back_from_each_format_or_are_refused(folder_of, tmp_path, family):
    found, settings = {}, {"training_method": "FINE_TUNE"}
    folder = folder_of(TRIED.get(family, family))
    component = load(folder, family).trainable_components[0]
    settings[component] = {"gradient_checkpointing": False}
    rows = [row for row in WEIGHTS if row[0] == ROW.get(family, family)]
    for own in rows:
        target = tmp_path / ("folder" if own[2] == "DIFFUSERS" else f"{own[2]}.safetensors")
        config = config_of(folder, family, output_model_format=own[2], output_model_destination=str(target),
                           **settings)  # fmt: skip
        model = family_of(config).load(config, CPU)
        try:
            for method in methods_of(config):
                raise_problems(method.check(config, type(model), lambda text: None))
                method.check_output(model, config, lambda text: None)
        except UserError:
            found[own[2]] = NO
            continue
        sets = make_trained(model, config, lambda text: None)
        disturb(sets[component].parameters())
        expected = prediction(model)
        assert (expected - prediction(load(folder, family))).abs().max() > 1e-3
        save_trained(target, sets, model, config, lambda text: None)
        # a file of a transformer needs the rest of the model beside it
        alone = component == "transformer" and target.is_file()
        changes = {component: {"model_name": str(target)}} if alone else {"base_model_name": str(target)}
        if target.is_file() and not alone:
            for kind in ("tokenizer", "tokenizer_2", "scheduler", "unet", "vae", "text_encoder", "text_encoder_2"):
                source = folder / kind
                for file in source.iterdir() if source.is_dir() else ():
                    if file.suffix != ".safetensors":
                        copy = target.with_name(f"{target.stem}.config") / kind / file.name
                        copy.parent.mkdir(parents=True, exist_ok=True)
                        copy.write_bytes(file.read_bytes())
        again = config_of(folder, family, **changes)
        # a file's tensors may stand at other addresses, and products are rounded by that
        torch.testing.assert_close(prediction(family_of(again).load(again, CPU)), expected, atol=1e-5, rtol=1e-5)
        found[own[2]] = YES
    assert found == {row[2]: row[3] for row in rows}
