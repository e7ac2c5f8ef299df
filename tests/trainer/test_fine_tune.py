"""Full fine-tuning of the miniature: it learns, resumes to the bit, and holds few gradients at a time."""

import json

from modules.module.WeightSet import WeightSet
from modules.trainer.backup import newest_backup
from modules.trainer.WeightMethod import _check_optimizer
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ParameterRole import ParameterRole
from modules.util.UserError import UserError

import torch

import pytest
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

SCALED = {"optimizer": "ADAMW_ADV", "scaled_optm": True}
FUSED = {"optimizer": {**SCALED, "fused_back_pass": True}, "clip_grad_norm": None}
BF16 = {"gradient_checkpointing": False, "weight_dtype": "BFLOAT_16"}
TEXT_ENCODER = {"train": True, "learning_rate": 0.001, "gradient_checkpointing": False}
CHECKPOINTED = {"train": True, "gradient_checkpointing": True}
FINE_TUNE = {
    "training_method": "FINE_TUNE", "output_model_format": "SAFETENSORS", "optimizer": SCALED,
    # scaled steps are small in so narrow a model
    "learning_rate": 0.025,
}  # fmt: skip


def fine_tune(run, stop_after: int | None = None, **changes):
    return run.train(stop_after, **{**FINE_TUNE, **changes})


def unet_of(run) -> dict[str, torch.Tensor]:
    """The UNet of the run's last backup, by its tensors' names."""
    tensors = newest_backup(run.workspace / "backup", pytest.fail).tensors
    return {name.removeprefix("unet."): tensor for name, tensor in tensors.items() if name.startswith("unet.")}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"unet": BF16},
        {"unet": BF16, "train_dtype": "BFLOAT_16"},
        FUSED,
        {"text_encoder": TEXT_ENCODER, "ema": "CPU", "ema_decay": 0.9, "ema_update_step_interval": 1},
        {"gradient_accumulation_steps": 2, "epochs": 8},
        {"train_dtype": "FLOAT_16"},
        {"optimizer": {"optimizer": "MUON_ADV", "scaled_optm": True}},
    ],
    ids=["scaled", "bf16", "bf16 autocast", "fused", "text encoder and ema", "accumulated", "fp16 autocast", "muon"],
)
def test_the_loss_falls_within_16_steps(make_run, mini_concept, options):
    paths = [{"path": str(mini_concept)}, {"path": str(mini_concept), "type": "VALIDATION"}]
    run = make_run()
    report = fine_tune(
        run, **{"epochs": 4, "concepts": paths, "validation": True, "validate_after_unit": "NEVER", **options}
    )
    assert report["steps"] == 16
    # at fixed noise and timesteps, of the averaged weights where they are averaged
    first, last = (entry["loss"] for entry in (report["validation"][0], report["validation"][-1]))
    assert last < 0.75 * first


def test_bf16_weights_are_rounded_stochastically(make_run):
    """At a rate whose steps are far below half a unit of most weights, rounding to the nearest loses them all."""
    moved = {}
    for rounding in (True, False):
        run = make_run(f"rounding {rounding}")
        fine_tune(run, epochs=1, learning_rate=1e-5, unet=BF16, output_dtype="NONE",
                  optimizer={**SCALED, "stochastic_rounding": rounding})  # fmt: skip
        start = load_file(run.base / "unet" / "diffusion_pytorch_model.safetensors")
        large = {name: p for name, p in unet_of(run).items() if p.dim() == 4}
        assert all(p.dtype == torch.bfloat16 for p in large.values())
        changed = sum(int((p != start[name].bfloat16()).sum()) for name, p in large.items())
        moved[rounding] = changed / sum(p.numel() for p in large.values())
        warned = [line for line in run.warnings() if "rounded to the nearest" in line]
        assert bool(warned) is not rounding
    assert moved[True] > 2 * moved[False] and moved[True] > 0.001


@pytest.mark.parametrize("options, warned", [
    ({"optimizer": "ADAMW"}, True), ({"optimizer": "PRODIGY_PLUS_SCHEDULE_FREE"}, False),
    ({"optimizer": "PRODIGY_PLUS_SCHEDULE_FREE", "stochastic_rounding": False}, True),
])  # fmt: skip
def test_lost_steps_are_told_by_what_the_optimizer_does(options, warned):
    config = TrainConfig.from_dict({"unet": BF16, "optimizer": options})
    told = []
    _check_optimizer(config, ["unet"], told.append)
    assert len(told) == warned and all("rounded to the nearest" in line for line in told)


class LargestGradients:
    """Watches the bytes of all gradients that are there at once, at each moment in which one has just come."""

    def __init__(self, parameters: list[torch.nn.Parameter]) -> None:
        self.parameters, self.bytes, self.calls = parameters, 0, 0
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._look)

    def _look(self, parameter: torch.Tensor) -> None:
        alive = sum(p.grad.numel() * p.grad.element_size() for p in self.parameters if p.grad is not None)
        self.bytes, self.calls = max(self.bytes, alive), self.calls + 1


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_fused_backward_holds_the_gradients_of_one_layer(make_run, monkeypatch, fused, checkpointing):
    from modules.trainer.Trainer import Trainer

    watchers = []
    make = Trainer._make_optimizer

    def watched(self):
        # before the run's own hooks, which free the gradient
        watchers.append(LargestGradients(self.parameters))
        make(self)

    monkeypatch.setattr(Trainer, "_make_optimizer", watched)
    component = {"train": True, "gradient_checkpointing": checkpointing}
    fine_tune(make_run(), epochs=1, clip_grad_norm=None, unet=component, text_encoder=component,
              optimizer={**SCALED, "fused_back_pass": fused})  # fmt: skip
    parameters = watchers[0].parameters
    layers: dict[tuple[str, str], int] = {}
    for parameter in parameters:
        info = parameter.parameter_info
        key = info.component, info.layer
        layers[key] = layers.get(key, 0) + parameter.numel() * parameter.element_size()
    trained = [p for p in parameters if p.grad is not None or p.requires_grad]
    assert watchers[0].calls >= 4 * 0.9 * len(trained)
    if fused:
        assert watchers[0].bytes <= max(layers.values())
    else:
        assert watchers[0].bytes > 0.9 * sum(layers.values()), "the measure sees what a plain step holds"


@pytest.mark.parametrize("components", [{}, {"unet": CHECKPOINTED, "text_encoder": CHECKPOINTED}, {"unet": BF16}])
def test_fused_steps_give_the_bytes_of_whole_steps(make_run, components):
    digests = []
    for fused in (False, True):
        run = make_run(f"fused {fused}")
        fine_tune(run, epochs=1, clip_grad_norm=None, **components, optimizer={**SCALED, "fused_back_pass": fused})
        digests.append(unet_of(run))
    whole, fused = digests
    assert whole.keys() == fused.keys() and all(torch.equal(whole[name], fused[name]) for name in whole)


RESUMED = {
    # averages on the CPU, of both components, each with its own rate; one stops early
    "ema and text encoder": {
        "ema": "CPU", "ema_update_step_interval": 2, "unet": {"gradient_checkpointing": True},
        "text_encoder": {**TEXT_ENCODER, "stop_training_after": 3, "stop_training_after_unit": "STEP"},
    },
    "bf16, centered, fused": {
        "unet": BF16, "train_dtype": "BFLOAT_16", "clip_grad_norm": None, "output_dtype": "BFLOAT_16",
        "optimizer": {**SCALED, "fused_back_pass": True, "centered_wd": 0.05, "centered_wd_mode": "int8"},
    },
    "folder, accumulated, some layers": {
        "gradient_accumulation_steps": 3, "epochs": 2, "layer_filter_preset": "custom", "layer_filter": "attentions",
        "optimizer": {"optimizer": "ADAMW"}, "output_model_format": "DIFFUSERS",
    },
}  # fmt: skip


@pytest.mark.parametrize("case", RESUMED)
def test_resuming_changes_no_byte(make_run, case, long):
    """After every step with `--long`, else after the second."""
    whole, resumed = make_run("whole"), make_run("resumed")
    options = {"epochs": 1, **RESUMED[case]}
    for run in (whole, resumed):
        if options.get("output_model_format") == "DIFFUSERS":
            run.output = run.output.with_name("model")
    report = fine_tune(whole, **options, output_model_destination=str(whole.output))
    stopped = {**options, "output_model_destination": str(resumed.output)}
    assert report["finished"]
    stops = range(1, report["steps"]) if long else [2]
    for stop in stops:
        stretch = fine_tune(resumed, stop, continue_last_backup=stop > stops[0], **stopped)
        assert stretch["steps"] == stop and not stretch["finished"]
    assert fine_tune(resumed, continue_last_backup=True, **stopped)["finished"]
    for one, other in zip(files_of(whole.output), files_of(resumed.output), strict=True):
        assert one.name == other.name and one.read_bytes() == other.read_bytes(), one


def files_of(path):
    return sorted(path.rglob("*.*")) if path.is_dir() else [path]


@pytest.mark.parametrize("centered", [0.0, 0.2])
def test_centered_decay_pulls_to_the_base_model(make_run, monkeypatch, centered):
    """Without any gradient signal, weights that were moved away return: each step leaves 0.8 of the distance."""
    trainer = make_run().trainer(**{**FINE_TUNE, "optimizer": {**SCALED, "centered_wd": centered}, "epochs": 5})
    loop, distances = trainer._loop, []

    def no_signal(batch, index, part, micro_batches):
        for parameter in trainer.parameters:
            parameter.grad = torch.zeros_like(parameter)
        return torch.zeros(())

    @torch.no_grad()
    def shaken() -> bool:
        # the optimizer notes where the weights start when it sees them first
        trainer.optimizer.state_dict()
        start = [parameter.clone() for parameter in trainer.parameters]
        for parameter in trainer.parameters:
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        for act in (lambda: None, loop):
            finished = act()
            moved = [(p - s).square().sum() for p, s in zip(trainer.parameters, start, strict=True)]
            distances.append(float(sum(moved)) ** 0.5)
        return finished

    monkeypatch.setattr(trainer, "_backward", no_signal)
    monkeypatch.setattr(trainer, "_loop", shaken)
    assert trainer.run()["steps"] == 20
    # zero gradients make zero steps; float32 rounds each of the twenty
    assert distances[1] / distances[0] == pytest.approx((1 - centered) ** 20, rel=1e-3)


def test_each_component_has_its_own_rate_and_its_end(make_run):
    run = make_run()
    limit = {**TEXT_ENCODER, "learning_rate": 0.002, "stop_training_after": 1, "stop_training_after_unit": "EPOCH"}
    fine_tune(run, epochs=1, text_encoder=limit)
    first = newest_backup(run.workspace / "backup", pytest.fail).tensors
    fine_tune(run, epochs=2, text_encoder=limit, seed=42)
    second = newest_backup(run.workspace / "backup", pytest.fail).tensors
    assert run.of_kind("step")[0]["learning_rates"] == {"unet": FINE_TUNE["learning_rate"], "text_encoder": 0.002}
    moved = {
        component: any(not torch.equal(first[name], second[name]) for name in first if name.startswith(f"{component}."))
        for component in ("unet", "text_encoder")
    }
    assert moved == {"unet": True, "text_encoder": False}


def test_a_filter_trains_some_layers_and_leaves_the_others_to_the_bit(make_run):
    run = make_run()
    fine_tune(run, epochs=1, layer_filter_preset="custom", layer_filter="attentions,conv_out")
    start, trained = load_file(run.base / "unet" / "diffusion_pytorch_model.safetensors"), unet_of(run)
    assert trained.keys() == {name for name in start if "attentions" in name or name.startswith("conv_out")}
    assert any(name.endswith("norm.weight") for name in trained), "norms of the chosen blocks are trained with them"
    assert all(not torch.equal(start[name], tensor) for name, tensor in trained.items())


def test_the_miniature_s_roles(mini_base):
    unet = UNet2DConditionModel.from_pretrained(mini_base / "unet")
    found = WeightSet("unet", unet, None, ("conv_in",), ("conv_out",)).named_parameters()
    by_role = {role: {n for n, p in found.items() if p.parameter_info.role == role} for role in ParameterRole}
    assert by_role[ParameterRole.INPUT] == {"conv_in.weight"} and by_role[ParameterRole.OUTPUT] == {"conv_out.weight"}


REFUSED = [
    ({"unet": {"weight_dtype": "FLOAT_16"}}, r"unet.weight_dtype: found FLOAT_16.*FLOAT_32, or to BFLOAT_16"),
    ({"unet": {"weight_dtype": "NFLOAT_4"}}, r"unet.weight_dtype: found NFLOAT_4.*quantized.*training_method LORA"),
    (
        {"unet": {"train": False}, "text_encoder": {"train": True, "weight_dtype": "FLOAT_8"}},
        "text_encoder.weight_dtype: found FLOAT_8.*quantized",
    ),
    ({"unet": {"train": False}}, "nothing is trained: switch on unet.train"),
    ({"optimizer": {"optimizer": "LORA_RITE"}}, "LORA_RITE steps the two factors of LoRAs.*ADAMW_ADV"),
    ({"lora_model_name": "lora.safetensors"}, "lora_model_name: .* is an adapter.*convert_adapter"),
    ({"output_model_format": "KOHYA_LORA"}, "KOHYA_LORA can't be written.*expected one of DIFFUSERS, SAFETENSORS"),
    ({"output_model_format": "ORIGINAL_TRANSFORMER"}, "ORIGINAL_TRANSFORMER can't be written for a fully trained"),
    ({"output_dtype": "NFLOAT_4"}, "output_dtype: NFLOAT_4 cannot be written"),
    ({"training_method": "FINE_TUNE_VAE"}, "training_method: FINE_TUNE_VAE is not supported yet; .*LORA, FINE_TUNE"),
    ({**FUSED, "gradient_accumulation_steps": 2}, "fused_back_pass.*gradient_accumulation_steps 2"),
]


@pytest.mark.parametrize(("options", "words"), REFUSED, ids=[str(options)[:60] for options, _ in REFUSED])
def test_what_cannot_be_done_is_said_before_anything_is_cached(make_run, options, words):
    run = make_run()
    with pytest.raises(UserError, match=words):
        fine_tune(run, **options)
    assert not run.of_kind("step") and not run.output.exists()
    assert {event["stage"] for event in run.of_kind("progress")} <= {"check"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"output_model_format": "DIFFUSERS"}, "is a file's name, but DIFFUSERS writes a folder"),
        ({"output_model_destination": "model"}, "expected a name that ends in .safetensors, found model"),
        ({"output_model_format": "DIFFUSERS", "output_model_destination": "BASE"}, "is, holds or lies in the base"),
        ({"output_model_destination": "BASE/model.safetensors"}, "is, holds or lies in the base model"),
    ],
)
def test_a_place_that_does_not_fit_is_refused(make_run, options, words):
    run = make_run()
    place = options.get("output_model_destination", str(run.output)).replace("BASE", str(run.base))
    with pytest.raises(UserError, match=f"output_model_destination: .*{words}"):
        fine_tune(run, **options | {"output_model_destination": place})
    assert json.loads((run.base / "model_index.json").read_text(encoding="utf-8"))


def test_a_backup_of_an_adapter_is_no_start_for_weights(make_run):
    run = make_run()
    run.train(2, epochs=1)
    with pytest.raises(UserError, match="unet.* in the backup"):
        fine_tune(run, epochs=1, continue_last_backup=True)
