"""One loss for each image, by the objective of its concept: prior predictions against what they promise."""

from modules.dataLoader.plan import PlannedBatch, PlannedSample
from modules.module.AdapterSet import AdapterSet
from modules.trainer.checks import run_problems
from modules.trainer.loss import image_losses
from modules.trainer.objective import OBJECTIVES, Objective, batch_losses
from modules.trainer.Trainer import Trainer
from modules.util.config.load import train_config_from_dict
from modules.util.enum.ConceptType import ConceptType
from modules.util.UserError import UserError

import torch

import pytest

OWN = {"placeholder": "shape", "token_count": 2, "initial_embedding_text": "circle"}
NO_DECAY = {"optimizer": {"optimizer": "ADAMW", "weight_decay": 0.0}}
TEXT = {"text_encoder": {"train": True, "gradient_checkpointing": False}}
KINDS = {
    "LoRA": {"peft_type": "LORA"},
    "DoRA": {"peft_type": "LORA", "lora_decompose": True},
    "LoHa": {"peft_type": "LOHA"},
    "LoKr": {"peft_type": "LOKR"},
    "OFT": {"peft_type": "OFT_2", "oft_block_size": 4},
    "DoRA-OFT": {"peft_type": "OFT_2", "oft_block_size": 4, "lora_decompose": True},
}


@pytest.fixture(params=KINDS)
def kind(request) -> dict:
    return KINDS[request.param]


def concepts(folder, *types: str) -> dict:
    return {"concepts": [{"path": str(folder), "type": kind} for kind in types]}


def prepared(run, **options) -> Trainer:
    """A run before its first step."""
    trainer = run.trainer(**options)
    trainer._prepare()
    return trainer


def state(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for own in trainer.trained.values() for name, value in own.state_dict().items()}


def disturb(trainer: Trainer) -> None:
    """As if it had been trained for long."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in trainer.parameters:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def losses(trainer: Trainer, batch, seed: int = 3) -> torch.Tensor:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(seed)
    return batch_losses(trainer.config, trainer.model, batch, generator, trainer.trained)


def mixed_batch(trainer: Trainer, *images: int):
    """A batch of chosen images, whatever the plan would put together."""
    size = trainer.data.source.size(images[0], 0)
    return trainer.data.load(PlannedBatch(tuple(PlannedSample(image, 0, 0) for image in images), size))


@pytest.mark.parametrize("text", [{}, TEXT], ids=["denoiser", "text encoder, too"])
def test_with_only_prior_concepts_nothing_is_learned(mini_run, mini_concept, kind, text):
    trainer = mini_run.trainer(**concepts(mini_concept, "PRIOR_PREDICTION"), **kind, **NO_DECAY, **text, epochs=1)
    before: dict[str, torch.Tensor] = {}
    make = trainer._make_optimizer
    trainer._make_optimizer = lambda: (make(), before.update(state(trainer)))
    trainer.run()
    steps = mini_run.of_kind("step")
    assert len(steps) == 4 and all(step["loss"] == 0 and step["gradient_norm"] == 0 for step in steps)
    after = state(trainer)
    assert before and all(torch.equal(before[name], after[name]) for name in before)
    assert any("nothing new is learned" in text for text in mini_run.warnings())


def test_in_half_precision_fresh_adapters_are_the_model_itself(mini_run, mini_concept, kind):
    """Also to the last bit: what is left would be rounding, of which Adam makes full steps."""
    listed = concepts(mini_concept, "PRIOR_PREDICTION")
    mini_run.train(**listed, **kind, **NO_DECAY, **TEXT, epochs=1, train_dtype="BFLOAT_16")
    assert [(step["loss"], step["gradient_norm"]) for step in mini_run.of_kind("step")] == [(0, 0)] * 4


@pytest.mark.parametrize("text", [{}, TEXT], ids=["denoiser", "text encoder, too"])
def test_the_target_is_what_the_model_predicts_without_adapters(mini_run, mini_concept, kind, text):
    trainer = prepared(mini_run, **concepts(mini_concept, "STANDARD", "PRIOR_PREDICTION"), **kind, **text)
    disturb(trainer)
    # images 0 and 1 are those of the first concept, 7 and 8 the same of the second
    batch = mixed_batch(trainer, 0, 7, 1, 8)
    assert [str(kind) for kind in batch.types] == ["STANDARD", "PRIOR_PREDICTION"] * 2
    found = losses(trainer, batch)
    model, draw = trainer.model, trainer.model.draw(batch.latents.shape, torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.manual_seed(0)
        adapted = model.predict_drawn(batch.latents, model.conditions_of(batch), draw)
        for own in trainer.trained.values():
            own.unhook()
        plain = model.predict_drawn(batch.latents, model.conditions_of(batch), draw)
    wanted = (adapted.predicted - adapted.target).square().mean(dim=(1, 2, 3))
    wanted[[1, 3]] = (adapted.predicted - plain.predicted).square().mean(dim=(1, 2, 3))[[1, 3]]
    assert wanted.min() > 1e-6
    # a part of a batch may be summed in another order than the whole
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)


def test_only_prior_images_are_asked_without_adapters(mini_run, mini_concept, monkeypatch):
    trainer = prepared(mini_run, **concepts(mini_concept, "STANDARD", "PRIOR_PREDICTION"))
    sizes, denoise = [], trainer.model.denoise

    def watch(noised, conditions, draw):
        assert len(noised) == len(conditions["hidden"]) == len(draw.noise)
        hooked = any(adapter._hooked for adapter in trainer.trained["unet"].adapters.values())
        sizes.append((len(noised), hooked, torch.is_grad_enabled()))
        return denoise(noised, conditions, draw)

    monkeypatch.setattr(trainer.model, "denoise", watch)
    losses(trainer, mixed_batch(trainer, 0, 7, 1))
    assert sizes == [(1, False, False), (3, True, True)]
    losses(trainer, mixed_batch(trainer, 0, 1))
    assert sizes[2:] == [(2, True, True)], "a step without prior images costs what it did"


def test_each_image_of_a_mixed_batch_has_the_loss_of_its_own(mini_run, mini_concept):
    """Weights, masks and objectives go with their images, in whatever order these stand."""
    listed = concepts(mini_concept, "STANDARD", "PRIOR_PREDICTION")
    listed["concepts"][1]["loss_weight"] = 0.25
    trainer = prepared(mini_run, **listed, masked_training=True, loss_weight_fn="MIN_SNR_GAMMA")
    disturb(trainer)
    batch = mixed_batch(trainer, 7, 0, 8, 1)
    batch.mask = torch.rand(batch.mask.shape, generator=torch.Generator().manual_seed(1))
    found = losses(trainer, batch)
    for kind, places in (("STANDARD", [1, 3]), ("PRIOR_PREDICTION", [0, 2])):
        batch.types = [ConceptType(kind)] * 4
        torch.testing.assert_close(found[places], losses(trainer, batch)[places], rtol=1e-4, atol=1e-7)
    assert (found > 0).all()


def test_gradients_with_and_without_checkpointing(make_run, mini_concept, kind):
    gradients = []
    for name, on in (("plain", False), ("checkpointing", True)):
        component = {"gradient_checkpointing": on}
        options = {"unet": component, "text_encoder": {"train": True, **component}}
        trainer = prepared(make_run(name), **concepts(mini_concept, "STANDARD", "PRIOR_PREDICTION"), **kind, **options)
        disturb(trainer)
        losses(trainer, mixed_batch(trainer, 0, 7, 1, 8)).mean().backward()
        gradients.append([parameter.grad.clone() for parameter in trainer.parameters])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again, rtol=1e-4, atol=1e-7)
    assert max(gradient.abs().max() for gradient in gradients[0]) > 1e-4


def test_accumulated_batches_give_the_gradient_of_one(mini_run, mini_concept):
    trainer = prepared(mini_run, **concepts(mini_concept, "STANDARD", "PRIOR_PREDICTION"))
    disturb(trainer)
    gradients = []
    for kinds in (["STANDARD", "PRIOR_PREDICTION"], ["PRIOR_PREDICTION", "STANDARD"]):
        batch = mixed_batch(trainer, 0, 7)
        batch.types = [ConceptType(kind) for kind in kinds]
        losses(trainer, batch).mean().backward()
        gradients.append([parameter.grad.clone() for parameter in trainer.parameters])
        trainer.optimizer.zero_grad()
    for kinds in (["STANDARD", "PRIOR_PREDICTION"], ["PRIOR_PREDICTION", "STANDARD"]):
        batch = mixed_batch(trainer, 0, 7)
        batch.types = [ConceptType(kind) for kind in kinds]
        (losses(trainer, batch).mean() / 2).backward()
    for parameter, *halves in zip(trainer.parameters, *gradients, strict=True):
        torch.testing.assert_close(parameter.grad, sum(halves) / 2, rtol=1e-4, atol=1e-7)


def test_words_are_the_untrained_ones_where_the_model_is_asked_without_them(mini_run, mini_concept):
    listed = concepts(mini_concept, "PRIOR_PREDICTION")
    trainer = prepared(mini_run, **listed, **NO_DECAY, additional_embeddings=[OWN])
    batch = mixed_batch(trainer, 0, 1)
    assert batch.text is None and all("shape" in caption for caption in batch.captions)
    assert losses(trainer, batch).tolist() == [0, 0]
    own = next(own for own in trainer.trained.values() if not isinstance(own, AdapterSet))
    with torch.no_grad():
        own.parameters()[0].add_(0.5)
    assert losses(trainer, batch).min() > 0
    before = own.vectors("text_encoder").clone()
    with own.left_out():
        assert not torch.equal(own.vectors("text_encoder"), before)
    assert torch.equal(own.vectors("text_encoder"), before)


def test_a_resumed_run_has_the_same_prior(make_run, mini_concept):
    """The words' and the adapters' start is the target, not what the backup holds."""
    options = {
        **concepts(mini_concept, "STANDARD", "PRIOR_PREDICTION"), **TEXT, "additional_embeddings": [OWN], "epochs": 2,
        "unet": {"gradient_checkpointing": True},
    }  # fmt: skip
    whole, broken = make_run("whole"), make_run("broken")
    whole.train(**options)
    broken.train(stop_after=5, **options)
    broken.train(**options, continue_last_backup=True)
    assert broken.digest() == whole.digest()


def test_the_prior_holds_what_the_concept_pulls(make_run, mini_concept, tmp_path):
    """With the other concept's captions and images, the adapter changes less of what it predicts for them."""
    changes = []
    for name, types in (("alone", ["STANDARD"]), ("beside", ["STANDARD", "PRIOR_PREDICTION"])):
        listed = concepts(mini_concept, *types)
        listed["concepts"][-1].update({"balancing": 4.0} if len(types) > 1 else {})
        run = make_run(name)
        trainer = run.trainer(**listed, epochs=4)
        trainer.run()
        batch = mixed_batch(trainer, 0, 1)
        batch.types = [ConceptType.PRIOR_PREDICTION] * 2
        with torch.no_grad():
            changes.append(losses(trainer, batch).mean().item())
    assert 0 < changes[1] < 0.5 * changes[0]


@pytest.mark.parametrize(
    "method",
    [
        {"training_method": "FINE_TUNE", "output_model_format": "SAFETENSORS"},
        {"training_method": "EMBEDDING", "output_model_format": "SAFETENSORS", "embedding": OWN},
    ],
    ids=["fine-tune", "embedding"],
)
def test_methods_that_keep_no_model_are_refused(mini_run, mini_concept, method):
    options = mini_run.options(**concepts(mini_concept, "STANDARD", "PRIOR_PREDICTION"), **method)
    problems = run_problems(train_config_from_dict(options))
    assert [problem.path for problem in problems] == ["concepts"]
    assert "PRIOR_PREDICTION needs the model as it was" in problems[0].text and "LORA keeps" in problems[0].text
    with pytest.raises(UserError, match="PRIOR_PREDICTION needs the model as it was"):
        mini_run.train(**concepts(mini_concept, "STANDARD", "PRIOR_PREDICTION"), **method)


def test_validation_measures_no_prior(mini_run, mini_concept):
    listed = concepts(mini_concept, "STANDARD", "PRIOR_PREDICTION", "VALIDATION")
    report = mini_run.train(**listed, validation=True, validate_after_unit="EPOCH", epochs=1)
    assert report["finished"] and len(report["validation"]) == 2
    assert all(measured["loss"] > 0 for measured in report["validation"])


def test_an_objective_is_one_class_and_one_line(mini_run, mini_concept, monkeypatch):
    """Toward the middle between the image's target and the prior, at twice the weight."""

    class Halfway(Objective):
        def target(self, batch, images):
            clean = batch.model.clean_latents(batch.batch.latents[images])
            return (batch.untrained(images) + batch.model.target(clean, batch.draw.of(images))) / 2

        def losses(self, config, prediction, weight, mask):
            return 2 * image_losses(config, prediction, weight, mask)

    monkeypatch.setitem(OBJECTIVES, ConceptType.PRIOR_PREDICTION, Halfway())
    trainer = prepared(mini_run, **concepts(mini_concept, "STANDARD", "PRIOR_PREDICTION"))
    plain, halfway = losses(trainer, mixed_batch(trainer, 0, 7)).tolist()
    batch = mixed_batch(trainer, 0, 7)
    batch.types = [ConceptType.STANDARD] * 2
    usual = losses(trainer, batch)
    # fresh adapters: the prediction is the prior, so half the error is left, squared a quarter, twice a half
    assert plain == pytest.approx(usual[0].item(), rel=1e-5)
    assert halfway == pytest.approx(usual[1].item() / 2, rel=1e-4)


def test_every_type_of_concept_has_an_objective():
    assert OBJECTIVES.keys() == set(ConceptType)
