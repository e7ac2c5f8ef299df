"""docs/presets.md: every shipped preset resolves, passes the checks and runs. A new preset is enrolled by its file.

Of presets that differ by the card alone the suite runs that of the smallest card, which saves memory in the most ways;
`--long` runs all.
"""

import math
from pathlib import Path

from modules.model.BaseModel import family_of
from modules.model.StandardSource import StandardSource
from modules.model.weight_formats import is_quantized_format
from modules.trainer.checks import open_model, run_problems
from modules.trainer.trained import methods_of
from modules.util.config.load import load_train_config, resolve_concepts, resolve_samples, train_config_from_dict
from modules.util.enum.ModelType import ModelType
from tests.model.preset_runs import STEPS, ShortRun, check_written, run, short_options
from tests.model.preset_table import HEAD, PRESETS, ROOT, TESTS, YES, name_of, of_kinds, rows, wanted_rows

import torch

import pytest

REWRITE = "python -m tests.model.preset_table writes the table anew"
# of what a preset does as it should, what people may want to know: who can read the file, and how clipping works
WORTH_A_LINE = ("ComfyUI", "OneTrainer", "optimizer.fused_back_pass: the norm of the whole gradient is never known")
CPU = torch.device("cpu")
KINDS = of_kinds(PRESETS)
every_preset = pytest.mark.parametrize("preset", PRESETS, ids=name_of)


def refuse(text: str) -> None:
    pytest.fail(text)


def test_the_table_has_a_row_for_each_preset_and_every_cell_is_a_test():
    found, wanted = rows(), wanted_rows()
    assert found.keys() == wanted.keys(), REWRITE
    assert found == wanted, REWRITE
    assert all(
        len(row) == len(HEAD) + len(TESTS) and row[-len(TESTS) :] == (YES,) * len(TESTS) for row in found.values()
    )
    tests = {name for name in globals() if name.startswith("test_a_preset_")}
    assert tests == {f"test_a_preset_{column.replace(' ', '_')}" for column in TESTS}


@pytest.fixture(scope="session")
def caches(tmp_path_factory) -> Path:
    """A folder in which runs of the same base share a cache."""
    return tmp_path_factory.mktemp("preset caches")


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors this small cost more to share among threads than to compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def base_of(request):
    """base_of(config) -> the small model that stands for the preset's; None where the preset brings its own."""
    # the second ones have layers that are large enough to be quantized
    fixtures = {
        ModelType.STABLE_DIFFUSION_15: ("mini_base", "wide_base"),
        ModelType.STABLE_DIFFUSION_XL_10_BASE: ("xl_folder", "wide_xl_folder"),
        ModelType.STABLE_DIFFUSION_15_INPAINTING: ("inpainting_folder", "inpainting_folder"),
        ModelType.STABLE_DIFFUSION_XL_10_BASE_INPAINTING: ("xl_inpainting_folder", "wide_xl_inpainting_folder"),
        ModelType.STABLE_DIFFUSION_35: ("wide_sd3_folder", "wide_sd3_folder"),
        ModelType.FLUX_DEV_1: ("flux1_folders", "wide_flux1_folders"),
        ModelType.FLUX_KONTEXT_DEV_1: ("flux1_relative_folders", "wide_flux1_relative_folders"),
        ModelType.FLUX_FILL_DEV_1: ("flux1_relative_folders", "wide_flux1_relative_folders"),
        ModelType.FLUX_2: ("flux2_folders", "wide_flux2_folders"),
        ModelType.Z_IMAGE: ("zimage_folder", "wide_zimage_folder"),
        ModelType.CHROMA_1: ("chroma_folder", "wide_chroma_folder"),
        ModelType.QWEN: ("qwen_folder", "wide_qwen_folder"),
        ModelType.QWEN_EDIT: ("wide_qwen_edit_folder", "wide_qwen_edit_folder"),
        ModelType.ERNIE: ("ernie_folder", "wide_ernie_folder"),
        ModelType.KREA_2: ("krea2_folder", "wide_krea2_folder"),
        ModelType.ANIMA: ("anima_folder", "wide_anima_folder"),
        ModelType.HI_DREAM_FULL: ("hidream_folder", "wide_hidream_folder"),
        ModelType.IDEOGRAM_4: ("ideogram_folder", "wide_ideogram_folder"),
        ModelType.SANA: ("sana_folder", "wide_sana_folder"),
        **dict.fromkeys((ModelType.PIXART_ALPHA, ModelType.PIXART_SIGMA), ("wide_pixart_folder",) * 2),
    }

    def find(config) -> Path | None:
        if (ROOT / config.base_model_name).is_dir():
            return None
        formats = [config.component_weight_dtype(component) for component in family_of(config).modules]
        found = request.getfixturevalue(fixtures[config.model_type][any(map(is_quantized_format, formats))])
        if isinstance(found, dict):
            relative = next((name for name in found if name in config.base_model_name.lower()), None)
            if relative in ("kontext", "fill"):
                return found[relative]
            return found["dev" if config.base_model_name.endswith("-dev") else "klein"]
        return found

    return find


@pytest.fixture
def options_of(base_of, caches, tmp_path, monkeypatch):
    """options_of(preset) -> the config of its short run, as JSON."""
    # paths in presets count from the repository's root
    monkeypatch.chdir(ROOT)

    def make(preset: Path) -> dict:
        config = load_train_config(preset, warn=refuse)
        base = base_of(config)
        return short_options(preset, tmp_path / preset.stem, caches / (base or ROOT).name, base)

    return make


@every_preset
def test_a_preset_resolves(preset, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load_train_config(preset, warn=refuse)
    resolve_samples(config, family_of(config).sample_defaults, warn=refuse)
    if (ROOT / config.base_model_name).is_dir():
        assert all(Path(concept.path).is_dir() for concept in resolve_concepts(config, warn=refuse))


@every_preset
def test_a_preset_passes_the_checks(preset, options_of):
    """With its own base model, whose layers are described in resources/; nothing it sets has no effect."""
    options, told = options_of(preset), []
    name = load_train_config(preset, warn=refuse).base_model_name
    config = train_config_from_dict(options | {"base_model_name": name}, warn=refuse)
    assert run_problems(config, told.append) == []
    if (ROOT / name).is_dir():
        open_model(train_config_from_dict(options, warn=refuse), CPU, told.append)
    else:
        model = family_of(config)(config, StandardSource(config.model_type, name), CPU)
        for method in methods_of(config):
            method.check_output(model, config, told.append)
        model.check_layers()
    assert not [line for line in told if not any(words in line for words in WORTH_A_LINE)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_preset_runs(kind, options_of, long):
    presets = KINDS[kind]
    for preset in presets if long else presets[:2][-1:]:
        check_run(run(options_of(preset)))


def check_run(done: ShortRun) -> None:
    assert STEPS <= len(done.losses) <= 8 and all(math.isfinite(loss) for loss in done.losses)
    check_written(done)
    assert not [line for line in done.warnings if "no effect" in line or "ignored" in line]
