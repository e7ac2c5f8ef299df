"""The coordinate check on a miniature: its steps are those of a run, and what it says of them follows from numbers."""

import math

from modules.module.AdapterSet import AdapterSet
from modules.module.WeightSet import WeightSet
from modules.tool.coord_check import CheckedBase as checked_base
from modules.tool.coord_check.CheckedBase import CheckedBase
from modules.tool.coord_check.methods import BLOCKS, CHECKED, RANKS, USUAL
from modules.tool.coord_check.plot import axis_limits, draw_check
from modules.tool.coord_check.report import Row, spread_table, spreads, table
from modules.tool.coord_check.step_change import StepChange
from modules.tool.coord_check.variants import (
    Variant,
    check_variant,
    comparable,
    method_of,
    prepared,
    variants_of,
)
from modules.util.config.load import train_config_from_dict
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError

import torch

import pytest

CONSTANT = {"learning_rate_scheduler": "CONSTANT"}
COMPONENT = {"train": True, "gradient_checkpointing": False}
SCALED = {"optimizer": "ADAMW_ADV", "scaled_optm": True}
RUNS = {
    "LoRA": {},
    "DoRA, text encoder at a rate of its own": {
        "lora_decompose": True, "text_encoder": {**COMPONENT, "learning_rate": 0.002}, "optimizer": SCALED,
    },
    "OFT with dropout": {"peft_type": "OFT_2", "oft_block_size": 4, "dropout_probability": 0.5},
    "full": {"training_method": "FINE_TUNE", "output_model_format": "SAFETENSORS", "learning_rate": 1e-4},
    "loss and rate by batch size, clipped": {
        "learning_rate_scaler": "BATCH", "loss_scaler": "BATCH", "clip_grad_norm": 0.01, "learning_rate": 1.0,
        "optimizer": {"optimizer": "SGD"},
    },
    "bfloat16": {"train_dtype": "BFLOAT_16"},
    "float16": {"train_dtype": "FLOAT_16"},
}  # fmt: skip


def adapter_config(**options) -> TrainConfig:
    return TrainConfig(training_method="LORA", **options)


def refuse(text: str) -> None:
    pytest.fail(text)


def ignore(text: str) -> None:
    pass


@pytest.fixture
def make_base(mini_run):
    """make_base(steps, option=value …) -> the miniature, ready to be measured in batches of two."""

    def make(steps: int = 2, warn=ignore, **changes) -> CheckedBase:
        config = train_config_from_dict(mini_run.options(**changes))
        return CheckedBase(prepared(config, None, warn), steps, 2, warn)

    return make


def own_variant(base: CheckedBase, **changes) -> Variant:
    config = base.config.model_copy(update=changes)
    return variants_of(config, [])[0]


@pytest.mark.parametrize("kind", RUNS)
def test_steps_are_the_first_of_the_run(mini_run, make_base, monkeypatch, kind):
    trainer = mini_run.trainer(stop_after=3, **CONSTANT, **RUNS[kind])
    trainer.run()
    sets = []
    found = checked_base.measured_layers
    monkeypatch.setattr(checked_base, "measured_layers", lambda own: sets.append(own) or found(own))
    base = make_base(3, **CONSTANT, **RUNS[kind])
    # the step that is measured, and the one before it, are steps like any other
    changes = base.measure(own_variant(base), (1, 2))
    assert len(sets) == len(trainer.trained)
    for own, expected in zip(sets, trainer.trained.values(), strict=True):
        # a model that is trained as a whole is read anew, but what was trained is still here
        assert isinstance(own, AdapterSet | WeightSet)
        state, wanted = own.state_dict(), expected.state_dict()
        assert state.keys() == wanted.keys() and len(state) > 20
        for name, tensor in state.items():
            assert torch.equal(tensor, wanted[name]), name
    assert all(change.prediction > 0 and max(change.layers.values()) > 0 for change in changes.values())


def test_full_fine_tuning_leaves_the_base_as_it_was(make_base):
    base = make_base()
    lora, full = own_variant(base), variants_of(base.config, ["full"])[1]
    first = base.measure(lora, (0, 1))
    other = base.measure(full, (0, 1))
    again = base.measure(lora, (0, 1))
    assert first == again != other
    assert other[0].layers.keys() >= first[0].layers.keys()


def test_the_first_step_of_a_lora_moves_the_up_factors_alone(make_base):
    """While up is zero, the gradient of down is, too; so twice the rate changes exactly twice as much."""
    base = make_base(1, optimizer={"optimizer": "SGD"})
    small, large = (base.measure(own_variant(base, learning_rate=rate), (0,))[0] for rate in (0.1, 0.2))
    for name, change in small.layers.items():
        # float32 outputs: what is left of their difference has fewer digits
        assert large.layers[name] == pytest.approx(2 * change, rel=1e-2, abs=1e-6), name
    assert large.prediction > small.prediction > 0


def test_only_chosen_layers_are_measured(make_base):
    base = make_base(1, layer_filter="attn1", text_encoder=COMPONENT)
    names = base.measure(own_variant(base), (0,))[0].layers.keys()
    denoiser = [name for name in names if name.startswith("unet.")]
    assert denoiser and all("attn1" in name for name in denoiser)
    assert any(name.startswith("text_encoder.") for name in names), "text encoders are trained whole"
    assert base.inputs.keys() == names and base.width == 16


def test_a_quantized_base_is_measured_by_what_its_layers_compute(mini_run, wide_base):
    options = mini_run.options(base_model_name=str(wide_base), unet={**COMPONENT, "weight_dtype": "INT_8"})
    base = CheckedBase(prepared(train_config_from_dict(options), None, ignore), 1, 2, ignore)
    variant = own_variant(base)
    change = base.measure(variant, (0,))[0]
    assert len(change.layers) > 20 and all(0 <= value < 1 for value in change.layers.values())
    with pytest.raises(UserError, match="weight_dtype"):
        base.measure(variants_of(base.config, ["full"])[1], (0,))
    assert base.measure(variant, (0,))[0] == change


def test_training_that_goes_astray_is_told(make_base):
    base = make_base(3)
    found = base.measure(own_variant(base, learning_rate=1e30), (0, 2))
    assert found[2] is None
    rows = [Row("b", 16, own_variant(base), warm, change) for warm, change in found.items()]
    assert rows[1].median == rows[1].prediction == math.inf and rows[1].to_json()["median"] is None
    assert "diverged" in table(rows)


def test_a_rate_of_zero_is_no_step(make_base):
    base = make_base(1, learning_rate=0.0)
    with pytest.raises(UserError, match="--rate"):
        base.measure(own_variant(base), (0,))


def test_scaled_steps_are_flatter_over_ranks(make_base):
    """Adam moves each number of a factor by the rate, so more ranks move a layer further; scaled steps do not."""
    found = {}
    for scaled, rate in ((True, 0.01), (False, 0.002)):
        base = make_base(2, optimizer={"optimizer": "ADAMW_ADV", "scaled_optm": scaled}, learning_rate=rate)
        rows = [
            Row("a", base.width, variant, 1, base.measure(variant, (1,))[1])
            for variant in variants_of(base.config, ["lora"], ranks=(1, 4, 16))
        ]
        found[scaled] = {own.quantity: own.value for own in spreads(rows)}
    assert found[True]["prediction"] < 1.5 < 2 < found[False]["prediction"], found
    assert found[True]["median"] < found[False]["median"], found


# -- variants ---------------------------------------------------------------------------------------------------------


def test_variants_keep_alpha_over_rank():
    config = adapter_config(lora_rank=8, lora_alpha=4.0)
    reference, *others = variants_of(config, ["lora", "oft", "full"], ranks=(16, 4), blocks=(4,))
    assert reference.is_reference and reference.config == config and reference.name == "LoRA rank 8"
    assert [own.name for own in others] == ["LoRA rank 4", "LoRA rank 16", "OFT block 4", "full"]
    assert [own.config.lora_alpha for own in others[:2]] == [2, 8]
    assert config.lora_alpha == 4 and not any(own.is_reference for own in others)
    # a config without factors has no alpha of its own
    rotation = adapter_config(peft_type="OFT_2", oft_block_size=8)
    _, other = variants_of(rotation, ["dora"], ranks=(32,))
    assert (other.config.lora_alpha, other.config.lora_decompose) == (32, True)


def test_the_config_itself_is_no_variant_twice():
    names = [own.name for own in variants_of(adapter_config(lora_rank=4, lora_alpha=4.0), ["lora"], ranks=(4, 4, 8))]
    assert names == ["LoRA rank 4", "LoRA rank 8"]


@pytest.mark.parametrize("method", CHECKED)
def test_a_variant_is_of_its_method(method):
    for start in (
        {"training_method": "LORA"},
        {"training_method": "FINE_TUNE"},
        {"training_method": "LORA", "peft_type": "OFT_2", "lora_decompose": True},
    ):
        for own in variants_of(TrainConfig.from_dict(start), [method], ranks=(3,), blocks=(5,)):
            assert method_of(own.config) == own.method
    assert set(USUAL) <= CHECKED.keys() and min(RANKS) > 0 and min(BLOCKS) > 1


def test_a_kind_without_lengths_ignores_lora_decompose():
    assert method_of(adapter_config(peft_type="LOHA", lora_decompose=True)) == "loha"


def test_a_config_that_trains_no_layers_is_refused():
    with pytest.raises(UserError, match="EMBEDDING .* Expected LORA or FINE_TUNE"):
        method_of(TrainConfig(training_method="EMBEDDING"))


def test_a_rate_keeps_the_ratio_of_the_components():
    config = TrainConfig.from_dict(
        {"learning_rate": 0.01, "unet": {"learning_rate": 0.002}, "lora_model_name": "a", "optimizer": {
            "optimizer": "ADAMW_ADV", "fused_back_pass": True}}
    )  # fmt: skip
    notes: list[str] = []
    found = prepared(config, 1.0, notes.append)
    assert found.learning_rate == 1 and found.unet.learning_rate == pytest.approx(0.2)
    assert found.text_encoder.learning_rate is None and found.lora_model_name == ""
    assert [note.split(":")[0] for note in notes] == ["lora_model_name", "optimizer.fused_back_pass"]
    assert config.learning_rate == 0.01 and config.optimizer.fused_back_pass, "the config itself stays"
    assert prepared(TrainConfig(), None, refuse) == TrainConfig()


def test_what_the_optimizer_cannot_train_is_told():
    config = adapter_config(optimizer={"optimizer": "LORA_RITE"})
    lora, full = variants_of(config, ["full"])
    check_variant(lora, refuse)
    with pytest.raises(UserError, match="FINE_TUNE has none"):
        check_variant(full, refuse)


def test_what_can_be_compared():
    config = adapter_config(lora_rank=4, lora_alpha=4.0)
    lora, other, oft, full = variants_of(config, ["lora", "oft", "full"], ranks=(8,), blocks=(4,))
    assert comparable([("a", lora), ("a", other)]) and comparable([("a", full), ("b", full)])
    assert not comparable([("a", lora), ("a", oft), ("a", full)]) and not comparable([("a", lora), ("b", other)])


# -- what is said of it -----------------------------------------------------------------------------------------------


def row(method: str, size: int | None, layers: list[float], prediction: float, **facts) -> Row:
    facts = {"base": "a", "width": 16, "warm": 1, "is_reference": False, **facts}
    variant = Variant(method, size, TrainConfig(), facts["is_reference"])
    change = StepChange({str(number): value for number, value in enumerate(layers)}, prediction)
    return Row(facts["base"], facts["width"], variant, facts["warm"], change)


def test_spreads_are_between_sizes_of_one_method():
    rows = [
        row("lora", 4, [0.1, 0.2, 0.9], 0.3, is_reference=True),
        row("lora", 16, [0.1, 0.3, 0.4], 0.2),
        row("lora", 64, [0.1, 0.4, 0.5], 0.25),
        # another step, another method, and one without sizes are compared with nothing here
        row("lora", 4, [9.0], 9.0, warm=8),
        row("oft", 4, [5.0], 5.0),
        row("full", None, [7.0], 7.0),
    ]
    layers, prediction = spreads(rows)
    assert (layers.over, layers.quantity, layers.least, layers.most) == ("rank", "median", ("4", 0.2), ("64", 0.4))
    assert layers.value == pytest.approx(2) and prediction.value == pytest.approx(1.5)
    assert str(layers) == "LoRA, step 2: layers spread by 2 over rank (4: 0.2, 64: 0.4)"
    text = spread_table([layers, prediction]).splitlines()
    assert text[1].split()[-2:] == ["2", "1.5"] and len(text) == 2
    head, first, _, last = table(rows[:3]).splitlines()
    assert first.startswith("LoRA rank 4 *") and last.split() == [
        "LoRA", "rank", "64", "2", "0.4", "0.1", "0.5", "2.00", "0.25", "0.83",
    ]  # fmt: skip


def test_spreads_are_between_widths_of_one_variant():
    rows = [
        row("lora", 4, [0.1], 0.1, base="narrow", is_reference=True), row("lora", 8, [0.2], 0.1, base="narrow"),
        row("lora", 4, [0.3], 0.1, base="wide", width=32), row("full", None, [0.3], 0.2, base="wide", width=32),
        row("full", None, [0.1], 0.2, base="narrow"),
    ]  # fmt: skip
    found = {(own.over, own.of): own.value for own in spreads(rows) if own.quantity == "median"}
    assert found == {
        ("rank", "LoRA on narrow, step 2"): pytest.approx(2),
        ("width", "LoRA rank 4, step 2"): pytest.approx(3),
        ("width", "full, step 2"): pytest.approx(3),
    }
    assert table(rows).splitlines()[3].split()[:3] == ["wide", "32", "LoRA"]


def test_a_variant_that_moves_nothing_is_no_flat_one():
    found = spreads([row("lora", 4, [0.0], 0.0, is_reference=True), row("lora", 8, [0.1], 0.1)])
    assert [own.value for own in found] == [math.inf] * 2
    assert "infinite" in str(found[0]) and found[0].to_json()["spread"] is None


def test_what_is_flat_looks_so():
    low, high = axis_limits([0.05, 0.06])
    assert high / low == pytest.approx(10) and low * high == pytest.approx(0.05 * 0.06)
    low, high = axis_limits([0.001, 0.1])
    assert low < 0.001 and high > 0.1 and axis_limits([])[0] < 1


def test_a_picture_of_what_diverged_and_of_what_moved_nothing(tmp_path):
    rows = [row("lora", 4, [0.1], 0.0, is_reference=True), row("lora", 8, [math.inf], math.inf)]
    draw_check([{"title": "some", "rows": [one.to_json() for one in rows]}], tmp_path / "new" / "picture.png")
    assert (tmp_path / "new" / "picture.png").stat().st_size > 1000


def test_layers_without_an_output_count_for_nothing():
    own = row("lora", 4, [math.nan, 0.1, 0.3], 0.1)
    assert own.median == pytest.approx(0.2) and own.to_json()["layers"]["0"] is None


def test_ranks_of_a_kind_are_those_of_its_own_option():
    config = adapter_config(peft_type="LOKR", lokr_dim=2, lora_alpha=4.0)
    found = variants_of(config, ["lokr", "loha"], ranks=(4,))
    assert [(own.name, own.config.lokr_dim, own.config.lora_rank, own.config.lora_alpha) for own in found] == [
        ("LoKr rank 2", 2, 16, 4.0),
        ("LoKr rank 4", 4, 16, 8.0),
        ("LoHa rank 4", 2, 4, 8.0),
    ]
