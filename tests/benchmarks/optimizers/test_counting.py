"""The counter of launches, bytes and waits: single operations by hand, and whole steps against their floor."""

from benchmarks.optimizers.cases import Case
from benchmarks.optimizers.count_cases import EAGER, FakeParameters, count_case, misses, table
from benchmarks.optimizers.counting import Counts, fake_gpu, list_launches
from benchmarks.optimizers.measure import OURS, PEER
from benchmarks.optimizers.parameter_set import Layer, lora_shapes

import torch

import pytest

# two layers of one shape, so two stacks, and rank 8
SHAPES = lora_shapes([Layer("first", 64, 48), Layer("second", 64, 48)], 8)
FLOAT = 4


def counted(function) -> Counts:
    with fake_gpu() as operations, torch.no_grad():
        x, y = torch.empty(10, 6, device="cuda"), torch.empty(6, device="cuda")
        operations.counts = counts = Counts()
        function(x, y)
    return counts


@pytest.mark.parametrize(
    ("function", "launches", "numbers", "waits"),
    [
        (lambda x, y: x.view(60).unbind(), 0, 0, 0),
        (lambda x, y: x[2:4, None], 0, 0, 0),
        (lambda x, y: torch.empty_like(x), 0, 0, 0),
        (lambda x, y: x + 1, 1, 120, 0),
        (lambda x, y: x.mul_(2), 1, 120, 0),
        (lambda x, y: x.zero_(), 1, 60, 0),
        # what is broadcast is read once
        (lambda x, y: x + y, 1, 126, 0),
        (lambda x, y: x + y.expand(10, 6), 1, 126, 0),
        (lambda x, y: x.copy_(x * 1), 2, 240, 0),
        (lambda x, y: torch.cat([x, x]), 1, 180, 0),
        (lambda x, y: torch.bmm(x[None], x[None].mT), 1, 160, 0),
        (lambda x, y: torch._foreach_add_([x, y], 1.0), 1, 132, 0),
        # lists that don't fit go one by one
        (lambda x, y: torch._foreach_mul_([x, x], [y, y]), 2, 126, 0),
        (lambda x, y: y.sum().item(), 1, 7, 1),
        (lambda x, y: torch.full((), 2.0, device="cuda"), 1, 1, 0),
        (lambda x, y: torch.tensor([1.0, 2.0], device="cuda"), 1, 2, 1),
        (lambda x, y: torch.zeros(2).to("cuda", non_blocking=True), 1, 2, 0),
        (lambda x, y: x.to("cpu"), 1, 60, 1),
        (lambda x, y: torch.linalg.eigh(x[:6]), 1, 78, 1),
    ],
)  # fmt: skip
def test_single_operations(function, launches, numbers, waits):
    found = counted(function)
    assert (found.launches, found.bytes, found.waits) == (launches, FLOAT * numbers, waits), found.operations


@pytest.mark.parametrize(
    ("sizes", "depth", "expected"),
    [
        ([], 1, 0),
        ([5], 1, 1),
        ([1] * 110, 1, 1),
        ([1] * 111, 1, 2),
        ([1] * 72, 4, 2),
        ([320 << 16], 2, 1),
        ([(320 << 16) + 1], 2, 2),
        # the second goes on in the next launch, where it takes a place
        ([1, 320 << 16, *[1] * 29], 5, 2),
        ([1, 320 << 16, *[1] * 30], 5, 3),
    ],
)
def test_launches_of_kernels_over_lists(sizes, depth, expected):
    assert list_launches(sizes, depth) == expected


@pytest.fixture(scope="module")
def rows() -> dict[str, dict]:
    cases = [
        Case("plain", "ADAMW_ADV"), Case("bf16_sr", "ADAMW_ADV", {"state_precision": "bf16_sr"}),
        Case("rite plain", "LORA_RITE"), Case("centered_wd", "ADAMW_ADV", {"centered_wd": 0.01}),
    ]  # fmt: skip
    with fake_gpu() as operations:
        parameters = FakeParameters(SHAPES)
        return {case.name: count_case(case, parameters, operations, peer=case.name == "plain") for case in cases}


def test_a_fused_step_moves_what_it_has_to_and_its_table(rows):
    elements = sum(rows * cols for _, (rows, cols) in SHAPES)
    addresses = 2 * len(SHAPES) * 8
    for name, state in (("plain", 4), ("bf16_sr", 2)):
        row = rows[name]
        assert row["floor_bytes"] == elements * (2 * 4 + 4 + 4 * state)
        # a key a parameter beside, and the table is copied and read
        assert row[OURS]["bytes"] == row["floor_bytes"] + addresses
        assert row[OURS]["launches"] == 4 and not row[OURS]["waits"]
    assert rows["bf16_sr"][EAGER]["bytes"] > 2 * rows["bf16_sr"]["floor_bytes"]
    # with hidden matrices there is an anchor, which is read, and a number for each of what is owed
    assert rows["centered_wd"]["floor_bytes"] == elements * (7 + 1) * 4 + len(SHAPES) * 2 * 8
    assert not misses(rows["plain"])


def test_waits_are_counted_and_the_kernel_has_none(rows):
    assert rows["rite plain"][EAGER]["waits"] > 0 and rows["rite plain"][OURS]["waits"] == 0


def test_the_peer_is_counted_and_the_table_shows_all(rows):
    assert rows["plain"][PEER]["launches"] > rows["plain"][EAGER]["launches"]
    lines = table(list(rows.values())).splitlines()
    assert len(lines) == 2 + len(rows) and all(line.count("|") == 11 for line in lines)
