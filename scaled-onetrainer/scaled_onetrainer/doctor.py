"""Says what the plugin finds in a checkout of OneTrainer, by loading and trying it."""

import io
import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from scaled_onetrainer import SWITCH, startup
from scaled_onetrainer.checkout import commit_of
from scaled_onetrainer.hook_table import HOOKS, WINDOW
from scaled_onetrainer.HookedLoader import HookedLoader

STARTER = "scaled_onetrainer.pth"
# a line of the report: None is a fact, else whether it is as it should be
Line = tuple[bool | None, str]
# a LoRA's down factor has a gradient from the second step on, and ADOPT takes one step to look
LAYERS, WIDTH, RANK, STEPS = 2, 16, 4, 4


def examine(root: Path) -> int:
    """Prints one line for each finding; returns 1 if something is missing, else 0.

    Args:
        root: of the checkout; this becomes the current folder, and its modules are loaded.
    """
    os.chdir(root)
    sys.path.insert(0, str(root))
    well = True
    for good, text in _examine(root):
        print(f"{'' if good is None else 'ok      ' if good else 'MISSING '}{text}", flush=True)
        well = well and good is not False
    print("All is as it should be." if well else "Something is missing: see the lines above.")
    return 0 if well else 1


def _examine(root: Path) -> Iterator[Line]:
    yield from facts(root)
    if startup.switched_off():
        yield False, f"the plugin is switched off by the environment variable {SWITCH}; unset it"
        return
    startup.start()
    loaded = True
    for good, text in hooks():
        loaded = loaded and good is not False
        yield good, text
    if not loaded:
        yield None, "Nothing was tried, as not all that training needs could be loaded."
        return
    yield from configs()
    yield from guard()
    yield from presets(Path(__file__).with_name("presets"))
    yield from steps()


def facts(root: Path) -> Iterator[Line]:
    """Commit, versions, and how the plugin starts."""
    yield None, f"OneTrainer {commit_of(root)} in {root}"
    yield None, f"Python {platform.python_version()} at {sys.executable}"
    found = {name: _version(name) for name in ("torch", "scaled-optim", "scaled-onetrainer")}
    yield None, ", ".join(f"{name} {text}" for name, text in found.items())
    places = [Path(folder) / STARTER for folder in sys.path if (Path(folder) / STARTER).is_file()]
    # the source folder has one, too, which Python does not read
    places = [place for place in places if place.parent.name in ("site-packages", "dist-packages")]
    if places:
        yield None, f"starts with Python by {places[0]}"
    else:
        yield (
            None,
            f"no {STARTER} in site-packages: only `python -m scaled_onetrainer train` starts the plugin",
        )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def hooks() -> Iterator[Line]:
    """Loads each module that the plugin adds to; a window's hook that fails is a fact, as training does without it."""
    # heavy: it comes with the packages of OneTrainer
    from scaled_onetrainer.run_hook import LOST, HookError

    for name, hook in HOOKS.items():
        file = f"{name.replace('.', '/')}.py"
        try:
            module = import_module(name)
        except HookError as error:
            yield False, str(error)
            continue
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            yield None if hook.kind == WINDOW else False, f"{file} can't be loaded by this Python: {reason}"
            continue
        if hook.name in LOST:
            yield None if hook.kind == WINDOW else False, LOST[hook.name]
        else:
            worked = isinstance(getattr(module.__spec__, "loader", None), HookedLoader)
            yield worked, f"{file}: {hook.gives}"


def configs() -> Iterator[Line]:
    """Each of our optimizers, written into a config of OneTrainer's and read again."""
    from scaled_onetrainer.fields import defaults_of
    from scaled_onetrainer.members import MEMBERS

    kind = import_module("modules.util.config.TrainConfig").TrainConfig
    for name in MEMBERS:
        config = kind.default_values().from_dict({"optimizer": {"optimizer": name}}, migrate=False)
        again = kind.default_values().from_dict(config.to_dict())
        wrong = [
            f"{key} {getattr(again.optimizer, key)!r} instead of {value!r}"
            for key, value in defaults_of(name).items()
            if getattr(again.optimizer, key) != value
        ]
        good = str(again.optimizer.optimizer) == name and not wrong
        yield good, f"config of {name}: {', '.join(wrong) or 'comes back as it was written'}"


def guard() -> Iterator[Line]:
    """Whether a config with one of our optimizers would stop where the plugin is missing."""
    from scaled_onetrainer.hooks.config_fields import CLASS, GUARD, SCHEDULER
    from scaled_onetrainer.members import MEMBERS

    kind = import_module("modules.util.config.TrainConfig").TrainConfig
    named = {"optimizer": {"optimizer": next(iter(MEMBERS))}}
    written = kind.default_values().from_dict(named, migrate=False).to_dict()
    good = written[SCHEDULER] == "CUSTOM" and written[CLASS] == GUARD
    yield good, "a config with one of ours stops where the plugin is missing"


def presets(folder: Path) -> Iterator[Line]:
    """Whether OneTrainer takes every word of our presets, and our optimizers what they say."""
    from scaled_onetrainer.fields import options_in
    from scaled_onetrainer.members import rule_of

    kind = import_module("modules.util.config.TrainConfig").TrainConfig
    files = sorted(folder.rglob("*.json"))
    wrong = 0
    for file in files:
        said = io.StringIO()
        with redirect_stdout(said):
            config = kind.default_values().from_dict(json.loads(file.read_text(encoding="utf-8")), migrate=False)
        name, found = str(config.optimizer.optimizer), said.getvalue().splitlines()
        try:
            if rule_of(name) is None:
                found.append(f"it trains with OneTrainer's {name}")
            else:
                options_in(name, vars(config.optimizer))
        except ValueError as error:
            found.append(str(error))
        if found:
            wrong += 1
            yield False, f"preset {file.relative_to(folder)}: {'; '.join(found)}"
    if files:
        yield (None if wrong else True), f"{len(files) - wrong} of {len(files)} presets are taken as they are written"


def steps() -> Iterator[Line]:
    """A few steps with each of our optimizers, made by OneTrainer's factory for its own LoRA."""
    from scaled_onetrainer.members import MEMBERS

    for name in MEMBERS:
        try:
            yield _step(name)
        except Exception as error:
            yield False, f"steps with {name}: {type(error).__name__}: {error}".splitlines()[0]


def _step(name: str) -> Line:
    import torch
    from torch import nn

    torch.manual_seed(0)
    config = import_module("modules.util.config.TrainConfig").TrainConfig.default_values()
    config.from_dict(
        {
            "optimizer": {"optimizer": name},
            "training_method": "LORA",
            "peft_type": "LORA",
            "lora_rank": RANK,
            # what STIEFEL_LORA asks for, and the others take
            "lora_init": "ORTHONORMAL",
            "train_device": "cpu",
            "tensorboard": False,
        },
        migrate=False,
    )
    # those that find a rate multiply it by this one
    config.learning_rate = 1.0 if config.optimizer.optimizer.is_adaptive else 1e-2
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))
    model.requires_grad_(False)
    wrapper = import_module("modules.module.LoRAModule").LoRAModuleWrapper(model, "model", config)
    wrapper.hook_to_module()
    optimizer = import_module("modules.util.create").create_optimizer(_groups(wrapper), None, config)
    before = [parameter.detach().clone() for parameter in wrapper.parameters()]
    for _ in range(STEPS):
        model(torch.randn(8, WIDTH)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    after = list(wrapper.parameters())
    moved = sum(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    finite = all(bool(torch.isfinite(parameter).all()) for parameter in after)
    roles = sorted({str(getattr(member.role, "name", member.role)) for member in optimizer._members()})
    good = moved == len(after) and finite
    return good, f"steps with {name}: {moved} of {len(after)} factors moved, roles {', '.join(roles)}"


def _groups(wrapper: Any) -> Any:
    module = import_module("modules.util.NamedParameterGroup")
    groups = module.NamedParameterGroupCollection()
    groups.add_group(module.NamedParameterGroup("model", wrapper.parameters(), None))
    return groups
