"""Presets whose names promise a card fit on it by the estimate, and are not made for one far smaller.

An estimate takes seconds. The suite asks this of one kind of each family and of a fine-tune, of the preset for the
smallest card, which saves memory in the most ways; `--long` of all.
"""

from pathlib import Path

from modules.tool.memory_estimate import estimate_memory, load_without_weights
from modules.tool.MemoryEstimate import CARDS, GIB, card_line, smallest_card
from modules.util.config.load import load_train_config
from tests.model.preset_table import PRESETS, card_of, kind_of, name_of, of_kinds

import pytest

ROOT = Path(__file__).resolve().parent.parent
# kind -> its presets for cards, the smallest first
KINDS = of_kinds(filter(card_of, PRESETS))
# the plainest kind of each family, whose relatives have the same layers or a few more, and what most people train
QUICK = ["SDXL/#sdxl 1.0 LoRA", *{kind.split("/")[0]: kind for kind in sorted(KINDS, key=len, reverse=True)}.values()]
# preset -> the other cells of its row in the table of estimates
ROWS = {
    row[0].strip("`"): row[1:]
    for row in (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (ROOT / "docs" / "memory.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| `#")
    )
}
# kinds for which there is a preset for every common card
WHOLE_SETS = (
    "SDXL/#sdxl 1.0 LoRA",
    "SDXL/#sdxl 1.0 inpaint LoRA",
    "SD3/#sd 3.5 LoRA",
    "Flux1/#flux1 LoRA",
    "Flux1/#flux1 Kontext LoRA",
    "Flux1/#flux1 Fill LoRA",
    "Flux2/#flux2 LoRA",
    "Chroma/#chroma LoRA",
    "QwenImage/#qwen LoRA",
    "QwenImage/#qwen Edit LoRA",
    "Ernie-Image/#ernie LoRA",
    "Krea 2/#krea2 LoRA",
    "Anima/#anima LoRA",
    "HiDream Full/#hidream LoRA",
    "PixArt/#pixart sigma LoRA",
    "Sana/#sana LoRA",
    "Ideogram 4/#ideogram LoRA",
)


def pytest_generate_tests(metafunc):
    if "estimated" in metafunc.fixturenames:
        metafunc.parametrize("estimated", KINDS if metafunc.config.getoption("--long") else QUICK)


def test_the_common_cards_have_presets():
    names = {name_of(path) for presets in KINDS.values() for path in presets}
    assert {f"{kind} {card}GB" for kind in WHOLE_SETS for card in (8, 12, 16, 24)} <= names


def test_presets_fit_the_card_of_their_names_and_make_use_of_it(estimated, monkeypatch, long):
    monkeypatch.chdir(ROOT)
    for path in KINDS[estimated] if long else KINDS[estimated][:1]:
        config = load_train_config(path, ["offline_mode=true"], warn=lambda text: None)
        estimate = estimate_memory(load_without_weights(config, lambda text: None), config, lambda text: None)
        label, card = card_of(path), smallest_card(estimate)
        assert card is not None and card <= label, (path, card_line(estimate))
        assert CARDS.index(label) - CARDS.index(card) < 2, (path, card_line(estimate))
        assert card_line(estimate).startswith("peak ")
        # as the table of docs/memory.md has it
        sizes = [*map(estimate.total, ("caching", "training", "sampling")), estimate.whole_decoding]
        assert [float(cell) for cell in ROWS[path.stem][:4]] == pytest.approx([s / GIB for s in sizes], abs=0.06)
        assert ROWS[path.stem][4] == f"{card} GB"


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_sees_as_many_images_on_every_card(kind):
    """So that a learning rate means the same."""
    paths = [path for path in PRESETS if kind_of(path) == kind]
    configs = [load_train_config(path, warn=lambda text: None) for path in paths]
    assert len({config.batch_size * config.gradient_accumulation_steps for config in configs}) == 1, paths
    assert len(paths) >= 4 or kind not in WHOLE_SETS
