"""The benchmark of feeding in a small slice: what is read ahead costs steps little, and changes no byte."""

import json
import time

from benchmarks.feeding.feeding import CAPTIONS, Data, QuickModel, Setting, train
from modules.dataLoader.TensorStore import TensorStore
from scripts.benchmark_feeding import CAPTIONS as NAMES
from scripts.benchmark_feeding import main

import torch

import pytest


def test_steps_hardly_wait_for_what_is_read_ahead(tmp_path, monkeypatch):
    setting = Setting(pictures=40, batch=4, step_seconds=0.05, threads=2, memory_share=0.1, passes=1)
    data, find = Data(tmp_path, setting), TensorStore.find

    def slow(self, *entry):
        # a disk that gives a picture and its caption in 10 ms, so a batch in 40
        time.sleep(0.005)
        return find(self, *entry)

    monkeypatch.setattr(TensorStore, "find", slow)
    by_the_step, ahead = (train(data.fresh(), Setting(**{**vars(setting), "threads": threads})) for threads in (0, 2))
    assert ahead["adapter"] == by_the_step["adapter"]
    waits = [found["passes"][0]["waiting_seconds"] for found in (by_the_step, ahead)]
    # the first batch is waited for in any case; both sleep, so that other programs hardly matter
    assert waits[0] > 0.4 and waits[1] < waits[0] / 2


def test_data_is_larger_than_the_memory_and_of_the_real_size(tmp_path):
    assert set(NAMES) == set(CAPTIONS)
    setting = Setting(pictures=6, memory_share=0.5)
    data = Data(tmp_path, setting).fresh()
    batch = max((data.load(planned) for planned in data.plan(0)), key=lambda batch: len(batch.names))
    assert batch.latents.shape == (4, 4, 128, 128) and batch.text["hidden"].shape == (4, 77, 2048)
    own = batch.nbytes - batch.loss_weight.nbytes - batch.placement.nbytes
    assert own == 4 * setting.entry_bytes
    assert 0 < data._store.memory_bytes < 0.5 * 6 * setting.entry_bytes + 1


@pytest.mark.parametrize("name", CAPTIONS)
def test_captions_differ(name):
    one, other = (QuickModel(name).encode_captions([text])["hidden"] for text in ("a", "b"))
    assert one.shape == other.shape and not torch.equal(one, other)


def test_the_script_writes_what_it_measures(tmp_path, capsys):
    output = tmp_path / "out" / "feeding.json"
    arguments = ["--captions", "SDXL", "--pictures", "8", "--step-ms", "5", "--output", str(output)]
    assert main(arguments) == 0
    (case,) = json.loads(output.read_text(encoding="utf-8"))["cases"]
    assert case["same_adapter"] and len(case["ahead"]["passes"]) == 2 and case["ahead"]["passes"][0]["steps"] == 2
    assert "the trained adapters are the same" in capsys.readouterr().out
