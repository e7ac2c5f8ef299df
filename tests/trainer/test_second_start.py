"""What a start loads if the cache is complete: no text encoder, and no VAE before a sample is decoded."""

import os
import shutil
from collections import namedtuple
from pathlib import Path

from modules.dataLoader.plan_size import BatchCounter
from modules.dataLoader.TensorCache import KINDS, TensorCache
from modules.model.KnownWeights import FILE_NAME
from modules.model.ModelSource import FolderSource
from modules.util.config.errors import ConfigError
from modules.util.UserError import UserError

import torch

import pytest
from safetensors.torch import load_file, save_file

SAMPLE = {"prompt": "a red shape", "width": 32, "height": 32, "diffusion_steps": 2}
DRAWN = {"samples": [SAMPLE], "sample_after": 1, "sample_after_unit": "EPOCH", "sample_image_format": "PNG"}


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """The components whose weights are read, in their order."""
    names, read = [], FolderSource.module

    def count(source, component, dtype):
        names.append(component)
        return read(source, component, dtype)

    monkeypatch.setattr(FolderSource, "module", count)
    return names


@pytest.fixture
def own_base(make_run, tmp_path, mini_base):
    """own_base("name") -> a run on a copy of the miniature, with a cache that all runs of the test share."""
    base, cache = tmp_path / "base", tmp_path / "cache"
    shutil.copytree(mini_base, base)

    def make(name: str):
        run = make_run(name)
        run.base, run.cache = base, cache
        return run

    return make


def pictures(run) -> list[bytes]:
    return [path.read_bytes() for path in sorted((run.workspace / "samples").rglob("step-*.png"))]


def entries(cache: Path) -> set[str]:
    return {path.name for path in cache.rglob("*.safetensors")}


def test_a_second_start_opens_the_denoiser_alone_and_gives_the_same(own_base, opened, monkeypatch):
    first, second, third = (own_base(name) for name in ("first", "second", "third"))
    begun, begin = [], BatchCounter.__init__

    def noted(*args):
        begun.append("unet" in opened)
        begin(*args)

    monkeypatch.setattr(BatchCounter, "__init__", noted)
    first.train(epochs=1, **DRAWN)
    assert opened == ["vae", "text_encoder", "unet"]
    before, _ = entries(first.cache), opened.clear()
    second.train(epochs=1, samples=[SAMPLE])
    assert opened == ["unet"]
    opened.clear()
    third.train(epochs=1, **DRAWN)
    assert opened == ["unet", "vae"], "for the first sample, whose prompt is known"
    assert first.digest() == second.digest() == third.digest() and entries(first.cache) == before
    assert pictures(first) == pictures(third) and len(pictures(first)) == 4
    assert begun == [False] * 3, "batches are counted while the denoiser is loaded, once"


def test_a_cache_that_was_only_built_is_complete(own_base, opened):
    own_base("cache").train(only_cache=True, epochs=1, samples=[SAMPLE])
    assert opened == ["vae", "text_encoder"]
    opened.clear()
    own_base("run").train(stop_after=1, epochs=1, samples=[SAMPLE])
    assert opened == ["unet"]


def test_masks_and_validation_open_nothing_either(own_base, opened, mini_concept):
    paths = [{"path": str(mini_concept)}, {"path": str(mini_concept), "type": "VALIDATION"}]
    paths[0]["image"] = {"enable_random_circular_mask_shrink": True}
    options = {"concepts": paths, "validation": True, "masked_training": True, "epochs": 1}
    own_base("first").train(stop_after=1, **options)
    opened.clear()
    own_base("second").train(stop_after=1, **options)
    assert opened == ["unet"]


def changed_weights(run) -> None:
    path = run.base / "text_encoder" / "model.safetensors"
    facts, tensors = path.stat(), load_file(path)
    name = next(name for name in tensors if "layers.0" in name)
    tensors[name] = tensors[name] + 1
    save_file(tensors, path, {"format": "pt"})
    # an older version of the same size, as an unpacked archive may leave it
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns - 10**12))
    assert path.stat().st_size == facts.st_size


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (changed_weights, {}),
        (None, {"text_encoder": {"train": False, "gradient_checkpointing": False, "weight_dtype": "BFLOAT_16"}}),
        (None, {"text_encoder_layer_skip": 1}),
        (None, {"prompt_chunks": 2}),
    ],
    ids=["weights", "format", "layer skip", "chunks"],
)
def test_what_changes_encoded_captions_encodes_them_anew(own_base, opened, change, options):
    first, second = own_base("first"), own_base("second")
    first.train(only_cache=True, samples=[SAMPLE])
    before = {kind: entries(first.cache / kind) for kind in KINDS}
    opened.clear()
    if change is not None:
        change(second)
    second.train(only_cache=True, samples=[SAMPLE], **options)
    assert opened == ["text_encoder"], "and no VAE: latents are as they were"
    for kind, known in before.items():
        now = entries(first.cache / kind)
        assert len(now) == len(known) * (2 if kind in ("captions", "prompts") else 1) and known <= now


@pytest.mark.parametrize("content", ["[1", '{"x": 1}', None], ids=str)
def test_a_memory_that_is_lost_or_damaged_costs_a_hash(own_base, opened, content):
    first, second = own_base("first"), own_base("second")
    first.train(only_cache=True)
    path, before = first.cache / FILE_NAME, entries(first.cache)
    path.unlink()
    if content is not None:
        path.write_text(content, encoding="utf-8")
    opened.clear()
    second.train(only_cache=True)
    assert opened == ["vae", "text_encoder"] and entries(first.cache) == before


def test_prompts_that_are_new_damaged_or_no_more_wanted(own_base, opened):
    run, other = own_base("run"), {**SAMPLE, "prompt": "a blue shape"}
    run.train(only_cache=True, samples=[SAMPLE])
    (path,) = (run.cache / "prompts").rglob("*.safetensors")
    opened.clear()
    run.train(only_cache=True, samples=[SAMPLE, {**SAMPLE, "seed": 7, "diffusion_steps": 3}, other])
    assert opened == ["text_encoder"] and len(entries(run.cache / "prompts")) == 2
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    opened.clear()
    run.train(only_cache=True, samples=[SAMPLE, other])
    assert opened == ["text_encoder"] and TensorCache(run.cache, lambda text: None).read("prompts", path.stem)
    run.train(only_cache=True, samples=[other], clear_cache_before_training=True)
    assert len(entries(run.cache / "prompts")) == 1 and not path.exists()
    assert any("removed 1 encoded prompts" in text for text in run.warnings())


def test_prompts_come_back_to_the_bit(own_base):
    encoded = []
    for name in ("first", "second"):
        trainer = own_base(name).trainer(only_cache=True, samples=[SAMPLE])
        trainer.run()
        encoded.append(next(iter(trainer.model._prompts.values())))
    first, second = encoded
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    assert {key: value.dtype for key, value in first.items()} == {key: value.dtype for key, value in second.items()}


def test_an_entry_whose_values_are_damaged_is_built_when_it_is_needed(own_base, opened):
    first, second = own_base("first"), own_base("second")
    first.train(epochs=1)
    for kind in ("latents", "captions"):
        for path in (first.cache / kind).rglob("*.safetensors"):
            whole = path.read_bytes()
            path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    opened.clear()
    trainer, loaded = second.trainer(epochs=1), []
    trainer.events.listeners.append(
        lambda kind, values: kind == "step" and loaded.append(set(trainer.model.components.loaded))
    )
    trainer.run()
    assert set(opened) == {"unet", "vae", "text_encoder"} and opened.count("vae") == opened.count("unet") == 1
    assert loaded and not any("text_encoder" in names for names in loaded), "it is put away before the step"
    assert first.digest() == second.digest()
    assert any("damaged" in text for text in second.warnings())
    cache = TensorCache(first.cache, lambda text: None)
    for kind in ("latents", "captions"):
        assert any(cache.read(kind, path.stem) for path in (first.cache / kind).rglob("*.safetensors"))


def test_captions_in_16_bits_change_nothing_where_the_denoiser_computes_in_them(make_run):
    trained, sizes = {}, {}
    for arithmetic in ("BFLOAT_16", "FLOAT_32"):
        for stored in ("NONE", "BFLOAT_16"):
            run = make_run(f"{arithmetic} {stored}", own_cache=True)
            run.train(stop_after=2, epochs=1, train_dtype=arithmetic, text_cache_dtype=stored)
            # the file's metadata have a hash of the config
            trained[arithmetic, stored] = torch.cat([value.flatten() for value in load_file(run.output).values()])
            sizes[stored] = sum(path.stat().st_size for path in (run.cache / "captions").rglob("*.safetensors"))
    assert torch.equal(trained["BFLOAT_16", "NONE"], trained["BFLOAT_16", "BFLOAT_16"])
    assert not torch.equal(trained["FLOAT_32", "NONE"], trained["FLOAT_32", "BFLOAT_16"])
    assert sizes["BFLOAT_16"] < 0.8 * sizes["NONE"]


def test_a_cache_that_would_not_fit_is_refused_before_anything_is_loaded(own_base, opened, monkeypatch):
    run, usage = own_base("run"), namedtuple("usage", "total used free")(1000, 0, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    with pytest.raises(UserError, match="no space left"):
        run.train()
    assert not opened and not entries(run.cache)


def test_other_formats_of_stored_captions_are_refused(make_run):
    with pytest.raises(ConfigError, match="text_cache_dtype: found INT_8, expected one of NONE, BFLOAT_16, FLOAT_16"):
        make_run().train(text_cache_dtype="INT_8")
