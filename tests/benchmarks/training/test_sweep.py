import json
import math
from pathlib import Path

from benchmarks.training import oft_sweep, rank_sweep
from benchmarks.training.oft_sweep import FORMS, output_variance
from benchmarks.training.size_sweep import draw, measure, rates_around, summary, table
from benchmarks.training.sweep import Sweep, best_rate, spread_of
from modules.module.AdapterSet import AdapterSet
from modules.util.config.load import load_train_config
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.PeftType import PeftType
from modules.util.enum.TrainingMethod import TrainingMethod

import torch
from torch import nn

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Sweep:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        folder = "training_concepts/tiny_concept"
        concepts = [
            {"name": kind, "path": f"{folder}/{kind}", "type": kind_of, "text": {"prompt_source": "sample"}}
            for kind, kind_of in (("lumo", "STANDARD"), ("validation", "VALIDATION"))
        ]
        cache = tmp_path_factory.mktemp("cache")
        changes = [
            f"concepts={json.dumps(concepts)}", f"cache_dir={cache}", "layer_filter=mid_block",
            "loss_weight_fn=CONSTANT", "learning_rate_warmup_steps=0",
        ]  # fmt: skip
        preset = ROOT / "training_presets" / "Tiny" / "#tiny LoRA.json"
        return Sweep(load_train_config(preset, changes, warn=lambda text: None), 4, lambda text: None)


def test_runs_start_from_the_same_place(sweep):
    options = {"peft_type": PeftType.OFT_2, "oft_block_size": 8}
    first = sweep.run(options, 0.01)
    still = sweep.run(options, 1e-12)
    again = sweep.run(options, 0.01)
    assert first.curve == again.curve and first.training == again.training and len(first.curve) == 4
    # before a step all are the base model, and at no learning rate they stay it, up to float32 rotations by nothing
    assert first.curve[0] == pytest.approx(still.curve[0], rel=1e-6)
    assert still.training == pytest.approx(sweep.untrained[0], rel=1e-5)
    assert first.training < still.training


def test_full_fine_tuning_puts_the_weights_back(sweep):
    layer = sweep.model.components["unet"].mid_block.attentions[0].proj_in
    before = layer.weight.detach().clone()
    options = {"training_method": TrainingMethod.FINE_TUNE}
    first, again = sweep.run(options, 1e-3), sweep.run(options, 1e-3)
    assert first.curve == again.curve and first.training < sweep.untrained[0]
    assert torch.equal(layer.weight, before) and not layer.weight.requires_grad
    assert sweep.run({"lora_rank": 4, "lora_alpha": 4.0}, 1e-12).training == pytest.approx(sweep.untrained[0], rel=1e-5)


def test_a_run_that_goes_astray_has_an_infinite_loss(sweep):
    outcome = sweep.run({"lora_rank": 4, "lora_alpha": 4.0}, 1e30)
    assert outcome.training == math.inf == outcome.validation and len(outcome.curve) < 4


def test_measuring_goes_on_where_it_stopped(sweep, tmp_path):
    rows, forms = [], oft_sweep.forms((8,), 2, 0.05)
    measure(sweep, forms, (8,), [], rows.append)
    assert len(rows) == 3 * 2 and all(math.isfinite(row["training"]) for row in rows)
    more = []
    measure(sweep, forms, (8,), rows[:-1], more.append)
    assert len(more) == 1 and more[0]["training"] == rows[-1]["training"]
    found = summary(json.loads(json.dumps(rows)))
    assert found.keys() == FORMS.keys() and all(own["best"].keys() == {8} for own in found.values())
    text = table(rows, oft_sweep.SIZE_NAME, oft_sweep.COLUMNS)
    assert text.count("spread 1.00") == len(FORMS) and len({line.count("|") for line in text.splitlines()}) == 1
    draw(rows, tmp_path / "sweep.png", oft_sweep.SIZE_NAME, oft_sweep.MEANINGS)
    assert Image.open(tmp_path / "sweep.png").size[0] > 1000


def test_ranks_are_swept_for_each_optimizer(sweep):
    rows = []
    measure(sweep, rank_sweep.forms((4, 8), 1, 0.1), (4, 8), [], rows.append)
    assert [(row["form"], row["size"], row["rate"]) for row in rows] == [
        ("STIEFEL_LORA", 4, 0.1), ("STIEFEL_LORA", 8, 0.1), ("ADAMW", 4, 0.1 * 0.1), ("ADAMW", 8, 0.1 * 0.1),
    ]  # fmt: skip
    assert rows[1]["trained"] == 2 * rows[0]["trained"]
    assert all(row["training"] < sweep.untrained[0] for row in rows)


def test_best_rate_is_the_lowest_point_of_a_parabola():
    rates = rates_around(1.0, 7)
    assert rates[3] == 1 and rates[4] == 2
    losses = [(math.log(rate) - 0.3) ** 2 for rate in rates]
    assert best_rate(rates, losses) == pytest.approx(math.exp(0.3))
    assert best_rate(rates, [math.inf] * 6 + [1.0]) == rates[-1]
    assert best_rate(rates, [2.0, 1.0, *[math.inf] * 5]) == rates[1]
    assert spread_of([1.0, 4.0, 2.0]) == 4
    with pytest.raises(ValueError, match="no finite loss"):
        best_rate([1.0], [math.inf])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [4, 16, 64])
def test_output_variance_of_a_sign_step(form, size):
    """The law against the adapter itself: variance of what a step of random signs adds to an input of variance 1."""
    eta, layer = 1e-3, nn.Linear(1024, 1, bias=False)
    nn.init.constant_(layer.weight, 1.0)
    config = TrainConfig(peft_type=PeftType.OFT_2, oft_block_size=size, **FORMS[form][0])
    adapter = AdapterSet("unet", layer_in(layer), config).adapters["layer"]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        adapter.weight.copy_(eta * torch.randn(adapter.weight.shape, generator=generator).sign())
        # rows of W are ones, so a row of ΔW holds the sums of the rotation's changes over each input's block
        change = adapter.delta_weight()
    # inputs of variance 1 make the output's variance the sum of squares, of 1024 numbers: 4.4 % standard error, 3 of it
    found = change.double().square().sum().item() / 1024 / eta**2
    assert found == pytest.approx(output_variance(form, size), rel=0.14)


def layer_in(layer: nn.Module) -> nn.Module:
    root = nn.Module()
    root.layer = layer
    return root
