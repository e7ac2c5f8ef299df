"""Loads the plugin's presets in a real checkout of OneTrainer, with the plugin and without it.

    python scaled-onetrainer/checks/presets.py --onetrainer DIR --work FOLDER [--only TEXT] [--table FILE]

To be run with the checkout's own Python, with the plugin installed there.
"""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from scaled_onetrainer import SWITCH
from scaled_onetrainer.fields import options_in
from scaled_onetrainer.hooks.adapters import check_adapter_options
from scaled_onetrainer.hooks.config_fields import unguarded
from scaled_onetrainer.members import rule_of

import report
from make_presets import ADAPTER_KEYS, ALLOWED, ORIGIN, OUTPUT
from upstream import config_of, listening, train

# what a run on the tiny base takes from a preset
OWN_KEYS = frozenset(("training_method", "learning_rate", "optimizer", *ADAPTER_KEYS))
# without the plugin: it is not there, whether or not it is installed
MISSING = """
import contextlib, io, json, sys
from pathlib import Path
checkout, presets = sys.argv[1:]
sys.modules["scaled_onetrainer"] = None
sys.path.insert(0, checkout)
import torch
from modules.util import create
from modules.util.config.TrainConfig import TrainConfig
stopped = []
for path in sorted(Path(presets).glob("*/#*.json")):
    with contextlib.redirect_stdout(io.StringIO()):
        config = TrainConfig.default_values().from_dict(json.loads(path.read_text(encoding="utf-8")), migrate=False)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    try:
        create.create_lr_scheduler(
            config, optimizer, config.learning_rate_scheduler, warmup_steps=0, num_cycles=1.0, min_factor=0.0,
            num_epochs=1, batch_size=1, approximate_epoch_length=4, gradient_accumulation_steps=1,
        )
    except ModuleNotFoundError as error:
        if "scaled_onetrainer" in str(error):
            stopped.append(str(error))
            continue
        raise
    raise SystemExit(f"{path}: trains with {config.optimizer.optimizer} where the plugin is missing")
print(len(stopped), stopped[0])
"""


def files() -> list[Path]:
    """The presets."""
    return sorted(OUTPUT.glob("*/#*.json"))


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def load(data: dict[str, Any], migrate: bool) -> Any:
    """A config as OneTrainer reads it from a file, which must have nothing to say about it."""
    from modules.util.config.TrainConfig import TrainConfig

    with listening() as said:
        config = TrainConfig.default_values().from_dict(data, migrate=migrate).to_unpacked_config()
    assert not any("Could not set" in line for line in said), said
    return config


def settings(config: Any) -> dict[str, Any]:
    """Every setting of a config by its key, without the guard."""
    found = unguarded(config.to_dict())
    # drawn anew for every config
    found["embedding"] = {key: value for key, value in found["embedding"].items() if key != "uuid"}
    return {key: json.dumps(value, sort_keys=True) for key, value in found.items()}


def loaded(_folder: Path) -> str:
    """Each preset is read whole, by the window and by scripts/train.py alike, and trains with an optimizer of ours."""
    from modules.util.optimizer_util import change_optimizer

    options = 0
    for path in files():
        data = read(path)
        config = load(data, migrate=False)
        assert settings(config) == settings(load(data, migrate=True)), f"{path}: a script reads it differently"
        name = str(config.optimizer.optimizer)
        assert name == data["optimizer"]["optimizer"] and rule_of(name), f"{path}: {name}"
        found = options_in(name, vars(config.optimizer))
        for key, value in data["optimizer"].items():
            if key in found:
                assert found[key] == value, f"{path}: {key} {found[key]!r}"
                options += 1
        chosen = change_optimizer(config)
        assert chosen.to_dict() == config.optimizer.to_dict(), f"{path}: the window changes the optimizer"
        check_adapter_options(config)
    return f"{len(files())} presets, {options} options of optimizers"


def differences(_folder: Path) -> str:
    """Each preset differs in what it may from the preset that it was made from."""
    differing: set[str] = set()
    for path in files():
        data = read(path)
        base = read(Path("training_presets") / data[ORIGIN])
        for key in base.keys() | data.keys():
            assert key in ALLOWED or (key in base and key in data and base[key] == data[key]), f"{path}: {key}"
        theirs, ours = settings(load(base, migrate=False)), settings(load(data, migrate=False))
        changed = {key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key)}
        assert changed <= ALLOWED and "optimizer" in changed, f"{path}: {sorted(changed - ALLOWED)}"
        assert "learning_rate_scheduler" not in changed, f"{path}: the schedule"
        differing |= changed
    return f"differ in {', '.join(sorted(differing))}"


def stopped(_folder: Path) -> str:
    """Each preset stops where the plugin is missing, before it would train with OneTrainer's AdamW."""
    environment = {**os.environ, SWITCH: "0"}
    run = subprocess.run(
        [sys.executable, "-c", MISSING, str(Path.cwd()), str(OUTPUT)],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    count, _, error = run.stdout.strip().splitlines()[-1].partition(" ")
    assert int(count) == len(files()), f"{count} of {len(files())} stop"
    return f"{count} presets stop: {error}"


def kinds() -> dict[str, Path]:
    """One preset of each kind: those that set the same are alike on the tiny base."""
    found: dict[str, Path] = {}
    for path in files():
        found.setdefault(json.dumps(own_settings(path), sort_keys=True), path)
    return found


def own_settings(path: Path) -> dict[str, Any]:
    """What a preset sets by itself, and whether it trains an adapter."""
    return {key: value for key, value in read(path).items() if key in OWN_KEYS}


def trained(path: Path, folder: Path) -> str:
    """A preset trains the tiny base, in bfloat16 where its optimizer rounds to that."""
    data = own_settings(path)
    rounded = data["optimizer"].get("stochastic_rounding")
    numbers = {"train_dtype": "BFLOAT_16", "unet": {"weight_dtype": "BFLOAT_16"}} if rounded else {}
    full = {"output_model_format": "DIFFUSERS"} if data["training_method"] == "FINE_TUNE" else {}
    run = train(config_of(folder, data, numbers, full))
    assert len(run.losses) == 4 and all(0 < loss < 10 for loss in run.losses), run.losses
    group = run.optimizer.param_groups[0]
    wrong = [key for key, value in data["optimizer"].items() if key in group and group[key] != value]
    assert not wrong and group["configured_lr"] == data["learning_rate"], wrong
    return f"{len(run.losses)} steps, {len(run.trainer.parameters)} parameters"


def checks() -> list[report.Check]:
    """All presets at once, and one run of each kind."""
    runs = [
        (f"preset {path.parent.name} {path.stem} on the tiny base", partial(trained, path)) for path in kinds().values()
    ]
    return [
        ("presets are read whole", loaded),
        ("presets differ from OneTrainer's in what they may", differences),
        ("presets stop where the plugin is missing", stopped),
        *runs,
    ]


if __name__ == "__main__":
    sys.exit(report.main(__doc__, checks))
