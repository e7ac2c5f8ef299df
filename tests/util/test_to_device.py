"""Whether a copy to a device may go on while the program does."""

from modules.util.to_device import to_device

import torch
from torch import Tensor

import pytest


@pytest.mark.parametrize(
    ("kind", "pinned", "at_once"),
    [("cuda", False, True), ("cuda", True, True), ("mps", False, False), ("xpu", False, False), ("xpu", True, True)],
)
def test_the_program_waits_where_a_device_may_read_later(monkeypatch, kind, pinned, at_once):
    asked = []
    monkeypatch.setattr(Tensor, "is_pinned", lambda tensor: pinned)
    monkeypatch.setattr(Tensor, "to", lambda tensor, *to, non_blocking: asked.append((*to, non_blocking)) or tensor)
    to_device(torch.zeros(2), torch.device(kind))
    to_device(torch.zeros(2), torch.device(kind), torch.float16)
    assert asked == [(torch.device(kind), torch.float32, at_once), (torch.device(kind), torch.float16, at_once)]


def test_what_is_there_stays_the_same_tensor():
    tensor = torch.arange(3.0)
    assert to_device(tensor, torch.device("cpu")) is tensor
    assert to_device(tensor, torch.device("cpu"), torch.float64).tolist() == [0, 1, 2]
