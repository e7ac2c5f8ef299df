"""Anchors of centered weight decay: exactly no drift, errors of half a step, and a count of what leaves the range."""

import json

from scaled_optim.anchors import ANCHORS, BlockAnchor, Quantized, WrappedAnchor
from tests.load_script import load_script

import torch

import pytest
from safetensors.torch import save_file

SHAPES = [(3, 16, 72), (2, 5, 7), (2, 1, 48), (1, 3, 1)]
QUANTIZED = [name for name, anchor in ANCHORS.items() if isinstance(anchor, Quantized)]
WRAPPED = [name for name, anchor in ANCHORS.items() if isinstance(anchor, WrappedAnchor)]
# rms error over rms on Gaussian weights: e4m3 has 3 bits after the leading one; the largest of 128 is 2.85 rms, of 32
# 2.4 rms, so that their steps over √12 are 0.0064 and 0.083; rms/64 and rms/8 over √12. Each with 5 % for the draw.
LARGEST_ERROR = {"full": 0.0, "float8": 0.028, "int8": 0.0068, "int4": 0.087, "wrapped8": 0.0047, "wrapped4": 0.038}


def weights(shape: tuple[int, int, int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Gaussian, with rows of zeros, of tiny values, and with an outlier, where there are rows enough."""
    generator = torch.Generator().manual_seed(sum(shape))
    p0 = torch.randn(shape, generator=generator, dtype=dtype) * 0.05
    if shape[1] > 2:
        p0[0, 0] = 0
        p0[-1, 1] *= 1e-30
        p0[-1, 2, 0] = 1000.0
    return p0


def moved(p0: torch.Tensor, displacement: float) -> torch.Tensor:
    """By a uniform draw of at most `displacement` of the row's rms on both sides."""
    generator = torch.Generator().manual_seed(7)
    unit = p0.square().mean(2, keepdim=True).sqrt()
    return p0 + displacement * unit * (2 * torch.rand(p0.shape, generator=generator, dtype=p0.dtype) - 1)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ANCHORS)
def test_pull_at_the_start_is_exactly_zero(name, shape, dtype):
    p0 = weights(shape, torch.float64 if dtype == "float64" else torch.float32)
    if dtype == "bfloat16":
        p0 = p0.bfloat16().float()
    anchor = ANCHORS[name]
    store = anchor.create(p0)
    assert all(len(tensor) == shape[0] for tensor in store.values())
    pull = anchor.pull(store, p0)
    assert pull.dtype == p0.dtype and pull.shape == p0.shape
    assert not pull.any()
    assert not anchor.left_range(store, p0).any()


@pytest.mark.parametrize("rate", [1e-4, 0.3, 0.999])
@pytest.mark.parametrize("name", ANCHORS)
def test_no_drift_in_1000_steps(name, rate):
    p0, anchor = weights((2, 4, 40)), ANCHORS[name]
    store, p = anchor.create(p0), p0.clone()
    for _ in range(1000):
        p.sub_(anchor.pull(store, p), alpha=rate)
    assert torch.equal(p, p0)


@pytest.mark.parametrize("name", QUANTIZED)
def test_without_the_zone_it_would_drift(name):
    p0, anchor = weights((2, 4, 40)), ANCHORS[name]
    store, p = anchor.create(p0), p0.clone()
    for _ in range(100):
        p.sub_(anchor.offset(store, p)[0], alpha=0.3)
    assert not torch.equal(p, p0)
    # it ends at the anchor itself
    assert torch.allclose(p, anchor.decode(store, p0), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", QUANTIZED)
def test_p0_is_in_the_zone_around_the_decoded_anchor(name, shape):
    p0, anchor = weights(shape), ANCHORS[name]
    store = anchor.create(p0)
    # half the range of wrapped4 and a quarter of that of wrapped8, whose range is 1 and 2 rms
    p = moved(p0, 0.5)
    decoded, (offset, zone) = anchor.decode(store, p), anchor.offset(store, p)
    assert ((decoded - p0).abs() <= zone).all()
    # the outlier's row computes with steps of about 1, and ulps of 1000 are 6e-5
    assert torch.allclose(offset, p - decoded, rtol=1e-4, atol=1e-4)
    pull = anchor.pull(store, p)
    assert torch.equal(pull, torch.where(offset.abs() > zone, offset, 0.0))
    assert pull.any() or shape == (1, 3, 1)


@pytest.mark.parametrize("name", ANCHORS)
def test_relative_error(name):
    p0 = torch.randn((2, 64, 256), generator=torch.Generator().manual_seed(0))
    anchor = ANCHORS[name]
    error = (anchor.decode(anchor.create(p0), p0) - p0).square().mean().sqrt() / p0.square().mean().sqrt()
    assert LARGEST_ERROR[name] / 2 <= error <= LARGEST_ERROR[name]


@pytest.mark.parametrize("name", ANCHORS)
def test_bytes_per_value(name):
    anchor = ANCHORS[name]
    store = anchor.create(torch.ones(1, 8, 4096))
    size = sum(tensor.nbytes for tensor in store.values())
    rows = size - anchor.bytes_per_value * 8 * 4096
    assert 0 <= rows <= 4 * 8


@pytest.mark.parametrize("name", QUANTIZED)
def test_decay_ends_next_to_p0(name):
    p0, anchor = weights((2, 4, 40)), ANCHORS[name]
    store, p = anchor.create(p0), moved(p0, 0.9)
    zone = anchor.offset(store, p0)[1]
    for _ in range(200):
        p.sub_(anchor.pull(store, p), alpha=0.1)
    assert not anchor.pull(store, p).any()
    # both are in the same zone, so they differ by twice its half-width at most; float32 rounds at 1000
    assert ((p - p0).abs() <= 2.01 * zone + 1e-4).all()


@pytest.mark.parametrize("name", ANCHORS)
def test_rows_of_zeros_are_exact(name):
    p0, anchor = torch.zeros(2, 3, 32), ANCHORS[name]
    store, p = anchor.create(p0), torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))
    assert not anchor.pull(store, p0).any()
    assert torch.equal(anchor.pull(store, p), p)
    assert not anchor.decode(store, p).any()
    assert not anchor.left_range(store, 100 * p).any()


@pytest.mark.parametrize("name", ANCHORS)
def test_batching_changes_nothing(name):
    p0, anchor = weights((3, 16, 72)), ANCHORS[name]
    p, store = moved(p0, 0.7), anchor.create(p0)
    for i in range(3):
        one = anchor.create(p0[i : i + 1])
        assert all(torch.equal(one[key][0], store[key][i]) for key in store)
        assert torch.equal(anchor.pull(one, p[i : i + 1])[0], anchor.pull(store, p)[i])


@pytest.mark.parametrize("name", ANCHORS)
def test_shares_no_memory_and_leaves_p_alone(name):
    p0, anchor = weights((1, 4, 32)), ANCHORS[name]
    store, p = anchor.create(p0), moved(p0, 0.5)
    before, old = p.clone(), {key: tensor.clone() for key, tensor in store.items()}
    expected = anchor.decode(store, p0).clone()
    anchor.pull(store, p).fill_(1)
    anchor.decode(store, p).fill_(1)
    anchor.left_range(store, p)
    p0.fill_(3)
    assert torch.equal(p, before)
    assert all(torch.equal(store[key].to(torch.float32), old[key].to(torch.float32)) for key in store)
    assert torch.equal(anchor.decode(store, expected), expected)


def test_full_keeps_the_parameters_dtype():
    p0 = weights((1, 4, 32)).bfloat16().float()
    store = ANCHORS["full"].create(p0, torch.bfloat16)
    assert store["value"].dtype == torch.bfloat16
    assert not ANCHORS["full"].pull(store, p0).any()


def test_the_longer_side_of_a_block_holds_its_extreme():
    """16 levels: with 15, as max|p₀|/7.5 would give, the step of this block were 17/15 as large."""
    anchor = BlockAnchor(bits=4, block=32)
    for sign in (1.0, -1.0):
        p0 = sign * torch.linspace(-0.5, 0.85, 32).view(1, 1, 32)
        # 0.1 is a bfloat16 rounded up by less than 1/128
        assert 0.1 <= anchor.create(p0)["step"].abs().item() <= 0.1 * (1 + 1 / 128)


@pytest.mark.parametrize("name", WRAPPED)
def test_left_range_counts_what_is_decoded_wrongly(name):
    anchor = ANCHORS[name]
    p0 = torch.randn((2, 256, 64), generator=torch.Generator().manual_seed(0))
    store, p = anchor.create(p0), p0.clone()
    reach = 2 ** (anchor.bits - 1) / anchor.steps_per_rms * p0.square().mean(2, keepdim=True).sqrt()
    # within the range for sure: half a step less
    assert not anchor.left_range(store, p0 + 0.9 * reach).any()
    p[1, 3, 5] += 1.2 * reach[1, 3, 0]
    p[1, 9, 1] -= 1.2 * reach[1, 9, 0]
    assert anchor.left_range(store, p).tolist() == [0, 2]
    assert ((anchor.decode(store, p) - p0).abs() > 0.5).sum((1, 2)).tolist() == [0, 2]
    # back in the range it counts no more
    assert anchor.left_range(store, p0).tolist() == [0, 0]
    # four a row: an estimate, whose spread over 256 rows is √2·4·√256 = 90 or 9 %; 4 of these
    p = p0.clone()
    p[0, :, ::16] += 1.2 * reach[0]
    assert abs(anchor.left_range(store, p)[0].item() - 1024) < 4 * 90


@pytest.mark.parametrize("name", ANCHORS)
def test_one_graph_without_breaks(name):
    p0, anchor = weights((2, 4, 40)), ANCHORS[name]
    store, p = anchor.create(p0), moved(p0, 0.5)
    compiled = torch.compile(lambda store, p: (anchor.pull(store, p), anchor.left_range(store, p)),
                             fullgraph=True, backend="eager")  # fmt: skip
    pull, left = compiled(store, p)
    assert torch.equal(pull, anchor.pull(store, p)) and torch.equal(left, anchor.left_range(store, p))


def test_the_measurement_runs(tmp_path, capsys):
    script = load_script("measure_anchors")
    save_file({"a": torch.randn(6, 4, 3, 3).half(), "b": torch.randn(6).half()}, tmp_path / "w.safetensors")
    arguments = ["--weights", str(tmp_path / "w.safetensors"), "--size", "16", "--steps", "20"]
    assert script.main([*arguments, "--output", str(tmp_path / "out.json")]) == 0
    modes = json.loads((tmp_path / "out.json").read_text())["modes"]
    assert set(modes) == set(ANCHORS)
    printed = capsys.readouterr().out
    for name, mode in modes.items():
        assert mode["drift"] == 0 and (mode["drift_without_zone"] > 0) == (name != "full")
        assert f"| {name} |" in printed
    assert script.main(["--weights", str(tmp_path / "none.safetensors")]) == 1
