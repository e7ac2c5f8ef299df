"""The ComfyUI node without ComfyUI: its weights against loops in float64, and its place in stand-ins for ComfyUI."""

import logging
import sys
import types

from comfyui import NODE_CLASS_MAPPINGS
from comfyui.nodes import LoadOFT, OFTPatch, read_metadata, read_patches, weight_adapter_class
from comfyui.rotation import (
    adapted,
    block_size,
    effective_weight,
    rotated,
    rotation,
    skew_from_triangles,
)

import torch

import pytest
from safetensors.torch import save_file

SIZE, BLOCKS = 4, 3
NUMBERS = SIZE * (SIZE - 1) // 2
LINEAR, CONV = (8, SIZE * BLOCKS), (8, SIZE * BLOCKS, 3, 3)


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def by_hand(triangle: torch.Tensor) -> torch.Tensor:
    """R of one block in float64: numbers placed one by one, and a plain inverse."""
    q = torch.zeros(SIZE, SIZE, dtype=torch.float64)
    place = 0
    for row in range(SIZE):
        for col in range(row + 1, SIZE):
            q[row, col], q[col, row] = triangle[place], -triangle[place]
            place += 1
    one = torch.eye(SIZE, dtype=torch.float64)
    return (one + q) @ torch.linalg.inv(one - q)


def big_rotation(weight: torch.Tensor, blocks: int = BLOCKS) -> torch.Tensor:
    """All blocks on one diagonal; a single row is used for every block."""
    rows = [by_hand(weight[index if len(weight) > 1 else 0]) for index in range(blocks)]
    return torch.block_diag(*rows)


@pytest.mark.parametrize("rows", [BLOCKS, 1])
@pytest.mark.parametrize("shape", [LINEAR, CONV])
def test_inputs_are_rotated_the_way_of_onetrainer(shape, rows):
    base, trained = draw(*shape), draw(rows, NUMBERS, seed=1, scale=0.3)
    r = big_rotation(trained)
    if len(shape) == 2:
        expected, other = base.double() @ r.t(), base.double() @ r
    else:
        expected = torch.einsum("oihw,ij->ojhw", base.double(), r)
        other = torch.einsum("oihw,ji->ojhw", base.double(), r)
    found = adapted(base, skew_from_triangles(trained), "input").double()
    # float32: a solve and a product of 4 x 4 blocks
    assert (found - expected).abs().max() < 1e-5
    assert (found - other).abs().max() > 0.1, "the other direction is another weight"


@pytest.mark.parametrize(("rows", "told"), [(27, None), (27, True), (1, True), (1, False), (1, None)])
def test_whole_kernels_are_rotated_the_way_of_onetrainer(rows, told):
    """Each output's i·kh·kw numbers times R, by loops; a single row turns channels unless the file says otherwise."""
    base, trained = draw(*CONV), draw(rows, NUMBERS, seed=1, scale=0.3)
    r = big_rotation(trained, 27)
    expected = torch.stack([(kernel.reshape(-1) @ r).view(kernel.shape) for kernel in base.double()])
    found = adapted(base, skew_from_triangles(trained), "input", kernels=told).double()
    if rows > 1 or told:
        assert (found - expected).abs().max() < 1e-5  # float32
    else:
        channels = torch.einsum("oihw,ij->ojhw", base.double(), big_rotation(trained))
        assert (found - channels).abs().max() < 1e-5 < 0.1 < (found - expected).abs().max()


def test_blocks_that_divide_no_channels_are_of_kernels():
    skew = skew_from_triangles(draw(1, 15, scale=0.3))  # 6 x 6 for 4 channels of 3 x 3
    base = draw(8, 4, 3, 3)
    rows = base.double().flatten(1).unflatten(1, (6, 6)) @ rotation(skew)[0].double()
    assert (adapted(base, skew, "input").double() - rows.reshape(base.shape)).abs().max() < 1e-5  # float32
    # a weight does not tell the groups of its convolution, but the file tells that these are channels
    with pytest.raises(ValueError, match="neither the layer's 4 input channels nor the 36 numbers of its kernels"):
        adapted(base, skew, "input", kernels=False)
    with pytest.raises(ValueError, match="5 blocks of 6 make up neither the layer's 4 input channels nor the 36 num"):
        adapted(base, skew.expand(5, -1, -1), "input")


def test_lengths_of_whole_kernels():
    base, skew = draw(*CONV), skew_from_triangles(draw(27, NUMBERS, seed=1, scale=0.3))
    scale = torch.linspace(0.5, 2, 8).view(8, 1, 1, 1)
    found = adapted(base, skew, "input", dora_scale=scale)
    assert torch.allclose(found.flatten(1).norm(dim=1), scale.flatten(), rtol=1e-5)  # float32
    assert torch.allclose(
        adapted(base, skew, "input", strength=0.5).flatten(1).norm(dim=1), base.flatten(1).norm(dim=1)
    )


@pytest.mark.parametrize("shape", [(SIZE * BLOCKS, 5), (SIZE * BLOCKS, 5, 3, 3)])
def test_outputs_are_rotated_the_way_of_stock_comfyui(shape):
    base, blocks = draw(*shape), draw(BLOCKS, SIZE, SIZE, seed=1, scale=0.3)
    skew = blocks - blocks.transpose(1, 2)
    one = torch.eye(SIZE, dtype=torch.float64)
    r = torch.block_diag(*((one + q) @ torch.linalg.inv(one - q) for q in skew.double()))
    expected = torch.einsum("nm,n...->m...", r, base.double())
    assert (adapted(base, skew, "output").double() - expected).abs().max() < 1e-5  # as above


@pytest.mark.parametrize("marker", [torch.tensor(True), torch.tensor(1.0), torch.tensor([1.0], dtype=torch.float16)])
def test_the_marker_of_scaled_files(marker):
    stored = draw(BLOCKS, NUMBERS)
    assert torch.allclose(effective_weight(stored, marker), stored / (2 * (SIZE - 1) ** 0.5))
    for none in (None, torch.tensor(False), torch.tensor(0.0)):
        assert torch.equal(effective_weight(stored, none), stored)


def test_strength_is_an_angle():
    """In a plane Q = [[0, q], [−q, 0]] turns by 2·arctan(q), so strength s by 2·arctan(s·q)."""
    q = 0.7
    for strength in (-1.0, 0.0, 0.5, 1.0, 2.0):
        turn = rotation(skew_from_triangles(torch.tensor([[q]])), strength)[0]
        angle = torch.atan2(turn[0, 1], turn[0, 0]).item()
        assert angle == pytest.approx(2 * torch.atan(torch.tensor(strength * q)).item(), abs=1e-6)  # float32
    base, skew = draw(*LINEAR), skew_from_triangles(draw(BLOCKS, NUMBERS, seed=1))
    assert torch.equal(adapted(base, skew, "input", strength=0.0), base)
    there = adapted(base, skew, "input")
    assert torch.allclose(adapted(there, skew, "input", strength=-1.0), base, atol=1e-5)  # float32, there and back
    # a rotation at every strength: rows keep their lengths
    half = adapted(base, skew, "input", strength=0.5)
    assert torch.allclose(half.norm(dim=1), base.norm(dim=1), rtol=1e-5)


def test_neumann_is_the_truncated_series():
    q = skew_from_triangles(draw(1, NUMBERS, scale=0.3)).double()[0]
    one = torch.eye(SIZE, dtype=torch.float64)
    expected = one + 2 * q + 2 * q @ q + 2 * q @ q @ q + q @ q @ q @ q
    found = rotation(q[None].float(), neumann=True)[0].double()
    assert (found - expected).abs().max() < 1e-6  # float32
    assert (found - rotation(q[None].float())[0].double()).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("shape", "side"),
    [(LINEAR, "input"), (CONV, "input"), ((SIZE * BLOCKS, 5), "output"), (CONV[:1] + CONV[1:], "input")],
)
def test_lengths_of_a_dora_oft(shape, side):
    base, skew = draw(*shape), skew_from_triangles(draw(BLOCKS, NUMBERS, seed=1, scale=0.3))
    kept = 0 if side == "input" else 1
    others = [axis for axis in range(len(shape)) if axis != kept]
    norm = base.double().square().sum(others, keepdim=True).sqrt()
    scale = (norm * (1 + 0.2 * torch.rand(norm.shape, generator=torch.Generator().manual_seed(2)))).float()
    plain = adapted(base, skew, side).double()
    found = adapted(base, skew, side, dora_scale=scale).double()
    assert (found - plain * scale / norm).abs().max() < 1e-5  # float32
    # the rotation leaves these lengths alone, so the scale is the length
    assert torch.allclose(found.square().sum(others, keepdim=True).sqrt(), scale.double(), rtol=1e-5)
    assert torch.equal(adapted(base, skew, side, dora_scale=scale, strength=0.0), base)


def test_a_row_of_zeros_stays_one():
    base = draw(*LINEAR)
    base[2] = 0
    found = adapted(base, skew_from_triangles(draw(BLOCKS, NUMBERS)), "input", dora_scale=torch.ones(8, 1))
    assert torch.isfinite(found).all() and not found[2].any()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="no triangle"):
        block_size(5)
    with pytest.raises(ValueError, match="another base model"):
        rotated(draw(8, 10), torch.eye(4)[None], "input")
    with pytest.raises(ValueError, match="2 blocks of 4 don't make up"):
        rotated(draw(8, 12), torch.eye(4).repeat(2, 1, 1), "input")
    with pytest.raises(ValueError, match="dora_scale"):
        adapted(draw(*LINEAR), torch.zeros(BLOCKS, SIZE, SIZE), "input", dora_scale=torch.ones(1, 12))


# ---- files and patches -----------------------------------------------------------------------------------------------


def a_file() -> dict[str, torch.Tensor]:
    return {
        "lora_unet_a.oft_R.weight": draw(BLOCKS, NUMBERS, scale=0.3),
        "lora_unet_b.oft_R.weight": draw(BLOCKS, NUMBERS, seed=1, scale=0.3),
        "lora_unet_b.oft_R.scaled_oft": torch.tensor(True),
        "lora_unet_c.oft_blocks": draw(2, SIZE, SIZE, seed=2, scale=0.3),
        "lora_unet_c.dora_scale": torch.ones(1, 12),
    }


NAMES = {"lora_unet_a": "model.a.weight", "diffusion_model.a": "model.a.weight", "lora_unet_b": "model.b.weight",
         "lora_unet_c": ("model.c.weight", (0, 0, 8))}  # fmt: skip


def test_patches_of_a_file(caplog):
    tensors = a_file()
    with caplog.at_level(logging.WARNING):
        patches = read_patches(tensors | {"lora_unet_x.oft_R.weight": draw(1, NUMBERS)}, NAMES)
    assert list(patches) == ["model.a.weight", "model.b.weight", ("model.c.weight", (0, 0, 8))]
    assert [line.getMessage() for line in caplog.records] == ["key not loaded: lora_unet_x.oft_R.weight"]
    a, b, c = patches.values()
    assert (a.side, b.side, c.side) == ("input", "input", "output") and c.dora_scale is not None
    plain = skew_from_triangles(tensors["lora_unet_b.oft_R.weight"])
    assert torch.allclose(b.skew, plain / (2 * 3**0.5))
    assert torch.equal(a.skew, skew_from_triangles(tensors["lora_unet_a.oft_R.weight"]))


@pytest.mark.parametrize(
    ("metadata", "more", "told"),
    [
        ({}, {}, None),
        ({"oft_kernels": "True"}, {}, True),
        ({"oft_kernels": "False", "ot_branch": "x"}, {}, False),
        ({"ot_revision": "x"}, {}, True),
        ({}, {"lora_unet_a.oft_R.scaled_oft": torch.tensor(True)}, True),
    ],
)
def test_what_a_file_tells_of_whole_kernels(metadata, more, told, caplog):
    with caplog.at_level(logging.INFO):
        (patch,) = read_patches({"lora_unet_a.oft_R.weight": draw(1, NUMBERS)} | more, NAMES, False, metadata).values()
    assert patch.kernels is told and ("input channels are assumed" in caplog.text) == (told is None)


def test_metadata_are_read_from_the_file(tmp_path):
    save_file({"a": draw(1)}, tmp_path / "x.safetensors", {"oft_kernels": "True"})
    assert read_metadata(str(tmp_path / "x.safetensors")) == {"oft_kernels": "True"}
    torch.save({"a": draw(1)}, tmp_path / "x.pt")
    assert read_metadata(str(tmp_path / "x.pt")) == {} == read_metadata(str(tmp_path / "none"))


def test_files_without_oft_and_of_other_models():
    with pytest.raises(ValueError, match="holds no OFT"):
        read_patches({"lora_unet_a.lora_up.weight": draw(2, 2)}, NAMES)
    with pytest.raises(ValueError, match="another base model"):
        read_patches({"lora_unet_x.oft_R.weight": draw(1, NUMBERS)}, NAMES)


def test_a_patch_works_in_place_on_a_slice_with_a_function():
    whole = draw(16, 12)
    part, before = whole.narrow(0, 4, 8), whole.clone()
    skew = skew_from_triangles(draw(BLOCKS, NUMBERS, seed=1, scale=0.3))
    expected = 2 * adapted(part, skew, "input") - part
    result = OFTPatch(skew, "input", None, False).apply(part, 1.0, lambda change: 2 * change, torch.float32)
    assert result.data_ptr() == part.data_ptr()
    assert torch.allclose(whole[4:12], expected, atol=1e-6)  # float32
    assert torch.equal(whole[:4], before[:4]) and torch.equal(whole[12:], before[12:])


class Patcher:
    """What stands for ComfyUI's model and clip: it takes the patches of its own weights."""

    def __init__(self, *own: str) -> None:
        self.own, self.patches, self.model, self.cond_stage_model = own, {}, self, self

    def clone(self) -> "Patcher":
        return Patcher(*self.own)

    def add_patches(self, patches: dict, strength: float) -> None:
        self.patches |= {key: (patch, strength) for key, patch in patches.items() if key in self.own}


@pytest.fixture
def stand_in(monkeypatch):
    """The few names of ComfyUI that the node uses."""
    tensors = {"lora_unet_a.oft_R.weight": draw(BLOCKS, NUMBERS), "lora_te_b.oft_R.weight": draw(1, NUMBERS)}

    def keys(prefix: str, place: str):
        return lambda model, names: {**names, prefix: place}

    modules = {
        "comfy": {},
        "comfy.weight_adapter": {"WeightAdapterBase": object},
        "comfy.lora": {
            "model_lora_keys_unet": keys("lora_unet_a", "unet"),
            "model_lora_keys_clip": keys("lora_te_b", "te"),
        },
        "comfy.utils": {"load_torch_file": lambda path, safe_load: tensors if safe_load else None},
        "folder_paths": {
            "get_filename_list": lambda kind: ["x.safetensors"] if kind == "loras" else [],
            "get_full_path": lambda kind, name: f"/{kind}/{name}",
        },
    }
    for name, content in modules.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
        if "." in name:
            setattr(sys.modules["comfy"], name.split(".")[1], module)
    weight_adapter_class.cache_clear()
    yield tensors
    weight_adapter_class.cache_clear()


def test_the_node_patches_model_and_clip(stand_in):
    assert NODE_CLASS_MAPPINGS["LoadOFTRotation"] is LoadOFT
    inputs = LoadOFT.INPUT_TYPES()
    assert inputs["required"]["file_name"][0] == ["x.safetensors"]
    # names of inputs are the names of the function's arguments
    arguments = LoadOFT.load.__code__.co_varnames[1 : LoadOFT.load.__code__.co_argcount]
    assert set(arguments) == inputs["required"].keys() | inputs["optional"].keys()
    given, clip = Patcher("unet"), Patcher("te")
    model, text = getattr(LoadOFT(), LoadOFT.FUNCTION)(given, "x.safetensors", 0.5, 1.0, clip=clip)
    assert not given.patches and not clip.patches, "the given ones stay as they are"
    (adapter, strength), (_, strength_clip) = model.patches["unet"], text.patches["te"]
    assert (strength, strength_clip) == (0.5, 1.0) and isinstance(adapter, weight_adapter_class())
    weight = draw(*LINEAR, seed=3)
    skew = skew_from_triangles(stand_in["lora_unet_a.oft_R.weight"])
    expected = adapted(weight, skew, "input", strength=0.5)
    # as ComfyUI calls it; a later version gives one argument more
    found = adapter.calculate_weight(weight, "unet", 0.5, 1.0, None, lambda a: a, torch.float32, None, None)
    assert found is weight and torch.allclose(found, expected, atol=1e-6)  # float32: added as a difference
    assert LoadOFT().load(given, "x.safetensors", 1.0, 1.0)[1] is None


def test_the_node_asks_the_file_about_whole_kernels(stand_in, tmp_path, monkeypatch):
    row = draw(1, NUMBERS, scale=0.3)
    stand_in["lora_unet_a.oft_R.weight"] = row
    for said in ("True", "False"):
        save_file(stand_in, tmp_path / "x.safetensors", {"oft_kernels": said})
        monkeypatch.setattr(sys.modules["folder_paths"], "get_full_path", lambda kind, name: str(tmp_path / name))
        model, _ = LoadOFT().load(Patcher("unet"), "x.safetensors", 1.0, 1.0)
        weight = draw(*CONV, seed=3)
        expected = adapted(weight, skew_from_triangles(row), "input", kernels=said == "True")
        found = model.patches["unet"][0].calculate_weight(weight, "unet", 1.0, 1.0, None, lambda a: a)
        assert torch.allclose(found, expected, atol=1e-6)  # float32: added as a difference


def test_a_weight_that_does_not_fit_is_logged_and_left(stand_in, caplog):
    adapter = weight_adapter_class()(OFTPatch(torch.zeros(BLOCKS, SIZE, SIZE), "input", None, False))
    assert adapter.calculate_weight(draw(8, 10), "unet", 1.0, 1.0, None, lambda a: a) is None
    assert "unet: 3 blocks of 4 don't make up" in caplog.text
