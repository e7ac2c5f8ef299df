"""Each mixture of number formats runs, or is refused before anything is loaded."""

import itertools
import math
import random

from modules.trainer.checks import run_problems
from modules.util.config.load import train_config_from_dict
from modules.util.enum.DataType import DataType

import pytest
from safetensors.torch import load_file

COMPUTED = ("FLOAT_32", "BFLOAT_16", "FLOAT_16")
ARITHMETIC = ("TFLOAT_32", *COMPUTED)
TRAINED = ("FLOAT_32", "BFLOAT_16", "FLOAT_16")
FROZEN = ("FLOAT_32", "BFLOAT_16", "FLOAT_16", "FLOAT_8", "INT_8", "NFLOAT_4")
OUTPUT = ("NONE", "FLOAT_32", "BFLOAT_16", "FLOAT_16")
STEPS = {
    "plain": {},
    "accumulated": {"gradient_accumulation_steps": 2},
    "fused": {"fused_back_pass": True},
    "fused and accumulated": {"gradient_accumulation_steps": 2, "fused_back_pass": True},
}
# the UNet's format -> the text encoder's
WEIGHTS = {"FLOAT_32": "FLOAT_8", "BFLOAT_16": "FLOAT_32", "FLOAT_16": "NFLOAT_4", "INT_8": "BFLOAT_16"}
# TFLOAT_32 is FLOAT_32 on a CPU
FACTORS = {
    "train_dtype": COMPUTED, "weights": tuple(WEIGHTS), "lora_weight_dtype": TRAINED, "output_dtype": OUTPUT,
    "checkpointing": (False, True), "steps": ("plain", "accumulated", "fused"), "text_encoder": (False, True),
}  # fmt: skip


def options_of(cell: dict) -> dict:
    """The options of a run for one value of each factor."""
    steps = dict(STEPS[cell["steps"]])
    checkpointing = {"gradient_checkpointing": cell["checkpointing"]}
    return {
        "train_dtype": cell["train_dtype"], "lora_weight_dtype": cell["lora_weight_dtype"],
        "output_dtype": cell["output_dtype"], "unet": {"weight_dtype": cell["weights"], **checkpointing},
        "text_encoder": {"weight_dtype": WEIGHTS[cell["weights"]], "train": cell["text_encoder"], **checkpointing},
        "epochs": 1,
        "optimizer": {"optimizer": "ADAMW_ADV", "fused_back_pass": steps.pop("fused_back_pass", False)}, **steps,
    }  # fmt: skip


def refused(cell: dict, optimizer: str = "ADAMW_ADV") -> set[str]:
    """The options that are refused on a CPU, by the table in docs/training.md."""
    half, fused = cell["train_dtype"] == "FLOAT_16", "fused" in cell["steps"]
    own = options_of(cell)
    formats = {name: own[name]["weight_dtype"] for name in ("unet", "text_encoder")}
    found = {
        f"{name}.weight_dtype"
        for name, weights in formats.items()
        if {weights, cell["train_dtype"]} == {"BFLOAT_16", "FLOAT_16"} and (name == "unet" or cell["text_encoder"])
    }
    if cell["lora_weight_dtype"] == "FLOAT_16" and (half or optimizer == "ADAMW"):
        found.add("lora_weight_dtype")
    if fused and (half or "accumulated" in cell["steps"] or optimizer == "ADAMW"):
        found.add("optimizer.fused_back_pass")
    return found


def pairs_of(cell: dict) -> set:
    pairs = itertools.combinations([(name, str(value)) for name, value in cell.items()], 2)
    return {pair for pair in pairs if {name for name, _ in pair} != {"weights", "output_dtype"}}


def covering() -> list[dict]:
    """Cells of which each two values that may stand together do so in one at least.

    But for a file's format with that of frozen weights, which have nothing to do with each other.
    """
    every = [dict(zip(FACTORS, values, strict=True)) for values in itertools.product(*FACTORS.values())]
    allowed = [(cell, pairs_of(cell)) for cell in every if not refused(cell)]
    random.Random(0).shuffle(allowed)
    missing, chosen = set().union(*(pairs for _, pairs in allowed)), []
    while missing:
        # the best of some is nearly as good as the best of all
        able = [(cell, pairs) for cell, pairs in allowed if min(missing) in pairs]
        best, pairs = max(able, key=lambda one: len(missing & one[1]))
        chosen.append(best)
        missing -= pairs
    return chosen


@pytest.fixture
def wide_run(make_run, wide_base):
    run = make_run()
    run.base = wide_base
    return run


def test_every_two_values_that_may_stand_together_train(wide_run):
    before = None
    for cell in covering():
        report = wide_run.train(1, **options_of(cell))
        assert report["steps"] == 1 and math.isfinite(report["first_loss"]), cell
        written = load_file(wide_run.output)
        wanted = cell["lora_weight_dtype"] if cell["output_dtype"] == "NONE" else cell["output_dtype"]
        names = {"FLOAT_32": "torch.float32", "BFLOAT_16": "torch.bfloat16", "FLOAT_16": "torch.float16"}
        ups = [tensor for name, tensor in written.items() if name.endswith("lora_up.weight")]
        assert {str(tensor.dtype) for tensor in ups} == {names[wanted]}, cell
        # zero before the first step
        assert all(tensor.isfinite().all() for tensor in written.values()) and any(tensor.any() for tensor in ups), cell
        before = report if before is None else before
        # of the same draw; the coarsest format has 4 bits
        assert abs(report["first_loss"] / before["first_loss"] - 1) < 0.1 or cell["steps"] == "accumulated", cell
    assert wide_run.warnings()


def test_every_cell_is_refused_in_words_or_by_no_check(wide_run):
    options = wide_run.options()
    cells = itertools.product(ARITHMETIC, TRAINED, STEPS, WEIGHTS, ("ADAMW", "ADAMW_ADV"))
    for train_dtype, lora_weight_dtype, steps, weights, optimizer in cells:
        cell = {
            "train_dtype": train_dtype, "lora_weight_dtype": lora_weight_dtype, "steps": steps, "weights": weights,
            "checkpointing": False, "output_dtype": "NONE", "text_encoder": True,
        }  # fmt: skip
        own = options_of(cell)
        own["optimizer"]["optimizer"] = optimizer
        problems = run_problems(train_config_from_dict({**options, **own}))
        assert {problem.path for problem in problems} == refused(cell, optimizer), (cell, optimizer)
        for problem in problems:
            assert problem.remedies, problem


@pytest.mark.parametrize(
    ("option", "allowed"),
    [
        ("train_dtype", ARITHMETIC), ("lora_weight_dtype", TRAINED), ("embedding_weight_dtype", TRAINED),
        ("output_dtype", OUTPUT), ("unet.weight_dtype", FROZEN), ("text_encoder.weight_dtype", FROZEN),
        ("vae.weight_dtype", FROZEN),
    ],
)  # fmt: skip
def test_formats_that_an_option_has_not_are_refused(wide_run, option, allowed):
    base = wide_run.options(additional_embeddings=[{"placeholder": "red", "initial_embedding_text": "red"}])
    key, _, inner = option.partition(".")
    for data_type in DataType:
        # NONE of a component means weight_dtype
        if str(data_type) == "NONE" and inner:
            continue
        own = {key: {"train": False, inner: str(data_type)} if inner == "weight_dtype" and key != "unet" else None}
        own = own if own[key] else {key: {inner: str(data_type)} if inner else str(data_type)}
        own["optimizer"] = {"optimizer": "ADAMW_ADV"}
        problems = run_problems(train_config_from_dict({**base, **own}))
        assert bool(problems) == (str(data_type) not in allowed), (data_type, problems)
        assert all(problem.path == option for problem in problems), (data_type, problems)


@pytest.mark.parametrize("remedy", range(3))
def test_half_precision_adapters_with_scaled_losses_are_refused_before_anything_is_read(wide_run, remedy):
    options = {"train_dtype": "FLOAT_16", "lora_weight_dtype": "FLOAT_16", "optimizer": {"optimizer": "ADAMW_ADV"}}
    (problem,) = run_problems(train_config_from_dict(wide_run.options(**options)))
    assert problem.path == "lora_weight_dtype" and "train_dtype" in problem.text
    mended = {**options, **dict(problem.remedies[remedy].values)}
    assert run_problems(train_config_from_dict(wide_run.options(**mended))) == []


def test_embeddings_in_half_precision_have_the_same_rule(wide_run):
    options = {"additional_embeddings": [{"placeholder": "red"}], "embedding_weight_dtype": "FLOAT_16"}
    for changes, wrong in (({"train_dtype": "FLOAT_16"}, 1), ({}, 0)):
        own = wide_run.options(**options, **changes, optimizer={"optimizer": "ADAMW_ADV"})
        assert len(run_problems(train_config_from_dict(own))) == wrong
