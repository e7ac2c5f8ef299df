"""Stopped and resumed, a run ends with the same bytes. Each case says why it is exact.

After every single step with `--long` and in two of the cases; after the second step in the others, which has state of
a step and weights that have moved, and steps to follow. Optimizers of libraries whose state is of a kind with another's
are resumed with `--long`; that their state comes back from a backup, test_optimizers.py shows of each.
"""

from modules.modelSaver.AdapterFile import read_adapter

import torch

TEXT_ENCODER = {"train": True, "learning_rate": 0.002, "gradient_checkpointing": False}
CHECKPOINTED = {"train": True, "gradient_checkpointing": True}
VARIED = {"enable_random_flip": True, "enable_crop_jitter": True}
SAMPLE = {"prompt": "a red shape", "width": 32, "height": 32, "diffusion_steps": 2}
OFT = {"peft_type": "OFT_2", "oft_block_size": 4}
EVERYTHING = {
    "optimizer": "ADAMW_ADV", "scaled_optm": True, "state_precision": "int8_sr", "kourkoutas_beta": True,
    "orthogonal_gradient": "per_rank", "fisher_wd": True, "cautious_wd": True, "weight_decay": 0.01, "nesterov": True,
    "fused_back_pass": True,
}  # fmt: skip
CASES = {
    # moments and step counts are stored in float32 as they are; noise and timesteps are keyed by (seed, batch index)
    "adamw": {"epochs": 2},
    # the average and its count of updates are stored, and the interval counts steps of the whole run
    "ema": {"ema": "CPU", "ema_decay": 0.9, "ema_update_step_interval": 2},
    # a step is never cut: its batches are counted over the whole run, also where a step takes from two epochs
    "accumulation": {"gradient_accumulation_steps": 3, "epochs": 2},
    # captions are encoded live, and what they are depends on (seed, epoch)
    "text encoder": {"text_encoder": TEXT_ENCODER, "learning_rate_scheduler": "COSINE", "clip_grad_norm": 0.01},
    # the global generator is seeded before every batch, and caption dropout is part of the plan of an epoch
    "dropout": {"dropout_probability": 0.3, "text_encoder": {**TEXT_ENCODER, "dropout_probability": 0.5}},
    # scale and growth count are stored; a skipped step is one of the run's steps
    "fp16": {"train_dtype": "FLOAT_16"},
    # raw weights are stored, not the averaged ones, and its counters stand in the parameter groups
    "schedule-free": {"optimizer": {"optimizer": "SCHEDULE_FREE_ADAMW"}},
    "schedule-free sgd": {"optimizer": {"optimizer": "SCHEDULE_FREE_SGD"}, "learning_rate": 0.1},
    # its distance estimate and the sums behind it stand in the parameter groups, the start weights in the state
    "prodigy": {"optimizer": {"optimizer": "PRODIGY", "d0": 1e-3}, "learning_rate": 1.0},
    # state of another dtype than the weights keeps its own dtype on loading
    "adafactor": {"optimizer": {"optimizer": "ADAFACTOR", "beta1": 0.9}, "lora_weight_dtype": "BFLOAT_16"},
    # quantised state is stored as bytes with its scales
    "8-bit": {"optimizer": {"optimizer": "ADAMW_8BIT", "min_8bit_size": 64}},
    # codes are made of float32 state after a step and are what the next one starts from
    "8-bit came": {"optimizer": {"optimizer": "CAME_8BIT", "min_8bit_size": 64, "quant_block_size": 64}},
    "8-bit lamb": {"optimizer": {"optimizer": "LAMB_8BIT", "min_8bit_size": 64, "max_unorm": 0.0}},
    # both groups of a component are stored, and its rate is the component's
    "muon": {"optimizer": {"optimizer": "MUON", "muon_te1_adam_lr": 1e-4}, "text_encoder": TEXT_ENCODER},
    # as Prodigy; it rounds by the global generator, which is seeded before every batch
    "d-adaptation": {"optimizer": {"optimizer": "DADAPT_ADAM", "d0": 1e-3}, "learning_rate": 1.0},
    "prodigy plus": {
        "optimizer": {"optimizer": "PRODIGY_PLUS_SCHEDULE_FREE", "d0": 1e-3}, "learning_rate": 1.0,
        "lora_weight_dtype": "BFLOAT_16",
    },
    # a state that is a number of Python, and tensors of bfloat16
    "aida": {"optimizer": {"optimizer": "AIDA", "adanorm": True, "ams_bound": True}, "lora_weight_dtype": "BFLOAT_16"},
    # random numbers are keyed by (seed, parameter, step); rounded state is stored as it is
    "engine": {"lora_weight_dtype": "BFLOAT_16", "optimizer": EVERYTHING},
    # the estimate and its sums are stored, in float64
    "engine, prodigy": {"optimizer": {"optimizer": "PRODIGY_ADV", "d0": 1e-3}, "learning_rate": 1.0},
    # the sketch is one of those random numbers, the auxiliary Adam's state stands beside
    "engine, muon": {"optimizer": {"optimizer": "MUON_ADV", "low_rank_ortho": True, "ortho_rank": 2}},
    # the first gradient of a pair waits for the second within one backward pass only, and bases are stored
    "engine, stiefel": {
        "optimizer": {"optimizer": "STIEFEL_LORA", "stiefel_base": "SIGN", "fused_back_pass": True},
        "lora_init": "ORTHONORMAL", "lora_weight_dtype": "BFLOAT_16",
    },
    "engine, rite": {
        "optimizer": {"optimizer": "LORA_RITE", "scaled_optm": True, "fused_back_pass": True}, "lora_decompose": True
    },
    # raw weights are stored, not the effective ones of files; blocks are dropped by the global generator
    "oft": {**OFT, "oft_scaled": True, "dropout_probability": 0.3},
    "oft on kernels": {**OFT, "oft_kernels": True, "oft_block_share": True, "dropout_probability": 0.3},
    "oft on outputs": {**OFT, "oft_side": "OUTPUT", "lora_decompose": True, "lora_weight_dtype": "BFLOAT_16"},
    # the norm that DoRA divides by is that of the frozen weights and the stored factors
    "dora": {"lora_decompose": True, "dropout_probability": 0.3, "unet": CHECKPOINTED},
    "loha": {"peft_type": "LOHA", "dropout_probability": 0.3},
    "lokr": {"peft_type": "LOKR", "lokr_dim": 2, "lokr_weight_decompose": True},
    # samples and validation restore the weights by copying and use generators of their own
    "watched": {
        "samples": [SAMPLE], "sample_after": 2, "sample_after_unit": "STEP",
        "ema": "GPU", "ema_update_step_interval": 1, "optimizer": {"optimizer": "SCHEDULE_FREE_ADAMW"},
    },
    # freezing is decided by the number of steps done
    "frozen component": {
        "text_encoder": {**TEXT_ENCODER, "stop_training_after": 2, "stop_training_after_unit": "STEP"},
    },
}  # fmt: skip


# of which another case has the kind of state
ALIKE = ("schedule-free sgd", "8-bit came", "8-bit lamb", "d-adaptation", "prodigy")


def pytest_generate_tests(metafunc) -> None:
    if "case" in metafunc.fixturenames:
        long = metafunc.config.getoption("--long")
        metafunc.parametrize("case", [case for case in CASES if long or case not in ALIKE])


def test_resuming_changes_no_byte(make_run, case, long):
    whole, resumed = make_run("whole"), make_run("resumed")
    options = {"epochs": 1, **CASES[case]}
    report = whole.train(**options)
    batches = 4 * options["epochs"]
    assert report["finished"] and report["steps"] == -(-batches // options.get("gradient_accumulation_steps", 1))
    stops = range(1, report["steps"]) if long or case in ("adamw", "engine") else [2]
    for stop in stops:
        stretch = resumed.train(stop_after=stop, continue_last_backup=stop > stops[0], **options)
        assert stretch["steps"] == stop and not stretch["finished"]
    stretch = resumed.train(continue_last_backup=True, **options)
    assert stretch["finished"] and stretch["steps"] == report["steps"]
    assert stretch["first_loss"] == report["first_loss"] and stretch["final_loss"] == report["final_loss"]
    assert resumed.digest() == whole.digest()
    assert trained(whole.output)


def test_image_variations_over_epochs_resume_exactly(make_run, mini_concept):
    whole, resumed = make_run("whole", own_cache=True), make_run("resumed", own_cache=True)
    concept = {"path": str(mini_concept), "image_variations": 3, "image": VARIED, "loss_weight": 0.5}
    whole.train(concepts=[concept])
    for stop_after in (3, 4, 9, None):
        resumed.train(stop_after, concepts=[concept], continue_last_backup=stop_after != 3)
    assert resumed.digest() == whole.digest()


def test_the_config_in_the_file_does_not_tell_of_the_resume(make_run):
    whole, resumed = make_run("whole"), make_run("resumed")
    options = {"epochs": 1, "include_train_config": "SETTINGS", "workspace_dir": str(resumed.workspace)}
    options["output_model_destination"] = str(resumed.output)
    whole.train(**options, continue_last_backup=False)
    first = resumed.digest()
    resumed.output.unlink()
    resumed.train(2, **options)
    resumed.train(**options, continue_last_backup=True)
    assert resumed.digest() == first


def test_a_changed_learning_rate_is_announced_and_holds(mini_run):
    mini_run.train(2, epochs=1, learning_rate=0.01)
    mini_run.train(epochs=1, learning_rate=0.001, continue_last_backup=True)
    lines = [line for line in mini_run.warnings() if "learning rate" in line]
    assert len(lines) == 1 and "from 0.01 to 0.001" in lines[0] and "step 3" in lines[0]
    rates = [step["learning_rates"]["unet"] for step in mini_run.of_kind("step")]
    assert rates == [0.01, 0.01, 0.001, 0.001]


def test_averaging_that_starts_on_resume_starts_from_the_resumed_weights(mini_run):
    mini_run.train(3, epochs=1)
    mini_run.train(epochs=1, continue_last_backup=True, ema="CPU", ema_update_step_interval=100)
    # with no update yet the average is what it started from, which must not be the untrained adapter
    assert trained(mini_run.output)


def test_a_changed_precision_on_resume_is_no_traceback(mini_run):
    mini_run.train(2, epochs=1)
    assert mini_run.train(epochs=1, continue_last_backup=True, train_dtype="FLOAT_16")["finished"]


def trained(path) -> bool:
    """Whether an adapter changes anything: one part of each kind starts at zero."""
    zero_at_start = {"lora_up.weight", "oft_R.weight", "oft_blocks", "hada_w2_a", "lokr_w2_b"}
    parts = [part for layer in read_adapter(path).layers.values() for part in layer.items()]
    return any(bool(torch.count_nonzero(tensor)) for name, tensor in parts if name in zero_at_start)
