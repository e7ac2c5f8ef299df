"""Whole runs of the miniature in this process: what they write, and what their options change."""

import json
import math

from modules.dataLoader.Encoder import Encoder
from modules.modelSaver.AdapterFile import read_adapter
from modules.trainer.backup import newest_backup
from modules.util.UserError import UserError

import torch

import pytest
from PIL import Image
from safetensors import safe_open

SAMPLES = [
    {"prompt": prompt, "width": 32, "height": 32, "diffusion_steps": 2, "seed": seed}
    for seed, prompt in enumerate(("a red shape", "a blue shape"))
]
DRAWN = {"samples": SAMPLES, "sample_after": 6, "sample_after_unit": "STEP", "sample_image_format": "PNG"}
TEXT_ENCODER = {"train": True, "gradient_checkpointing": False}


def tensors(path) -> dict[str, torch.Tensor]:
    """Layer and part -> tensor of an adapter file."""
    layers = read_adapter(path).layers
    return {f"{layer} {part}": value for layer, parts in layers.items() for part, value in parts.items()}


def validation(mini_concept) -> dict:
    paths = [{"path": str(mini_concept)}, {"path": str(mini_concept), "type": "VALIDATION"}]
    return {"concepts": paths, "validation": True, "validate_after": 4, "validate_after_unit": "STEP"}


def test_the_same_config_gives_the_same_bytes_and_another_seed_others(make_run):
    digests = []
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        run = make_run(name)
        run.train(epochs=1, seed=seed)
        digests.append(run.digest())
    assert digests[0] == digests[1] != digests[2]


def test_run_json(mini_run, mini_concept):
    report = mini_run.train(**DRAWN, **validation(mini_concept))
    assert json.loads((mini_run.workspace / "run.json").read_text(encoding="utf-8")) == report
    assert report["finished"] and report["steps"] == 12 and report["epochs"] == 3
    losses = [values["loss"] for values in mini_run.of_kind("step")]
    assert report["first_loss"] == losses[0] and report["final_loss"] == losses[-1], "a tenth of 12 steps is one"
    assert 0 < report["seconds_per_step"] < report["training_seconds"] < 60
    assert 2**26 < report["peak_memory_bytes"] < 2**36
    assert report["output"] == str(mini_run.output) and len(report["config_hash"]) == 64
    assert [record["step"] for record in report["samples"]] == [0, 6, 12]
    assert [record["step"] for record in report["validation"]] == [0, 4, 8, 12]
    assert report["versions"]["torch"] == torch.__version__


def test_the_hash_counts_what_changes_the_result(make_run):
    hashes = []
    for name, options in (("a", {}), ("b", {"backup_before_save": False}), ("c", {"lora_alpha": 2.0})):
        hashes.append(make_run(name).train(1, epochs=1, **options)["config_hash"])
    assert hashes[0] == hashes[1] != hashes[2]


def test_samples_grids_and_the_before_after_picture(mini_run):
    report = mini_run.train(**DRAWN)
    for record in report["samples"]:
        assert len(record["files"]) == 2
        for file in [*record["files"], record["grid"]]:
            with Image.open(file) as image:
                image.load()
    first, last = ([Image.open(file).tobytes() for file in report["samples"][k]["files"]] for k in (0, -1))
    assert first[0] != first[1] and first[0] != last[0], "prompts and training change the pictures"
    with Image.open(mini_run.workspace / "before_after.png") as image:
        assert image.width > 2 * 192 and image.height > 2 * 192


def test_with_averages_both_kinds_are_drawn(mini_run):
    mini_run.train(**DRAWN, ema="CPU")
    names = {path.name for path in (mini_run.workspace / "samples" / "grid").iterdir()}
    assert names == {
        "step-000000.png", "step-000006.png", "step-000006-no-ema.png", "step-000012.png", "step-000012-no-ema.png",
    }  # fmt: skip


def test_a_sample_that_fails_never_ends_a_run(mini_run, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr("modules.model.StableDiffusionModel.StableDiffusionModel.sample", fail)
    assert mini_run.train(epochs=1, **DRAWN)["finished"]
    assert any("samples of step 0 failed: no such kernel" in line for line in mini_run.warnings())


@pytest.mark.parametrize(
    "watching", [DRAWN, {"backup_after": 1, "backup_after_unit": "STEP"}, {"save_every": 2, "save_every_unit": "STEP"}]
)
def test_watching_changes_no_byte(make_run, watching):
    plain, watched = make_run("plain"), make_run("watched")
    options = {"dropout_probability": 0.2, "ema": "GPU", "optimizer": {"optimizer": "SCHEDULE_FREE_ADAMW"}}
    plain.train(**options)
    watched.train(**options, **watching)
    assert plain.digest() == watched.digest()


def test_validation_is_the_same_for_the_same_weights(make_run, mini_concept):
    still, moving = make_run("still"), make_run("moving")
    still.train(**validation(mini_concept), learning_rate=0.0, dropout_probability=0.5)
    moving.train(**validation(mini_concept))
    same, changing = ([values["loss"] for values in run.of_kind("validation")] for run in (still, moving))
    assert len(same) == 4 and len(set(same)) == 1, "noise and timesteps are fixed, dropout is off"
    assert len(set(changing)) == 4 and changing[0] == same[0]
    assert all(math.isfinite(loss) for loss in changing)


def test_images_of_validation_are_encoded_without_autocast(mini_run, mini_concept, monkeypatch):
    encode, under = Encoder.image, []
    monkeypatch.setattr(
        Encoder, "image", lambda *given: under.append(torch.is_autocast_enabled("cpu")) or encode(*given)
    )
    options = {"train_dtype": "BFLOAT_16", "latent_caching": False, "epochs": 1}
    mini_run.train(**validation(mini_concept), **options)
    assert mini_run.of_kind("validation") and len(under) == 3 * 7 and not any(under)


@pytest.mark.parametrize("text_encoder", [False, True])
def test_gradient_checkpointing_computes_the_same_gradients(make_run, text_encoder):
    plain, saving = make_run("plain"), make_run("saving")
    for run, on in ((plain, False), (saving, True)):
        run.train(
            epochs=1, dropout_probability=0.2, unet={"gradient_checkpointing": on},
            text_encoder={"train": text_encoder, "gradient_checkpointing": on},
        )  # fmt: skip
    # the second forward pass repeats the very operations of the first, dropout masks included
    found, wanted = tensors(saving.output), tensors(plain.output)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("dtype", ["BFLOAT_16", "FLOAT_16"])
def test_mixed_precision_learns_about_the_same(make_run, dtype):
    exact, mixed = make_run("exact"), make_run("mixed")
    wanted = exact.train(learning_rate=1e-3)
    report = mixed.train(learning_rate=1e-3, train_dtype=dtype)
    assert report["finished"]
    # the loss is that of nearly the same weights, with eight bits of each number
    assert report["final_loss"] == pytest.approx(wanted["final_loss"], rel=0.05)
    assert report["final_loss"] != wanted["final_loss"]


@pytest.mark.parametrize("dtype", ["BFLOAT_16", "FLOAT_16"])
def test_adapters_and_base_of_low_precision(mini_run, dtype):
    component = {"gradient_checkpointing": False, "weight_dtype": "BFLOAT_16"}
    report = mini_run.train(epochs=1, train_dtype="BFLOAT_16", lora_weight_dtype="BFLOAT_16", unet=component,
                            output_dtype=dtype)  # fmt: skip
    assert report["finished"]
    with safe_open(mini_run.output, "pt") as file:
        found = {file.get_tensor(name).dtype for name in file.keys() if "lora_" in name and "alpha" not in name}
    assert found == {{"BFLOAT_16": torch.bfloat16, "FLOAT_16": torch.float16}[dtype]}


def test_gradient_accumulation_is_one_larger_batch(make_run, mini_concept):
    large, small = make_run("large"), make_run("small")
    square = {"path": str(mini_concept)}
    # one size and no crops, so that both take the same images; the noise of a batch differs, so only counts compare
    options = {"concepts": [square], "aspect_ratio_bucketing": False}
    assert large.train(batch_size=6, **options)["steps"] == 6
    assert small.train(batch_size=2, gradient_accumulation_steps=3, **options)["steps"] == 4
    assert tensors(large.output).keys() == tensors(small.output).keys()


def test_intermediate_saves(mini_run):
    mini_run.train(save_every=5, save_every_unit="STEP", save_filename_prefix="mine-")
    saved = sorted((mini_run.workspace / "save").iterdir())
    assert [path.name.rsplit("save-", 1)[1] for path in saved] == ["10-2.safetensors", "5-1.safetensors"]
    assert all(path.name.startswith("mine-") for path in saved)
    later, earlier = (tensors(path) for path in saved)
    assert any(not torch.equal(later[name], earlier[name]) for name in later)


def test_an_older_output_is_kept_aside(mini_run):
    mini_run.output.parent.mkdir(parents=True)
    mini_run.output.write_text("first")
    mini_run.train(1, epochs=1)
    mini_run.train(1, epochs=1, seed=7)
    mini_run.train(1, epochs=1, seed=7)  # the same bytes again are nothing new
    kept = sorted(path.name for path in mini_run.output.parent.iterdir())
    assert kept == ["lora-1.safetensors", "lora-2.safetensors", "lora.safetensors"]
    assert (mini_run.output.parent / "lora-1.safetensors").read_text() == "first"
    assert any("lora-1.safetensors" in line for line in mini_run.warnings())


def test_prevent_overwrites_stops_before_anything_is_loaded(mini_run):
    mini_run.output.parent.mkdir(parents=True)
    mini_run.output.write_text("mine")
    with pytest.raises(UserError, match="prevent_overwrites is on"):
        mini_run.train(prevent_overwrites=True)
    assert mini_run.output.read_text() == "mine" and not mini_run.of_kind("status")


@pytest.mark.parametrize("layout", ["KOHYA_LORA", "COMFY_LORA", "DIFFUSERS_LORA"])
def test_training_continues_from_a_saved_adapter(make_run, layout):
    first, second = make_run("first"), make_run("second")
    first.train(epochs=1, output_model_format=layout, text_encoder=TEXT_ENCODER)
    second.train(
        epochs=1, learning_rate=0.0, lora_model_name=str(first.output), text_encoder=TEXT_ENCODER,
        optimizer={"optimizer": "SGD"}, output_model_format=layout,
    )  # fmt: skip
    before, after = tensors(first.output), tensors(second.output)
    assert before.keys() == after.keys()
    # DIFFUSERS_LORA folds alpha into the weights, which rounds
    assert all(torch.allclose(before[name], after[name], rtol=1e-6) for name in before)


def test_an_adapter_for_a_component_that_is_not_trained_is_refused(make_run):
    first, second = make_run("first"), make_run("second")
    first.train(1, epochs=1, text_encoder=TEXT_ENCODER)
    with pytest.raises(UserError, match="adapts the text_encoder, which this run does not train"):
        second.train(lora_model_name=str(first.output))


def test_only_cache_fills_the_cache_and_stops(make_run):
    run = make_run(own_cache=True)
    assert run.train(only_cache=True) == {}
    assert len(list((run.cache / "latents").rglob("*.safetensors"))) == 7
    assert not run.output.exists() and not run.of_kind("step")


def test_without_a_cache_the_result_is_the_same(make_run):
    cached, live = make_run("cached"), make_run("live", own_cache=True)
    cached.train(epochs=1)
    live.train(epochs=1, latent_caching=False)
    # the files differ in the hash of the config, which counts the option
    found, wanted = tensors(live.output), tensors(cached.output)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert not list(live.cache.rglob("*.safetensors"))


def test_rolling_backups_and_the_one_before_saving(mini_run):
    options = {"backup_after": 2, "backup_after_unit": "STEP", "rolling_backup": True, "rolling_backup_count": 3}
    mini_run.train(**options)
    assert len(mini_run.backups()) == 3
    newest = newest_backup(mini_run.workspace / "backup", pytest.fail)
    assert newest.progress["step"] == 12 and newest.config["batch_size"] == 2 and "secrets" not in newest.config


def test_wishes_are_fulfilled_after_the_step_in_flight(mini_run):
    trainer = mini_run.trainer(epochs=1, **DRAWN)

    def wish(kind: str, values: dict) -> None:
        if kind == "step" and values["step"] == 2:
            trainer.commands.sample = trainer.commands.backup = trainer.commands.save = True

    trainer.events.listeners.append(wish)
    trainer.run()
    assert [values["step"] for values in mini_run.of_kind("backup")] == [2, 4]
    assert {values["step"] for values in mini_run.of_kind("sample")} == {0, 2, 4}
    assert len(list((mini_run.workspace / "save").iterdir())) == 1


def test_a_component_that_is_finished_stays_as_it_is(make_run):
    options = {"optimizer": {"optimizer": "ADAMW", "weight_decay": 0.1}}
    stopped, short = make_run("stopped"), make_run("short")
    limit = {**TEXT_ENCODER, "stop_training_after": 1, "stop_training_after_unit": "EPOCH"}
    stopped.train(epochs=3, text_encoder=limit, **options)
    short.train(epochs=1, text_encoder=TEXT_ENCODER, **options)
    long, once = tensors(stopped.output), tensors(short.output)
    encoder = [name for name in long if name.startswith("lora_te")]
    assert encoder and all(torch.equal(long[name], once[name]) for name in encoder)
    assert any(not torch.equal(long[name], once[name]) for name in long if name not in encoder)


def test_a_run_whose_components_are_all_finished_ends_early(mini_run):
    unet = {"gradient_checkpointing": False, "stop_training_after": 5, "stop_training_after_unit": "STEP"}
    report = mini_run.train(unet=unet, train_dtype="FLOAT_16")
    assert report["finished"] and report["steps"] == 5 and mini_run.output.is_file()
    assert any("stop_training_after" in line for line in mini_run.warnings())


def test_masked_and_weighted_training_differ_from_plain(make_run, mini_concept, draw_concept, tmp_path):
    folder = tmp_path / "masked"
    draw_concept(folder)
    for image in list(folder.glob("*.png")):
        with Image.open(image) as opened:
            mask = Image.new("L", opened.size)
            mask.paste(255, (0, 0, opened.width // 2, opened.height))
        mask.save(image.with_name(f"{image.stem}-masklabel.png"))
    plain, masked = make_run("plain"), make_run("masked run", own_cache=True)
    plain.train(epochs=1, concepts=[{"path": str(folder)}])
    masked.train(epochs=1, concepts=[{"path": str(folder)}], masked_training=True, unmasked_probability=0.0)
    assert plain.digest() != masked.digest()
    assert masked.of_kind("step")[0]["loss"] < plain.of_kind("step")[0]["loss"], "half of it is masked"


def test_what_the_optimizer_finds_out_in_its_first_step_is_told_once(mini_run, monkeypatch):
    from scaled_optim.batched_optimizer import BatchedOptimizer

    found = property(lambda self: ["the fused kernel is not used"] if self._closed else [])
    monkeypatch.setattr(BatchedOptimizer, "notes", found)
    mini_run.train(optimizer={"optimizer": "ADAMW_ADV"})
    assert mini_run.warnings().count("the fused kernel is not used") == 1
