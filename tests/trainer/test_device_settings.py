"""What a config says of a GPU's arithmetic reaches torch, is as before afterwards, and contradictions are refused."""

import os

from modules.trainer import device_settings as settings_module
from modules.trainer.device_settings import (
    WORKSPACE,
    WORKSPACES,
    device_problems,
    device_settings,
    prepare_process,
)  # fmt: skip
from modules.util.config.errors import Remedy
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError

import torch

import pytest

GPU, CPU = torch.device("cuda"), torch.device("cpu")
MATRIX, CUDNN = torch.backends.cuda.matmul, torch.backends.cudnn


def config_of(**options) -> TrainConfig:
    return TrainConfig.from_dict({"train_dtype": "BFLOAT_16", **options})


def state() -> tuple:
    return (
        MATRIX.allow_tf32, CUDNN.allow_tf32, CUDNN.benchmark, CUDNN.deterministic,
        torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip


def order() -> list[int]:
    return torch._C._get_sdp_priority_order()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (False, True, False, False, False)),
        ({"train_dtype": "FLOAT_32"}, (False, False, False, False, False)),
        ({"train_dtype": "TFLOAT_32"}, (True, True, False, False, False)),
        ({"cudnn_benchmark": True}, (False, True, True, False, False)),
        ({"deterministic": True}, (False, False, False, True, True)),
    ],
)
def test_settings_reach_torch_and_are_as_before_afterwards(options, expected):
    before = state()
    with device_settings(config_of(**options), GPU):
        assert state() == expected
    with pytest.raises(KeyError), device_settings(config_of(**options), GPU):
        raise KeyError
    assert state() == before


@pytest.mark.parametrize("kernel", ["FLASH", "CUDNN"])
def test_a_chosen_kernel_is_tried_first_and_others_where_it_can_not(kernel):
    before = order()
    chosen = settings_module._KERNELS[kernel][0]
    with device_settings(config_of(attention_mechanism=kernel), GPU):
        assert order()[0] == int(chosen) and sorted(order()[:4]) == sorted(int(own) for own in settings_module._OTHERS)
    with device_settings(config_of(), GPU):
        assert order() == before
    assert order() == before


def test_on_a_cpu_nothing_changes():
    before = state(), order()
    with device_settings(config_of(deterministic=True, cudnn_benchmark=True, train_dtype="TFLOAT_32"), CPU):
        assert (state(), order()) == before


def test_cublas_is_told_before_it_starts(monkeypatch):
    monkeypatch.delenv(WORKSPACE, raising=False)
    prepare_process(config_of())
    assert WORKSPACE not in os.environ
    prepare_process(config_of(deterministic=True))
    assert os.environ[WORKSPACE] == WORKSPACES[0]
    assert device_problems(config_of(deterministic=True), GPU) == []
    monkeypatch.setenv(WORKSPACE, ":0:0")
    prepare_process(config_of(deterministic=True))
    (problem,) = device_problems(config_of(deterministic=True), GPU)
    assert problem.path == "deterministic" and ":0:0" in problem.text


def test_an_operation_without_such_a_kernel_is_told_in_words():
    text = "cumsum_cuda does not have a deterministic implementation, but you set it. You can turn it off."
    with pytest.raises(UserError, match="deterministic: cumsum_cuda .*Set it to false"):
        with device_settings(config_of(deterministic=True), GPU):
            raise RuntimeError(text)
    with pytest.raises(RuntimeError, match="no memory"), device_settings(config_of(deterministic=True), GPU):
        raise RuntimeError("no memory")


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"deterministic": True, "cudnn_benchmark": True}, "cudnn_benchmark"),
        ({"deterministic": True, "train_dtype": "TFLOAT_32"}, "deterministic"),
        ({"attention_mechanism": "FLEX"}, "attention_mechanism"),
        ({"attention_mechanism": "FLASH"}, "attention_mechanism"),
        ({"attention_mechanism": "CUDNN"}, "attention_mechanism"),
        ({"attention_mechanism": "XFORMERS"}, "attention_mechanism"),
    ],
)
def test_what_this_machine_lacks_or_contradicts_is_refused_and_every_remedy_helps(options, path):
    (problem,) = device_problems(config_of(**options), CPU)
    assert problem.path == path and problem.text.startswith("found ")
    for remedy in problem.remedies:
        assert device_problems(config_of(**{**options, **dict(remedy.values)}), CPU) == []


def test_xformers_is_looked_for_on_a_gpu(monkeypatch):
    for there in (None, object()):
        monkeypatch.setattr(settings_module, "find_spec", lambda name, there=there: there)
        assert bool(device_problems(config_of(attention_mechanism="XFORMERS"), GPU)) == (there is None)


def test_xformers_is_refused_where_runs_shall_be_the_same(monkeypatch):
    monkeypatch.delenv(WORKSPACE, raising=False)
    monkeypatch.setattr(settings_module, "find_spec", lambda name: object())
    options = {"attention_mechanism": "XFORMERS", "deterministic": True}
    (problem,) = device_problems(config_of(**options), GPU)
    assert problem.path == "attention_mechanism" and "deterministic" in problem.text
    assert [remedy.values for remedy in problem.remedies] == [
        Remedy.of(values).values for values in ({"attention_mechanism": "SDP"}, {"deterministic": False})
    ]
    for remedy in problem.remedies:
        assert device_problems(config_of(**{**options, **dict(remedy.values)}), GPU) == []
