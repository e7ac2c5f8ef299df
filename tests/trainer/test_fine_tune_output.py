"""Saved models: our loader and diffusers read the very weights that were trained, and they can be trained on."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

from modules.model.BaseModel import BaseModel, family_of
from modules.model.ldm_checkpoint import ldm_checkpoint
from modules.model.ModelSource import empty_module
from modules.model.single_file import SD1, SD2, SDXL, checked_layout, config_file, config_folder
from modules.modelSaver.weight_output import ModelWriter
from modules.util.CheckpointTensor import THIRDS, CheckpointTensor, checkpoint_tensors
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError

import torch

import pytest
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
TEXT_ENCODER = {"train": True, "learning_rate": 0.001, "gradient_checkpointing": False}
FINE_TUNE = {
    "training_method": "FINE_TUNE", "learning_rate": 0.01, "epochs": 1,
    "optimizer": {"optimizer": "ADAMW_ADV", "scaled_optm": True}, "text_encoder": TEXT_ENCODER,
}  # fmt: skip
FORMATS = {"folder": ("DIFFUSERS", "model"), "file": ("SAFETENSORS", "model.safetensors")}


def fine_tune(run, layout: str = "file", **changes) -> tuple[Path, BaseModel]:
    """The path that was written, and the model in memory at the end of the run."""
    model_format, name = FORMATS[layout]
    path = run.output.parent / name
    trainer = run.trainer(
        **{**FINE_TUNE, "output_model_format": model_format, "output_model_destination": str(path), **changes}
    )
    trainer.run()
    return path, trainer.model


def load(path: Path, model_type: str = "STABLE_DIFFUSION_15") -> BaseModel:
    config = TrainConfig.from_dict({"base_model_name": str(path), "model_type": model_type, "train_device": "cpu"})
    return family_of(config).load(config, CPU)


def outputs(unet, text_encoder, vae) -> list[torch.Tensor]:
    """What each component makes of fixed inputs."""
    generator = torch.Generator().manual_seed(1)
    latents, pixels = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(1, 3, 16, 16, generator=generator)
    tokens = torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1]])
    with torch.no_grad():
        hidden = text_encoder.eval()(tokens).last_hidden_state
        noise = unet.eval()(latents, torch.tensor([1, 900]), hidden).sample
        return [hidden, noise, vae.eval().encode(pixels).latent_dist.mean]


def of_model(model: BaseModel) -> list[torch.Tensor]:
    return outputs(*(model.components[name] for name in ("unet", "text_encoder", "vae")))


def of_diffusers(path: Path, folder: Path | None = None) -> list[torch.Tensor]:
    """By diffusers' own loaders. A file of a small model needs the `folder` of configs, as for our loader."""
    if path.is_dir():
        pipeline = StableDiffusionPipeline.from_pretrained(path, torch_dtype=torch.float32)
    else:
        pipeline = StableDiffusionPipeline.from_single_file(
            path, config=str(folder), torch_dtype=torch.float32, local_files_only=True
        )
    return outputs(pipeline.unet, pipeline.text_encoder, pipeline.vae)


def assert_equal(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    # the same weights through the same arithmetic
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def as_file(run, base: Path) -> Path:
    """The base as a single file, written by a run that changes nothing."""
    run.base = base
    path, _ = fine_tune(run, "file", learning_rate=0.0, text_encoder={**TEXT_ENCODER, "learning_rate": 0.0})
    return path


@pytest.mark.parametrize("source", FORMATS)
@pytest.mark.parametrize("layout", FORMATS)
def test_what_is_saved_is_what_was_trained(make_run, mini_base, source, layout):
    run, again = make_run(), make_run("again")
    if source == "file":
        run.base = as_file(make_run("base"), mini_base)
    start = of_model(load(run.base))
    path, model = fine_tune(run, layout)
    expected = of_model(model)
    assert not torch.equal(start[0], expected[0]) and not torch.equal(start[1], expected[1])
    assert torch.equal(start[2], expected[2]), "the VAE is not trained"
    assert_equal(of_model(load(path)), expected)
    assert_equal(of_diffusers(path, mini_base), expected)
    # and it is a base like any other
    again.base = path
    _, further = fine_tune(again, layout, learning_rate=0.0, text_encoder={**TEXT_ENCODER, "learning_rate": 0.0})
    assert_equal(of_model(further), expected)


def test_what_is_not_trained_stays_as_it_was_in_the_base(mini_run):
    path, _ = fine_tune(mini_run, "folder", text_encoder={"train": False}, vae={"weight_dtype": "BFLOAT_16"})
    trained = "unet/diffusion_pytorch_model.safetensors"
    files = {file.relative_to(mini_run.base) for file in mini_run.base.rglob("*") if file.is_file()}
    assert files == {file.relative_to(path) for file in path.rglob("*") if file.is_file()}
    for file in files:
        same = (mini_run.base / file).read_bytes() == (path / file).read_bytes()
        assert same == (str(file) != trained), file
    assert load_file(path / trained).keys() == load_file(mini_run.base / trained).keys()


def test_frozen_components_of_low_precision_are_written_from_the_base(mini_run):
    component = {"train": False, "weight_dtype": "BFLOAT_16"}
    path, _ = fine_tune(mini_run, "file", text_encoder=component, vae={"weight_dtype": "BFLOAT_16"})
    loaded, base = load(path), load(mini_run.base)
    for name in ("text_encoder", "vae"):
        pairs = zip(loaded.components[name].parameters(), base.components[name].parameters(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize(("dtype", "expected"), [("FLOAT_16", torch.float16), ("BFLOAT_16", torch.bfloat16)])
@pytest.mark.parametrize("layout", FORMATS)
def test_output_dtype(mini_run, layout, dtype, expected):
    path, model = fine_tune(mini_run, layout, output_dtype=dtype)
    files = [path] if path.is_file() else [path / "unet/diffusion_pytorch_model.safetensors",
                                           path / "text_encoder/model.safetensors"]  # fmt: skip
    for file in files:
        assert {tensor.dtype for tensor in load_file(file).values()} == {expected}
    if path.is_dir():
        assert json.loads((path / "text_encoder/config.json").read_text(encoding="utf-8"))["dtype"] == str(
            expected
        ).removeprefix("torch.")
    rounded = model.components["unet"].conv_in.weight.to(expected).float()
    assert torch.equal(load(path).components["unet"].conv_in.weight, rounded)


def test_a_value_too_large_for_the_file_is_named(mini_run):
    trainer = mini_run.trainer(**FINE_TUNE, output_model_format="SAFETENSORS", output_dtype="FLOAT_16")
    trainer.run()
    with torch.no_grad():
        trainer.model.components["unet"].conv_in.bias[0] = 1e5
    with pytest.raises(UserError, match="output_dtype: unet.conv_in.bias is too large for torch.float16.*FLOAT_32"):
        ModelWriter(trainer.model, trainer.config, ["unet"]).write_file(mini_run.root / "large.safetensors")
    assert not (mini_run.root / "large.safetensors").exists()


@pytest.mark.parametrize("layout", FORMATS)
def test_an_older_model_is_kept_aside_with_what_belongs_to_it(make_run, layout):
    run = make_run()
    path, _ = fine_tune(run, layout)
    first = of_model(load(path))
    names = sorted(file.name for file in path.parent.iterdir())
    fine_tune(run, layout)
    assert sorted(file.name for file in path.parent.iterdir()) == names, "the same bytes again are nothing new"
    _, model = fine_tune(run, layout, seed=7)
    kept = path.with_name(path.name.replace("model", "model-1"))
    assert len(list(path.parent.iterdir())) == 2 * len(names)
    assert any(str(kept) in line for line in run.warnings())
    assert_equal(of_model(load(kept)), first)
    assert_equal(of_model(load(path)), of_model(model))
    # two numbers of one pair never part
    if layout == "file":
        assert config_folder(kept) == kept.with_suffix(".config")


def test_a_failed_write_leaves_the_older_model(make_run, monkeypatch):
    run = make_run()
    path, _ = fine_tune(run, "folder")
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("modules.modelSaver.save_model.shutil.copytree", full)
    with pytest.raises(UserError, match="Cannot write .*model: the disk is full"):
        fine_tune(run, "folder", seed=7)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    assert [file.name for file in path.parent.iterdir()] == ["model"] and run.backups()


def test_intermediate_models_are_saved(mini_run):
    fine_tune(mini_run, "folder", epochs=2, save_every=3, save_every_unit="STEP")
    saved = sorted((mini_run.workspace / "save").iterdir())
    assert len(saved) == 2 and all((path / "model_index.json").is_file() for path in saved)
    early, late = (of_model(load(path))[1] for path in saved)
    assert not torch.equal(early, late)


def test_the_averaged_weights_are_saved(make_run):
    run = make_run()
    path, model = fine_tune(run, "file", ema="CPU", ema_decay=0.5, ema_update_step_interval=1)
    assert not torch.equal(load(path).components["unet"].conv_in.weight, model.components["unet"].conv_in.weight)


def test_a_component_from_elsewhere_is_saved_with_the_model(make_run, mini_base, tmp_path):
    run = make_run()
    other = tmp_path / "other vae"
    vae = AutoencoderKL.from_pretrained(mini_base / "vae")
    with torch.no_grad():
        vae.encoder.conv_in.weight.mul_(2)
    vae.save_pretrained(other)
    path, model = fine_tune(run, "folder", vae={"model_name": str(other)})
    assert_equal(of_diffusers(path), of_model(model))
    assert not torch.equal(of_model(model)[2], of_model(load(mini_base))[2])


def test_a_model_from_a_hub_is_saved_with_the_components_that_were_loaded(mini_run, mini_base, tmp_path):
    """There is no folder to copy; what a hub's index lists beside them is marked as absent."""
    hub = tmp_path / "hub"
    shutil.copytree(mini_base, hub)
    index = json.loads((hub / "model_index.json").read_text(encoding="utf-8"))
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (hub / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    model = load(hub)
    config = model.config.model_copy(update={"base_model_name": "someone/model"})
    ModelWriter(model, config, ["unet"]).write_folder(tmp_path / "saved")
    assert_equal(of_diffusers(tmp_path / "saved"), of_model(load(mini_base)))


def test_other_weights_in_the_base_s_folder_are_not_copied(mini_run, mini_base, tmp_path):
    base = tmp_path / "repository"
    shutil.copytree(mini_base, base)
    for name in ("v1-5-pruned.ckpt", "unet/diffusion_pytorch_model.fp16.safetensors", ".git/config", "README.md"):
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text("the base's", encoding="utf-8")
    mini_run.base = base
    path, _ = fine_tune(mini_run, "folder", text_encoder={"train": False})
    wanted = {file.relative_to(mini_base) for file in mini_base.rglob("*") if file.is_file()} | {Path("README.md")}
    assert {file.relative_to(path) for file in path.rglob("*") if file.is_file()} == wanted


def test_velocity_training_is_told_to_readers(make_run):
    for layout in FORMATS:
        path, _ = fine_tune(make_run(layout), layout, rescale_noise_scheduler_to_zero_terminal_snr=True)
        scheduler = load(path).scheduler_config
        assert scheduler["prediction_type"] == "v_prediction" and scheduler["rescale_betas_zero_snr"]
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.prediction_type"] == "v" and metadata["modelspec.title"] == "model"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1" and len(metadata["config_hash"]) == 64


def test_the_config_is_written_where_it_is_wanted(make_run):
    told = {}
    for layout in FORMATS:
        path, _ = fine_tune(make_run(layout), layout, include_train_config="SETTINGS")
        if path.is_dir():
            told[layout] = json.loads((path / "train_config.json").read_text(encoding="utf-8"))
        else:
            with safe_open(path, "pt") as file:
                told[layout] = json.loads(file.metadata()["modelspec.description"])
    assert all(config["learning_rate"] == 0.01 and "continue_last_backup" not in config for config in told.values())


@pytest.mark.parametrize("layout", FORMATS)
def test_sd2_has_its_text_encoder_in_open_clip_s_layout(make_run, mini_base, layout):
    run = make_run()
    if layout == "file":
        run.base = as_file(make_run("base"), mini_base)
    path, model = fine_tune(run, "file", model_type="STABLE_DIFFUSION_21_BASE")
    with safe_open(path, "pt") as file:
        names = set(file.keys())
    assert "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight" in names
    assert not any(name.startswith("cond_stage_model.transformer.") for name in names)
    assert_equal(of_model(load(path, "STABLE_DIFFUSION_21_BASE")), of_model(model))


def test_a_file_of_a_standard_model_needs_no_folder_beside_it(make_run, mini_base, tmp_path):
    """A standard model is too large for this test: the miniature's configs take the standard ones' place."""
    run = make_run()
    path, model = fine_tune(run, "file")
    folder = config_folder(path)
    assert folder == path.with_suffix(".config")
    writer = ModelWriter(model, model.config, ["unet"])
    assert writer._is_read_alike(path), "with its folder it is read as what it is"
    shutil.move(folder, tmp_path / "elsewhere")
    assert not writer._is_read_alike(path)


CLASSES = {
    "unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
}  # fmt: skip
STANDARDS = {SD1: (0, ()), SD2: (0, ("text_encoder",)), SDXL: (1, ("text_encoder_2",))}


@pytest.mark.parametrize("standard", STANDARDS)
def test_full_size_checkpoints_are_read_from_where_they_are_written(standard):
    """Every tensor of the real models, without their numbers: our reader finds each, in its shape, and no others."""
    modules = {}
    for component, kind in CLASSES.items():
        file = ROOT / "resources" / standard / config_file(component)
        if file.is_file():
            config = json.loads(file.read_text(encoding="utf-8"))
            modules[component] = empty_module(
                kind, CLIPTextConfig.from_dict(config) if "CLIP" in kind.__name__ else config
            )
    generation, open_clip = STANDARDS[standard]
    states = {component: module.state_dict() for component, module in modules.items()}
    tensors = ldm_checkpoint(modules, generation, open_clip)
    shapes = {}
    for tensor in tensors:
        assert tensor.name not in shapes
        shapes[tensor.name] = tuple(tensor.join([states[component][name] for component, name in tensor.sources]).shape)
    used = {source for tensor in tensors for source in tensor.sources}
    assert used == {(component, name) for component, state in states.items() for name in state}
    file = SimpleNamespace(path=Path("checkpoint"), shapes=shapes)
    for component, module in modules.items():
        layout = checked_layout(file, component, module)
        written = {(tensor.name, name) for tensor in tensors for own, name in tensor.sources if own == component}
        assert {(place.name, name) for name, place in layout.items()} == written
    # as the original code's convolutions are
    assert shapes["first_stage_model.decoder.mid.attn_1.q.weight"] == (512, 512, 1, 1)


def test_joined_tensors_come_apart_again():
    q, k, v = (torch.arange(6.0).reshape(2, 3) + 10 * n for n in range(3))
    joint = CheckpointTensor("joint", (("a", "q"), ("a", "k"), ("a", "v")))
    assert all(torch.equal(one, other) for one, other in zip(joint.join([q, k, v]).chunk(3), (q, k, v), strict=True))
    assert torch.equal(CheckpointTensor("t", (("a", "q"),), transposed=True).join([q]), q.T)
    assert torch.equal(CheckpointTensor("s", (("a", "q"),), swapped=True).join([q]), q.flip(0))
    assert CheckpointTensor("o", (("a", "q"),), ones=2).join([q]).shape == (2, 3, 1, 1)
    assert CheckpointTensor("mark", ()).join([]).numel() == 0
    places = {"q": SimpleNamespace(name="joint", share=THIRDS[0]), "k": SimpleNamespace(name="joint", share=THIRDS[1])}
    with pytest.raises(ValueError, match="joint would lack some of its rows: found q, k"):
        checkpoint_tensors("a", places, places.__getitem__)
    with pytest.raises(ValueError, match="a.b and a have one place, x"):
        checkpoint_tensors("a", "ab", lambda name: SimpleNamespace(name="x", share=None))
