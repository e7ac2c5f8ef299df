import math
from dataclasses import replace
from pathlib import Path

from benchmarks.forgetting.anchors import as_stack, measure_anchors, relative_distance
from benchmarks.forgetting.drawings import write_ordinary, write_unseen_concept
from benchmarks.forgetting.kinds import CENTERED, STANDARD
from benchmarks.forgetting.Learner import Learner, finite
from benchmarks.forgetting.prior import prior_report, prior_settings
from benchmarks.forgetting.Results import Results
from benchmarks.forgetting.Setting import Setting
from benchmarks.forgetting.tasks import BESIDE_PRIOR, TaskSize
from benchmarks.tinyBase.concept import concept_caption, ordinary_files
from benchmarks.tinyBase.lumo import LUMO_CONCEPT
from benchmarks.transfer.Setting import DORA, FULL, LORA, OFT
from benchmarks.transfer.tasks import base_folder
from modules.util.UserError import UserError
from scaled_optim.anchors import ANCHORS
from scaled_optim.optimizers import AdamW
from scripts.forgetting import parse

import torch
from torch import nn

import pytest

SIZE = TaskSize(steps=2, ordinary=4, held_out=6, draws=1, scenes=2, lumos=1, styles=1, sampling_steps=1)


@pytest.fixture(scope="module")
def learner(tmp_path_factory) -> Learner:
    return Learner(base_folder("1"), tmp_path_factory.mktemp("forgetting"), SIZE)


def words(folder: Path) -> list[str]:
    return [path.read_text(encoding="utf-8").strip() for path in sorted(folder.glob("*.txt"))]


def test_what_is_measured_was_never_trained_on(tmp_path):
    write_unseen_concept(tmp_path / "unseen", 12)
    write_ordinary(tmp_path / "ordinary", 40)
    unseen = words(tmp_path / "unseen")
    trained = [concept_caption(LUMO_CONCEPT, item) for own in LUMO_CONCEPT.training.values() for item in own]
    assert unseen[:4] == [concept_caption(LUMO_CONCEPT, item) for item in LUMO_CONCEPT.validation]
    assert len(unseen) == 12 and not set(unseen) & set(trained)
    assert sum("lumo" in own for own in unseen[4:]) == 4 == sum("vintage" in own for own in unseen[4:])
    write_ordinary(tmp_path / "exchanged", 40, exchanged=True)
    own, exchanged = words(tmp_path / "ordinary"), words(tmp_path / "exchanged")
    assert exchanged == [*own[1:], own[0]]
    pictures = {path.read_bytes() for path in (tmp_path / "ordinary").glob("*.png")}
    assert len(pictures) == 40 and not pictures & set(ordinary_files().values())


def test_the_model_is_put_back_and_everything_is_measured(learner):
    full = Setting("forgetting", "1", FULL, 0)
    # a decay that pulls back as far as it can
    held = replace(full, kind=CENTERED, strength=0.5)
    one, other, again = (learner.measure(setting, 0.01, 0) for setting in (full, held, full))
    assert {**one, "seconds": 0} == {**again, "seconds": 0}
    assert one["anchor"] is None and other["anchor"]["values"] == 2034080
    assert other["anchor"]["bytes"] == 4 * other["anchor"]["values"]
    assert 0 < other["drift"] < one["drift"] < 0.1
    assert one["training"] < learner.base_measures["training"]
    own = learner._losses()
    assert own == {name: learner.base_measures[name] for name in ("held_out", "ordinary", "exchanged")}
    # the same pictures in the same order, so that noise and timesteps are the same, too
    ordinary, exchanged = (learner._measured_sets[name] for name in ("ordinary", "exchanged"))
    batches = [[data.load(rows) for rows in data.plan(0)] for data in (ordinary, exchanged)]
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(*batches, strict=True))
    # the base knows what the words of a caption mean
    assert own["exchanged"] > own["ordinary"]


def test_centered_decay_of_a_rotation_is_standard_decay(learner):
    settings = [Setting("forgetting", "1", OFT, 16, kind, 0.1) for kind in (STANDARD, CENTERED)]
    standard, centered = ({**learner.measure(setting, 0.02, 0), "seconds": 0} for setting in settings)
    assert standard == centered and standard["anchor"] is None and standard["drift"] > 0


def test_pictures_are_judged_with_the_trained_denoiser(learner):
    setting = Setting("forgetting", "1", DORA, 16, CENTERED, 0.01, pictures=True)
    found = learner.measure(setting, 0.014, 0)
    assert all(
        0 <= found[name][kind] <= 1 for name in ("pictures", "base_pictures") for kind in ("concept", "ordinary")
    )
    # only magnitudes have a start to store
    assert found["anchor"]["values"] < 20000
    assert "pictures" not in learner.measure(replace(setting, pictures=False), 0.014, 0)


@pytest.mark.parametrize("mode", ANCHORS)
def test_stored_starts_are_measured(mode):
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(16, 64)), nn.Parameter(torch.randn(64))]
    starts = {own: own.detach().clone() for own in weights}
    optimizer = AdamW(weights, lr=1e-2, centered_wd=1e-3, centered_wd_mode=mode)
    for _ in range(3):
        for own in weights:
            own.grad = torch.randn_like(own)
        optimizer.step()
    found = measure_anchors(optimizer, starts, mode)
    # on Gaussian weights, as in docs/optimizers.md, but for so few values in a block; seeds differ by a tenth
    expected = {"full": 0.0, "float8": 0.0265, "int8": 0.0067, "int4": 0.086, "wrapped8": 0.0045, "wrapped4": 0.036}
    assert found.decode_error == pytest.approx(expected[mode], rel=0.2) and found.left_range == 0
    # 2 bytes for the step of each of 17 rows and 2 for their sketch, or of each block
    assert found.values == 16 * 64 + 64
    assert found.bytes == pytest.approx(found.values * ANCHORS[mode].bytes_per_value, abs=17 * 4)
    # (p − (p − p₀)) is p₀ up to the rounding of float32
    assert found.pull_error < 1e-5 if mode == "full" else 0.01 < found.pull_error < 2.5
    plain = AdamW(weights, lr=1e-2)
    assert measure_anchors(plain, starts, mode) is None


def test_distances():
    start = torch.tensor([[3.0, 4.0]])
    assert relative_distance([(torch.tensor([[0.0, 0.5]]), start)]) == pytest.approx(0.1)
    assert as_stack(torch.zeros(3)).shape == (1, 1, 3) and as_stack(torch.zeros(4, 3, 2, 2)).shape == (1, 4, 12)
    assert finite({"loss": math.inf, "own": {"x": 1 / 3}, "n": 2, "none": None}) == {
        "loss": None, "own": {"x": 0.333333}, "n": 2, "none": None,
    }  # fmt: skip


def test_the_command_line(capsys, monkeypatch, tmp_path):
    args = parse(["--output", "x.jsonl"])
    assert args.methods == ["full", "DoRA", "OFT"] and args.seeds == [0, 1, 2]
    sizes = parse(["--output", "x.jsonl", "--question", "sizes"])
    assert sizes.methods == ["LoRA", "OFT", "full"] and sizes.seeds == [0]
    assert parse(["--output", "x.jsonl", "--quick"]).seeds == [0]
    for wrong in (["--methods", "LoRA"], ["--question", "sizes", "--methods", "DoRA"], ["--jobs", "0"]):
        with pytest.raises(SystemExit) as ended:
            parse(["--output", "x.jsonl", *wrong])
        assert ended.value.code == 2
    assert "expected some of LoRA, OFT, full for sizes" in capsys.readouterr().err
    monkeypatch.setattr("benchmarks.transfer.tasks.ROOT", tmp_path)
    with pytest.raises(UserError, match="make_tiny_widths"):
        base_folder("1/4")


def test_ordinary_scenes_stand_beside_the_concept(tmp_path):
    """As priors they have no loss at the start; the concept is seen as often as alone, in twice the steps."""
    setting = Setting("prior", "1", LORA, 4, beside=BESIDE_PRIOR)
    learner = Learner(base_folder("1"), tmp_path, SIZE, BESIDE_PRIOR)
    assert learner.sweep.steps == 2 * SIZE.steps
    used = [sample.image for planned in learner.sweep.data.plan(0) for sample in planned.samples]
    types = [learner.sweep.data.source.concepts[learner.sweep.data.source.images[i].concept].type for i in used]
    assert types.count("PRIOR_PREDICTION") == types.count("STANDARD") == 24
    found = learner.measure(setting, 0.01, 0)
    # half of the pictures are compared with the base itself, of which nothing is lost before training
    assert 0 < found["training"] < learner.base_measures["held_out"]


@pytest.mark.parametrize(("change", "verdict"), [(0.3, "kept: more (30.0 ("), (-0.3, "kept: less (-30.0 (")])
def test_the_report_says_what_priors_keep(tmp_path, change, verdict):
    results = Results(tmp_path / "rows.jsonl", {})
    losses = {"held_out": 0.1, "ordinary": 0.1, "exchanged": 0.2}
    results.add_untrained("prior", "1", losses)
    for setting in prior_settings(LORA, quick=False):
        kept = 0.1 * (0.5 + change * (setting.beside == BESIDE_PRIOR))
        shown = {"concept": 0.5, "ordinary": 0.5}
        own = {**losses, "exchanged": 0.1 + kept, "pictures": shown, "base_pictures": {"concept": 0.0, "ordinary": 1.0}}
        for seed in (0, 1):
            results.add(setting, seed, 0.015, own)
    report = prior_report(Results(tmp_path / "rows.jsonl"), [LORA], quick=False)
    assert verdict in report
    assert "concept seen: no clear difference" in report and "| (the base model) | 0.0 % | 100.0 %" in report
