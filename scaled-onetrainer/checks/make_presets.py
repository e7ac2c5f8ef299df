"""Writes the presets that the plugin adds to OneTrainer's list, from OneTrainer's own of a checkout.

    python scaled-onetrainer/checks/make_presets.py --onetrainer DIR [--table]

Each one is a preset of OneTrainer with another optimizer, learning rate and adapter, and everything else as it is.
`--table` writes nothing and prints what they are, for the documentation.
"""

import argparse
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scaled_onetrainer.hooks.config_fields import CLASS, KEPT, SCHEDULER, guarded

OUTPUT = Path(__file__).resolve().parents[1] / "scaled_onetrainer" / "presets"
MEMBER = "SCALED_ADAMW_ADV"
AUTHOR = (
    "the 0.001 of the scaled optimizers' author for LoRA (OneTrainer PR 1344), whose steps are 3.3 times larger here "
    "in a model as wide as SDXL, and the same for all methods as on the tiny base; not measured here on a large model"
)
LIKE_SCALED = (
    "that of the scaled optimizers, as the same rate was best for both on the tiny base; not measured on a large model"
)
CARRIED = (
    "a quarter of the 4e-4 that keeps what the tiny base knew, so that a step in a model as wide as SDXL is no larger; "
    "not measured elsewhere"
)
ADAPTER_RATE, FULL_RATE = 0.0003, 0.0001
# of a step, whatever the learning rate
CENTERED_DECAY = 0.0001
# Stable Diffusion 1 and 2 are small
SMALL_RANK, RANK = 16, 32
UNETS = ("SD1.5", "SD2.0", "SD2.1", "SDXL")
SMALL = ("SD1.5", "SD2.0", "SD2.1")
# what names of OneTrainer's presets begin with, by folder
MODELS = {
    "Anima": "anima",
    "Chroma": "chroma",
    "Ernie Image": "ernie",
    "Flux 2": "flux2",
    "Flux Dev.1": "flux",
    "HiDream Full": "hidream",
    "Hunyuan Video": "hunyuan video",
    "Ideogram 4": "ideogram",
    "Krea 2": "krea2",
    "PixArt Alpha": "pixart alpha 1.0",
    "PixArt Sigma": "pixart sigma 1.0",
    "QwenImage": "qwen",
    "SD1.5": "sd 1.5",
    "SD2.0": "sd 2.0",
    "SD2.1": "sd 2.1",
    "SD3": "sd 3",
    "SDXL": "sdxl 1.0",
    "Sana": "sana 1.6b",
    "Stable Cascade": "stable cascade",
    "Wuerstchen v2": "wuerstchen 2.0",
    "Z-Image": "z-image",
}
NAME = re.compile(r"(?P<variant>.*?)\s*(?:LoRA|Finetune)?\s*(?P<memory>\d+GB)?")
VERSION = re.compile(r"config_version\s*=\s*(\d+)")
ORIGIN, SOURCE = "//made_from", "//learning_rate"
ADAPTER_KEYS = (
    "peft_type",
    "lora_rank",
    "lora_alpha",
    "lora_decompose",
    "lora_decompose_output_axis",
    "lora_init",
    "oft_block_size",
    "oft_scaled",
    "oft_scale_mode",
)
ALLOWED = frozenset(
    ("__version", ORIGIN, SOURCE, "learning_rate", "optimizer", "optimizer_defaults", *ADAPTER_KEYS, SCHEDULER, CLASS)
) | frozenset(KEPT.values())
"""The keys of a config that a preset of ours may have with other values than the one that it was made from."""


@dataclass(frozen=True)
class Base:
    """A preset of OneTrainer.

    Attributes:
        family: its folder.
        file: its name.
        variant: what it is for beside the family's usual model, empty for that.
        memory: as its name says it, empty if it does not.
        config: what it holds.
    """

    family: str
    file: str
    variant: str
    memory: str
    config: Mapping[str, Any]

    @property
    def gigabytes(self) -> int:
        return int(self.memory.removesuffix("GB") or 0)


@dataclass(frozen=True)
class Change:
    """What a preset of ours sets.

    Attributes:
        method: what its name says.
        optimizer: member and options.
        learning_rate: of the run.
        source: where the learning rate comes from.
        adapter: keys of `ADAPTER_KEYS`.
    """

    method: str
    optimizer: Mapping[str, Any]
    learning_rate: float
    source: str
    adapter: Mapping[str, Any] = field(default_factory=dict)


def bases_of(checkout: Path) -> list[Base]:
    """OneTrainer's presets for adapters and full fine-tuning.

    Raises:
        ValueError: a folder that `MODELS` does not know.
    """
    found = []
    for path in sorted((checkout / "training_presets").glob("*/#*.json")):
        family = path.parent.name
        if family not in MODELS:
            raise ValueError(f"{family}: a folder of presets that MODELS does not know; add it.")
        config = json.loads(path.read_text(encoding="utf-8"))
        if config["training_method"] not in ("LORA", "FINE_TUNE"):
            continue
        name = NAME.fullmatch(path.stem.removeprefix("#").removeprefix(MODELS[family]).strip())
        found.append(Base(family, path.name, name["variant"], name["memory"] or "", config))
    return found


def scaled(**options: Any) -> dict[str, Any]:
    """The optimizer of most presets."""
    return {"optimizer": MEMBER, "scaled_optm": True, **options}


def adapters(family: str) -> Iterator[Change]:
    """The presets of a family that train an adapter."""
    rank = SMALL_RANK if family in SMALL else RANK
    lora = {"peft_type": "LORA", "lora_rank": rank, "lora_alpha": float(rank)}
    # as our own trainer's presets for SDXL and Flux.2 have them
    axis = {} if family in UNETS else {"lora_decompose_output_axis": True}
    rotation = {"peft_type": "OFT_2", "oft_block_size": 64, "oft_scaled": True, "oft_scale_mode": "ELEMENTS"}
    rite = {"optimizer": "LORA_RITE", "scaled_optm": True}
    yield Change("LoRA", scaled(), ADAPTER_RATE, AUTHOR, lora)
    yield Change("DoRA", scaled(), ADAPTER_RATE, AUTHOR, {**lora, "lora_decompose": True, **axis})
    yield Change("OFT", scaled(), ADAPTER_RATE, AUTHOR, rotation)
    stiefel = {**lora, "lora_init": "ORTHONORMAL"}
    yield Change("Stiefel LoRA", {"optimizer": "STIEFEL_LORA"}, ADAPTER_RATE, LIKE_SCALED, stiefel)
    yield Change("RITE LoRA", rite, ADAPTER_RATE, LIKE_SCALED, lora)


def fine_tuning(base: Base, memory: bool) -> Change:
    """Full fine-tuning: with hardly any state for little memory, else pulled to the model that it starts from."""
    if memory:
        options = {"state_precision": "factored", "stochastic_rounding": True, "fused_back_pass": True}
    else:
        options = {"centered_wd": CENTERED_DECAY, "centered_wd_mode": "int4"}
        if trained_dtype(base.config) == "BFLOAT_16":
            state = "int8_sr" if base.memory else "bf16_sr"
            options |= {"state_precision": state, "stochastic_rounding": True, "fused_back_pass": True}
    return Change("Finetune", scaled(**options), FULL_RATE, CARRIED)


def trained_dtype(config: Mapping[str, Any]) -> str:
    """The number format of the weights that a preset trains."""
    components = (config[component] for component in ("transformer", "unet", "prior") if component in config)
    return next((component["weight_dtype"] for component in components if "weight_dtype" in component), "FLOAT_32")


def presets_of(bases: list[Base]) -> Iterator[tuple[str, Base, Change]]:
    """Our presets: the name, without ending, and what they are made of.

    LoRA and full fine-tuning are there for each memory. Everything else is made once, from the preset for most memory.
    """
    for base in bases:
        full = base.config["training_method"] == "FINE_TUNE"
        changes = [] if full else list(adapters(base.family))
        same = [other for other in bases if (other.family, other.variant) == (base.family, base.variant)]
        same = [other for other in same if other.config["training_method"] == base.config["training_method"]]
        if base.memory:
            change = fine_tuning(base, memory=True) if full else changes.pop(0)
            yield name_of(base.variant, change.method, base.memory), base, change
        if base is max(same, key=lambda other: other.gigabytes):
            for change in [fine_tuning(base, memory=False)] if full else changes:
                yield name_of(base.variant, change.method, ""), base, change


def name_of(variant: str, method: str, memory: str) -> str:
    return " ".join(word for word in ("#scaled", variant, method, memory) if word)


def preset(base: Base, change: Change, version: int) -> dict[str, Any]:
    """The whole config, which stops where the plugin is missing."""
    member = change.optimizer["optimizer"]
    own = {
        "__version": version,
        ORIGIN: f"{base.family}/{base.file}",
        **base.config,
        **change.adapter,
        SOURCE: change.source,
        "learning_rate": change.learning_rate,
        "optimizer": dict(change.optimizer),
        # the window takes an optimizer's options from here when a preset is chosen
        "optimizer_defaults": {**base.config.get("optimizer_defaults", {}), member: dict(change.optimizer)},
    }
    return guarded(own)


def version_of(checkout: Path) -> int:
    """The version that a checkout's configs have."""
    text = (checkout / "modules" / "util" / "config" / "TrainConfig.py").read_text(encoding="utf-8")
    return int(VERSION.search(text)[1])


def write(checkout: Path) -> int:
    """Writes all presets, removes others that were written before, and returns their number."""
    version, written = version_of(checkout), set()
    for name, base, change in presets_of(bases_of(checkout)):
        path = OUTPUT / base.family / f"{name}.json"
        if path in written:
            raise ValueError(f"{path}: two presets of one name")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps(preset(base, change, version), indent=4, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        written.add(path)
    for path in OUTPUT.glob("*/#*.json"):
        if path not in written:
            path.unlink()
    return len(written)


def words_of(change: Change) -> str:
    """What a preset sets, for a table."""
    options = {**change.optimizer, "learning_rate": change.learning_rate, **change.adapter}
    return ", ".join(f"`{key}` {json.dumps(value)}" for key, value in options.items())


def print_table(checkout: Path) -> None:
    """Two tables: what presets set, and which each family has, beside the preset that they were made from."""
    rows: dict[str, dict[str, dict[str, None]]] = {}
    families: dict[tuple[str, str], list[str]] = {}
    for name, base, change in presets_of(bases_of(checkout)):
        little = name.endswith("GB") and not change.adapter
        method = f"{change.method} with little memory" if little else change.method
        rows.setdefault(method, {}).setdefault(words_of(change), {})[base.family] = None
        families.setdefault((base.family, base.file.removesuffix(".json")), []).append(f"`{name}`")
    print("| method | families | sets |\n|---|---|---|")
    for method, kinds in rows.items():
        most = max(kinds.values(), key=len)
        for words, names in kinds.items():
            which = "all others" if names is most and len(kinds) > 1 else "all" if names is most else ", ".join(names)
            print(f"| {method} | {which} | {words} |")
    print("\n| family | made from | presets |\n|---|---|---|")
    for (family, base_name), names in families.items():
        print(f"| {family} | `{base_name}` | {', '.join(names)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--onetrainer", type=Path, required=True, help="checkout of OneTrainer")
    parser.add_argument("--table", action="store_true", help="only print what the presets are")
    arguments = parser.parse_args()
    if arguments.table:
        print_table(arguments.onetrainer)
    else:
        print(f"{write(arguments.onetrainer)} presets in {OUTPUT}")


if __name__ == "__main__":
    main()
