"""The check of a GPU, as far as a CPU and a device that is made up can answer for it."""

import time
from dataclasses import replace

import modules.trainer.Trainer as trainer_module
from benchmarks.gpu import adapters, base, deterministic, machine, measurement, resume, rules, training
from benchmarks.gpu.Bench import Bench, bounded, rows_of
from benchmarks.gpu.registry import CHECKS
from benchmarks.gpu.Row import NotMeasured, Row, State
from benchmarks.optimizers.cases import Case
from modules.module.kinds import ADAPTER_CLASSES
from modules.trainer import denoiser_speed
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError
from scaled_optim.batched_optimizer import BatchedOptimizer
from tests.foreign_device import ForeignDevice
from tests.load_script import load_script

import torch

import pytest
from safetensors.torch import save_file

LATER = 3600.0


@pytest.fixture
def bench(tmp_path):
    return Bench(torch.device("cpu"), True, tmp_path, time.monotonic() + LATER)


def failing(error: Exception):
    def measure():
        raise error

    return measure


def test_every_case_has_a_row_whatever_comes_of_it(bench):
    errors = {
        "fault": RuntimeError("broken\nin two lines"), "absent": NotMeasured("no card"),
        "ended": UserError("The loss of step 3 is nan."), "memory": torch.OutOfMemoryError("CUDA out of memory"),
    }  # fmt: skip
    cases = {name: failing(error) for name, error in errors.items()}
    cases |= {"good": lambda: bounded(0.1, 0.2, "x", {}), "bad": lambda: bounded(float("nan"), 0.2, "x", {})}
    rows = {row.case: row for row in rows_of("x", bench, cases)}
    assert list(rows) == list(cases)
    assert rows["fault"].state == State.FAILS and rows["fault"].text == "RuntimeError: broken in two lines"
    assert {rows[name].state for name in ("absent", "memory")} == {State.NOT_MEASURED}
    assert (rows["ended"].state, rows["ended"].text) == (State.FAILS, "The loss of step 3 is nan.")
    assert rows["good"].state == State.HOLDS and rows["bad"].state == State.FAILS
    late = list(rows_of("x", replace(bench, until=time.monotonic() - 1), cases))
    assert {(row.state, row.text) for row in late} == {(State.NOT_MEASURED, "no time was left for it")}
    for row in rows.values():
        assert Row.from_line(row.to_line()) == row


def test_runs_with_options_are_compared_with_the_plain_run(bench):
    rows = {row.case: row for row in training.measure(bench)}
    assert list(rows) == list(training.SMALL_CASES)
    assert {row.state for row in rows.values()} == {State.HOLDS}, rows
    assert rows["again, the same bytes?"].figures["losses_apart"] == 0.0
    other = training._case(bench, {"losses": [1.0] * 6, "seconds": 1.0}, "other", {}, 0.01)
    assert other[0] == State.FAILS, "losses that are far from those of the plain run"
    with pytest.raises(NotMeasured, match="the plain run"):
        training._case(bench, {}, "without", {}, 0.01)


def test_a_run_that_is_refused_is_not_measured_and_one_that_ends_in_a_step_fails(bench, monkeypatch):
    refused = base.config_of(bench, "refused", {"attention_mechanism": "FLASH"})
    with pytest.raises(NotMeasured, match="refused: attention_mechanism"):
        training.trained(bench, refused)

    def broken(*arguments):
        raise UserError("The loss of step 1 is nan.")

    monkeypatch.setattr(trainer_module, "batch_losses", broken)
    with pytest.raises(UserError, match="The loss of step 1"):
        training.trained(bench, base.config_of(bench, "broken", {}))


def test_a_run_that_compiles_nothing_is_not_measured(bench, monkeypatch):
    monkeypatch.setattr(denoiser_speed, "_uncompiled", lambda model, config: "there is no compiler")
    with pytest.raises(NotMeasured, match="compile: there is no compiler"):
        training.trained(bench, base.config_of(bench, "uncompiled", {"compile": True}))
    assert not (bench.folder / "uncompiled" / "result.safetensors").exists(), "no step was waited for"


def test_a_backup_that_can_not_be_continued_fails(bench, monkeypatch):
    def run(bench, config, stop_after=None):
        if config.continue_last_backup:
            raise NotMeasured("refused: it does not fit")
        return {"losses": [1.0]}

    monkeypatch.setattr(resume, "trained", run)
    (row,) = resume.measure(bench)
    assert row.state == State.FAILS and "can't be continued: refused: it does not fit" in row.text


def test_deterministic_runs_have_the_same_bytes_or_fail(bench, monkeypatch):
    def short(bench, name, options):
        configs.append(base.config_of(bench, name, {**options, "epochs": 1}))
        return configs[-1]

    configs: list[TrainConfig] = []
    monkeypatch.setattr(deterministic, "config_of", short)
    (row,) = deterministic.measure(bench)
    assert row.state == State.HOLDS and row.figures["over_plain"] > 0, row
    assert [config.deterministic for config in configs] == [True, True, False]
    # the second of two runs has learned something else
    files = [bench.folder / f"{name}.safetensors" for name in ("first", "second", "plain")]
    for index, file in enumerate(files):
        save_file({"same": torch.ones(2), "other": torch.full((2,), float(index))}, file)
    runs = [{"report": {"output": str(file)}, "seconds": 1.0} for file in files]
    monkeypatch.setattr(deterministic, "config_of", lambda bench, name, options: None)
    monkeypatch.setattr(deterministic, "trained", lambda bench, config: runs.pop(0))
    (row,) = deterministic.measure(bench)
    assert row.state == State.FAILS and row.text.startswith("1 of 2 tensors"), row


def test_a_continued_run_is_told_from_another_one(bench, monkeypatch):
    assert [row.state for row in resume.measure(bench)] == [State.HOLDS]

    def elsewhere(bench, name, options):
        return original(bench, f"{name} again", {**options, "seed": {"whole": 1, "parts": 2}[name]})

    original = resume.config_of
    monkeypatch.setattr(resume, "config_of", elsewhere)
    assert [row.state for row in resume.measure(bench)] == [State.FAILS], "two trainings of different seeds"


def test_rules_and_adapters_are_compared_with_a_cpu(bench, monkeypatch):
    device = ForeignDevice()
    there = replace(bench, device=device.device)
    with device:
        case = Case("ADAMW_ADV plain", "ADAMW_ADV")
        assert rules._steps(there, case)[0] == State.HOLDS
        config = TrainConfig(lora_rank=4, lora_alpha=4.0)
        assert adapters._numbers(there, config)[0] == State.HOLDS
        step = BatchedOptimizer.step

        def wrong(self):
            step(self)
            for parameter in self.param_groups[0]["params"]:
                if parameter.device.type != "cpu":
                    parameter.data.mul_(1.001)

        monkeypatch.setattr(BatchedOptimizer, "step", wrong)
        assert rules._steps(there, case)[0] == State.FAILS


@pytest.mark.parametrize(
    ("found", "expected", "apart"),
    [
        ([1.0, 2.5], [1.0, 2.0], 0.25), ([0.0], [0.0], 0.0), ([1.0], [0.0], float("inf")),
        ([float("nan"), 1.0], [1.0, 1.0], float("inf")), ([1.0], [float("inf")], float("inf")),
    ],
)  # fmt: skip
def test_what_is_not_finite_is_as_far_apart_as_can_be(found, expected, apart):
    assert adapters._apart(torch.tensor(found), torch.tensor(expected)) == apart


def test_one_gradient_that_is_not_finite_fails(bench, monkeypatch):
    def gradients(config, root, x):
        there = x.device.type != "cpu"
        return [torch.ones(2), torch.tensor([float("nan"), 1.0] if there else [1.0, 1.0]), torch.zeros(2)]

    device = ForeignDevice()
    monkeypatch.setattr(adapters, "_gradients", gradients)
    with device:
        assert adapters._numbers(replace(bench, device=device.device), TrainConfig())[0] == State.FAILS


def test_a_cpu_is_compared_with_nothing(bench):
    for own in (machine, rules, adapters):
        rows = list(own.measure(bench))
        assert {row.state for row in rows} == {State.REPORTED, State.NOT_MEASURED}, own
    assert len([row for row in rows if row.case.endswith("numbers")]) >= len(ADAPTER_CLASSES)


def test_a_process_that_breaks_or_hangs_is_a_finding(tmp_path, monkeypatch):
    (broken,) = measurement._in_process("no such check", "cpu", True, 60, tmp_path)
    assert broken.state == State.FAILS and "ended with status 2" in broken.text
    (late,) = measurement._in_process("machine", "cpu", True, 0.1, tmp_path)
    assert late.state == State.NOT_MEASURED and "did not end" in late.text, "less time than it needs"
    monkeypatch.setitem(CHECKS, "machine", replace(CHECKS["machine"], seconds=0.1))
    (hanging,) = measurement._in_process("machine", "cpu", True, 0.1, tmp_path)
    assert hanging.state == State.FAILS and "did not end" in hanging.text


def test_the_command_writes_tables_and_numbers(tmp_path, capsys):
    script = load_script("gpu_check")
    files = [tmp_path / "found" / name for name in ("numbers.json", "tables.md")]
    arguments = ["--device", "cpu", "--only", "machine", "--output", str(files[0]), "--tables", str(files[1])]
    assert script.main(arguments) == 0
    assert "No GPU was found" in capsys.readouterr().out
    text = files[1].read_text(encoding="utf-8")
    assert "## What was not measured" in text and f"## {CHECKS['machine'].title}" in text
    assert '"tflops"' in files[0].read_text(encoding="utf-8")
    assert script.main(["--device", "cpu", "--only", "nothing"]) == 2
    assert "machine, training" in capsys.readouterr().err


def test_failures_are_said_first():
    rows = [Row("rules", "a", State.HOLDS, "x"), Row("rules", "b", State.FAILS, "y|z")]
    text = measurement.report(rows)
    assert text.startswith("Of 2 cases 1 hold, 1 fail")
    assert text.index("- rules, b: y|z") < text.index("| a | holds | x |") and "| b | FAILS | y/z |" in text
