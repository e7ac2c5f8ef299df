"""Runs that train embeddings, alone and beside a LoRA: what changes, what does not, resuming, files."""

from modules.model.StableDiffusionModel import StableDiffusionModel
from modules.modelSaver.AdapterFile import read_adapter
from modules.modelSaver.embedding_file import read_embedding
from modules.trainer.EmbeddingSet import EmbeddingSet
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ParameterRole import ParameterRole
from modules.util.ParameterInfo import get_parameter_info
from modules.util.UserError import UserError

import torch

import pytest
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

# "shape" stands in every caption of the miniature's concept
OWN = {"placeholder": "shape", "token_count": 2, "initial_embedding_text": "circle"}
EMBEDDING = {
    "training_method": "EMBEDDING", "output_model_format": "SAFETENSORS", "embedding": OWN,
    "optimizer": {"optimizer": "ADAMW", "weight_decay": 0.1}, "epochs": 2,
}  # fmt: skip
BESIDE = {"additional_embeddings": [OWN], "epochs": 2}


def loaded(base) -> StableDiffusionModel:
    return StableDiffusionModel.load(TrainConfig(base_model_name=str(base)), torch.device("cpu"))


def start(base) -> torch.Tensor:
    """The vectors from which `OWN` starts."""
    model = loaded(base)
    words = model.added_words["text_encoder"]
    return words.vectors_of(model.components["text_encoder"], "circle circle")


def test_only_the_vectors_change(mini_run):
    trainer = mini_run.trainer(**EMBEDDING)
    trainer.run()
    base = loaded(mini_run.base)
    for component in ("text_encoder", "unet", "vae"):
        before, after = base.components[component].state_dict(), trainer.model.components[component].state_dict()
        assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    vectors = read_embedding(mini_run.output)
    assert vectors.keys() == {"emb_params"}
    change = vectors["emb_params"] - start(mini_run.base)
    assert change.shape == (2, 16) and change.abs().min() > 1e-3, "every number is trained"
    (parameter,) = trainer.parameters
    assert get_parameter_info(parameter).role == ParameterRole.INPUT
    with safe_open(mini_run.output, "pt") as file:
        assert file.metadata()["modelspec.trigger_phrase"] == "shape"


def test_the_word_is_trained_for_what_captions_show(mini_run):
    """Overfits one vector to the concept: the loss on the same noise must fall."""
    concepts = [{"path": str(mini_run.concept), "type": kind} for kind in ("STANDARD", "VALIDATION")]
    options = {**EMBEDDING, "epochs": 10, "learning_rate": 0.1, "concepts": concepts}
    trainer = mini_run.trainer(**options, validation=True, validate_after=99)
    trainer.run()
    losses = [loss for _, loss in trainer.progress.validation]
    assert losses[-1] < losses[0] - 1e-4, losses


def test_the_file_means_in_diffusers_what_it_meant_in_training(mini_run):
    trainer = mini_run.trainer(**EMBEDDING)
    trainer.run()
    with torch.no_grad():
        ours = trainer.model.encode_prompts(SampleConfig(prompt="a red shape of it"))["hidden"]
    pipeline = StableDiffusionPipeline.from_pretrained(str(mini_run.base))
    pipeline.load_textual_inversion(str(mini_run.output), token="<it>")
    theirs, _ = pipeline.encode_prompt("a red <it> of it", "cpu", 1, False)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    # and a run that starts from the file begins where this one ended
    model = loaded(mini_run.base)
    own = model.config.embedding
    own.placeholder, own.model_name = "<it>", str(mini_run.output)
    again = EmbeddingSet("embedding", model, model.config, own)
    assert len(again.notes) == 1 and "2 tokens" in again.notes[0]
    assert torch.equal(again.vectors("text_encoder"), trainer.parameters[0])


@pytest.mark.parametrize(
    "options",
    [
        EMBEDDING,
        {**EMBEDDING, "preserve_embedding_norm": True, "ema": "CPU", "ema_decay": 0.9},
        {**EMBEDDING, "optimizer": {"optimizer": "ADAMW_ADV", "scaled_optm": True}},
        {**EMBEDDING, "train_dtype": "BFLOAT_16", "embedding_weight_dtype": "BFLOAT_16"},
        BESIDE,
    ],
    ids=["adamw", "norm and average", "engine", "bfloat16", "beside a lora"],
)
def test_resume_is_exact(make_run, options):
    straight, resumed = make_run("straight"), make_run("resumed")
    straight.train(**options)
    for step in (3, 5):
        resumed.train(stop_after=step, **options, continue_last_backup=step > 3)
    resumed.train(**options, continue_last_backup=True)
    files = sorted(path.name for path in straight.output.parent.iterdir())
    assert files == (["lora.safetensors", "shape.safetensors"] if options is BESIDE else ["lora.safetensors"])
    for name in files:
        written = (run.output.with_name(name).read_bytes() for run in (straight, resumed))
        assert next(written) == next(written), name


def test_beside_a_lora(make_run):
    run, alone = make_run(), make_run("alone")
    run.train(**BESIDE, embedding_learning_rate=0.5, save_every=1, save_every_unit="EPOCH")
    alone.train(epochs=2)
    assert any("bundle_additional_embeddings" in text for text in run.warnings())
    rates = run.of_kind("step")[-1]["learning_rates"]
    assert rates["embedding shape"] == 0.5 and rates["unet"] == 0.01
    vectors = read_embedding(run.output.with_name("shape.safetensors"))["emb_params"]
    assert (vectors - start(run.base)).abs().max() > 0.1
    adapter, usual = read_adapter(run.output), read_adapter(alone.output)
    assert adapter.layers.keys() == usual.layers.keys() and run.digest() != alone.digest()
    saves = sorted(path.name.split("-save-")[1] for path in (run.workspace / "save").iterdir())
    assert saves == ["4-1-shape.safetensors", "4-1.safetensors", "8-2-shape.safetensors", "8-2.safetensors"]


def test_an_embedding_that_is_only_used(make_run, tmp_path):
    path = tmp_path / "own.safetensors"
    save_file({"emb_params": torch.full((3, 16), 0.5)}, path)
    used = {**OWN, "train": False, "model_name": str(path), "token_count": None}
    run, plain = make_run(), make_run("plain")
    sample = {"prompt": "a shape", "width": 16, "height": 16, "diffusion_steps": 2}
    trainer = run.trainer(additional_embeddings=[used], epochs=1, samples=[sample], sample_after=1,
                          sample_after_unit="EPOCH")  # fmt: skip
    trainer.run()
    plain.train(epochs=1, samples=[sample], sample_after=1, sample_after_unit="EPOCH")
    assert trainer.trained.keys() == {"unet"} and not trainer.text_trained
    assert "text_encoder" not in trainer.model.components.loaded, "captions are cached, the encoder is freed"
    assert [path.name for path in run.output.parent.iterdir()] == ["lora.safetensors"], "it is not written again"
    first, usual = (Image.open(one.of_kind("sample")[0]["path"]).tobytes() for one in (run, plain))
    assert first != usual, "before the first step the embedding alone makes the difference"
    assert run.digest() != plain.digest()


def test_samples_show_the_embedding(mini_run):
    sample = {"prompt": "a shape", "width": 16, "height": 16, "diffusion_steps": 2, "cfg_scale": 5}
    options = {**EMBEDDING, "samples": [sample, {**sample, "prompt": "a circle"}], "sample_image_format": "PNG"}
    mini_run.train(**options, sample_after=2, sample_after_unit="EPOCH")
    pictures = [Image.open(values["path"]).tobytes() for values in mini_run.of_kind("sample")]
    before, other_before, after, other_after = pictures[:4]
    assert before != after and other_before == other_after


def test_the_norm_can_be_kept(mini_run):
    mini_run.train(**EMBEDDING, preserve_embedding_norm=True)
    table = loaded(mini_run.base).components["text_encoder"].get_input_embeddings().weight
    lengths = read_embedding(mini_run.output)["emb_params"].norm(dim=1)
    torch.testing.assert_close(lengths, table.detach().norm(dim=1).mean().expand(2), rtol=1e-5, atol=0)


def test_training_stops_when_told(mini_run):
    own = {**OWN, "stop_training_after": 1, "stop_training_after_unit": "EPOCH"}
    mini_run.train(**{**EMBEDDING, "embedding": own, "epochs": 3})
    assert any("ends after step 4" in text for text in mini_run.warnings())


def test_start_values(mini_base):
    model = loaded(mini_base)
    own = TrainConfig.from_dict({"embedding": {**OWN, "token_count": None, "initial_embedding_text": "red circle"}})
    made = EmbeddingSet("embedding", model, own, own.embedding)
    words = model.added_words["text_encoder"]
    wanted = words.vectors_of(model.components["text_encoder"], "red circle")
    assert torch.equal(made.vectors("text_encoder"), wanted) and not made.notes
    short = TrainConfig.from_dict({"embedding": {**OWN, "placeholder": "<2>", "token_count": 1,
                                                 "initial_embedding_text": "red circle"}})  # fmt: skip
    cut = EmbeddingSet("embedding", model, short, short.embedding)
    assert torch.equal(cut.vectors("text_encoder"), wanted[:1]) and "only the first 1" in cut.notes[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"embedding": {**OWN, "placeholder": "hape"}}, "embedding hape: no caption has this word"),
        ({"embedding": {**OWN, "train": False}}, "embedding.train"),
        ({"embedding": {**OWN, "placeholder": " "}}, "expected a word"),
        ({"embedding": {**OWN, "is_output_embedding": True}}, "is_output_embedding"),
        ({"embedding": {**OWN, "initial_embedding_text": ""}}, "initial_embedding_text is empty"),
        ({"embedding": {**OWN, "model_name": "none.pt"}}, "none.pt: there is no such file"),
        ({"output_model_format": "KOHYA_LORA"}, "expected SAFETENSORS"),
        ({"embedding_weight_dtype": "NFLOAT_4"}, "embedding_weight_dtype: found NFLOAT_4"),
        ({"additional_embeddings": [{**OWN, "placeholder": "SHAPE"}]}, "all different"),
    ],
)
def test_what_can_not_be_is_told(mini_run, options, words):
    with pytest.raises(UserError, match=words):
        mini_run.train(**{**EMBEDDING, **options})
    assert not mini_run.output.exists()
