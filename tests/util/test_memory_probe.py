from modules.util.MemoryProbe import MemoryProbe

import torch
from torch import nn


def test_peak_counts_what_lives_at_once():
    given = torch.randn(100, 100)
    with MemoryProbe() as probe:
        first = given * 2
        del first
        second = given * 3
        view = second.view(-1)
        del second
        third = view + 1
        # gone before the next is made, the view kept what it looks at
        del view, third
        given.mul_(2)
    assert probe.peak == 2 * 40_000 and probe.largest == 10_000


def test_what_backward_makes_is_seen():
    layer, x = nn.Linear(64, 32, bias=False), torch.ones(8, 64)
    with MemoryProbe() as probe:
        layer(x).sum().backward()
    assert probe.largest == 64 * 32  # the gradient of the weight
