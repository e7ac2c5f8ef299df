"""The table of docs/presets.md: what each shipped preset does, and what tests do with it.

`python -m tests.model.preset_table` in the repository's folder writes it anew; `test_every_preset.py` reads it.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from modules.model.BaseModel import family_of
from modules.util.config.load import load_train_config
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.OFTSide import OFTSide
from modules.util.enum.PeftType import PeftType
from modules.util.enum.TrainingMethod import TrainingMethod

ROOT = Path(__file__).resolve().parents[2]
FOLDER, PAGE = ROOT / "training_presets", ROOT / "docs" / "presets.md"
PRESETS = sorted(FOLDER.rglob("*.json"))
HEAD = ("preset", "base model", "trains", "optimizer, learning rate", "weights", "resolution × batch")
CARD = re.compile(r" (\d+)GB$")
# what is tried with every preset: a test of its own for each cell
TESTS = ("resolves", "passes the checks", "runs")
YES = "✓"


def name_of(preset: Path) -> str:
    """By which the table names a preset: its place below training_presets/, without the ending."""
    return preset.relative_to(FOLDER).with_suffix("").as_posix()


def kind_of(preset: Path) -> str:
    """Its name without the card that it is for."""
    return CARD.sub("", name_of(preset))


def card_of(preset: Path) -> int:
    """GB of the card that its name tells; 0 if it tells none."""
    found = CARD.search(preset.stem)
    return int(found[1]) if found else 0


def of_kinds(presets: Iterable[Path]) -> dict[str, list[Path]]:
    """Kind -> those of it: the one for no card first, then by card."""
    kinds: dict[str, list[Path]] = {}
    for preset in sorted(presets, key=card_of):
        kinds.setdefault(kind_of(preset), []).append(preset)
    return kinds


def facts(config: TrainConfig) -> tuple[str, ...]:
    """The cells of `HEAD` but the first."""
    return (
        f"`{config.base_model_name}`",
        _trains(config),
        f"`{config.optimizer.optimizer}`{' scaled' if config.optimizer.scaled_optm else ''}, {config.learning_rate:g}",
        _weights(config),
        f"{config.resolution} × {config.batch_size}",
    )


def _trains(config: TrainConfig) -> str:
    if config.training_method == TrainingMethod.EMBEDDING:
        return "embedding"
    if config.training_method == TrainingMethod.FINE_TUNE:
        return "full weights"
    decomposed = "Do" if config.lora_decompose else "Lo"
    kind = f"{decomposed}RA, rank {config.lora_rank}" if config.peft_type == PeftType.LORA else str(config.peft_type)
    if config.peft_type == PeftType.OFT_2:
        kind = f"OFT, blocks of {config.oft_block_size}"
    outputs = config.lora_decompose and config.lora_decompose_output_axis or (
        config.peft_type == PeftType.OFT_2 and config.oft_side == OFTSide.OUTPUT
    )  # fmt: skip
    return f"{kind}, outputs" if outputs else kind


def _weights(config: TrainConfig) -> str:
    """Number formats of the denoiser and the text encoders, one where they have the same; and what waits elsewhere."""
    family = family_of(config)
    components = [
        family.trainable_components[0],
        *(component for component in family.modules if component.startswith("text_encoder")),
    ]
    formats = dict.fromkeys(f"`{config.component_weight_dtype(component)}`" for component in components)
    waits = {
        f"{100 * getattr(config, component).offload_fraction:g} % of {component}": component for component in components
    }
    waiting = [text for text, component in waits.items() if getattr(config, component).offload_fraction]
    return ", ".join([" and ".join(formats), *(f"{text} waits" for text in waiting)])


def rows() -> dict[str, tuple[str, ...]]:
    """Preset -> its row as the page has it."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    cells = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]
    return {row[0].strip("`"): row for row in cells}


def wanted_rows() -> dict[str, tuple[str, ...]]:
    """Preset -> its row as the presets' files say."""
    found: dict[str, tuple[str, ...]] = {}
    for preset in PRESETS:
        config = load_train_config(preset, warn=lambda text: None)
        found[name_of(preset)] = (f"`{name_of(preset)}`", *facts(config), *(YES for _ in TESTS))
    return found


def write(found: Mapping[str, tuple[str, ...]]) -> None:
    """Puts the rows in place of those of the page."""
    table = [(*HEAD, *TESTS), tuple("---" for _ in (*HEAD, *TESTS)), *found.values()]
    lines = [f"| {' | '.join(row)} |" for row in table]
    lines[1] = lines[1].replace(" ", "")
    before = PAGE.read_text(encoding="utf-8").split("\n| preset |")[0].rstrip("\n")
    PAGE.write_text("\n".join([before, "", *lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    write(wanted_rows())
