"""Stepping from gradient hooks gives the bytes of a whole step, and what it can't do is said before the run."""

from modules.util.UserError import UserError

import torch

import pytest
from safetensors.torch import load_file

ENGINE = {"optimizer": "ADAMW_ADV", "weight_decay": 0.01, "kourkoutas_beta": True}
TEXT_ENCODER = {"train": True, "learning_rate": 0.002, "gradient_checkpointing": False}


@pytest.mark.parametrize("rule", ["ADAMW_ADV", "MUON_ADV", "PRODIGY_ADV"])
def test_the_adapter_is_the_same_to_the_bit(make_run, rule):
    files = []
    for fused in (False, True):
        run = make_run(f"fused {fused}")
        options = {"optimizer": rule, "fused_back_pass": fused, **({"d0": 1e-3} if rule == "PRODIGY_ADV" else {})}
        rate = 1.0 if rule == "PRODIGY_ADV" else 0.01
        run.train(
            epochs=1,
            optimizer=options,
            clip_grad_norm=None,
            learning_rate=rate,
            text_encoder=TEXT_ENCODER | {"learning_rate": None},
        )
        files.append(load_file(run.output))
    whole, fused = files
    assert whole.keys() == fused.keys() and all(torch.equal(whole[name], fused[name]) for name in whole)


def test_gradients_are_freed_at_once(make_run, monkeypatch):
    from scaled_optim.batched_optimizer import BatchedOptimizer

    trainer = make_run().trainer(epochs=1, optimizer={**ENGINE, "fused_back_pass": True}, clip_grad_norm=None)
    alive = []
    step_parameter = BatchedOptimizer.step_parameter

    def watched(self, parameter, *rest):
        alive.append(sum(p.grad is not None for p in trainer.parameters))
        return step_parameter(self, parameter, *rest)

    monkeypatch.setattr(BatchedOptimizer, "step_parameter", watched)
    trainer.run()
    # autograd may hand over a layer's two factors before the first hook runs
    assert len(alive) == 4 * len(trainer.parameters) and max(alive) <= 2


def test_the_logged_norm_is_that_of_the_whole_gradient(make_run):
    norms = []
    for fused in (False, True):
        run = make_run(f"fused {fused}")
        run.train(epochs=1, optimizer={**ENGINE, "fused_back_pass": fused}, clip_grad_norm=None)
        norms.append([step["gradient_norm"] for step in run.of_kind("step")])
    # summed in another order
    torch.testing.assert_close(torch.tensor(norms[0]), torch.tensor(norms[1]), rtol=1e-5, atol=0)


def test_clipping_limits_each_parameters_own_gradient(make_run):
    run = make_run()
    run.train(epochs=1, optimizer={**ENGINE, "fused_back_pass": True}, clip_grad_norm=1e-3)
    assert any("limits each parameter's own gradient" in text for text in run.warnings())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps 2"),
        ({"train_dtype": "FLOAT_16"}, "FLOAT_16"),
    ],
)
def test_what_needs_the_whole_gradient_is_refused(make_run, options, named):
    with pytest.raises(UserError, match=f"optimizer.fused_back_pass: .*{named}"):
        make_run().train(optimizer={**ENGINE, "fused_back_pass": True}, **options)


def test_an_optimizer_without_it_is_named(make_run):
    with pytest.raises(UserError, match="optimizer.fused_back_pass: ADAMW has no such option; .*ADAMW_ADV"):
        make_run().train(optimizer={"optimizer": "ADAMW", "fused_back_pass": True})
