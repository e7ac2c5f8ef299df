"""Bad files are refused in one line that names the file and the key."""

import pickle
from functools import partial

from modules.model.unet_keys import unet_adapter_naming
from modules.modelSaver.AdapterFile import read_adapter
from modules.util.atomic_file import write_safetensors
from modules.util.UserError import UserError

import torch
from torch import Tensor

import pytest

LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"  # 32 x 32
OTHER = "lora_unet_mid_block_attentions_0_proj_in"  # a convolution, 64 x 64 x 1 x 1
DOWN, UP, ALPHA = "lora_down.weight", "lora_up.weight", "alpha"


def lora(out: int = 32, inner: tuple[int, ...] = (32,), rank: int = 4) -> dict[str, Tensor]:
    return {
        DOWN: torch.ones(rank, *inner),
        UP: torch.ones(out, rank, *(1 for _ in inner[1:])),
        ALPHA: torch.tensor(2.0),
    }


def loha(out: int = 32, inner: int = 32) -> dict[str, Tensor]:
    return {f"hada_w{n}_{side}": torch.ones((out, 4) if side == "a" else (4, inner)) for n in (1, 2) for side in "ab"}


def lokr() -> dict[str, Tensor]:
    return {"lokr_w1": torch.ones(4, 4), "lokr_w2_a": torch.ones(8, 2), "lokr_w2_b": torch.ones(2, 8)}


def oft(blocks: int = 4, numbers: int = 28) -> dict[str, Tensor]:
    return {"oft_R.weight": torch.zeros(blocks, numbers)}


def without(parts: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in parts.items() if name not in names}


def spoilt(parts: dict[str, Tensor], name: str, value: float) -> dict[str, Tensor]:
    changed = parts[name].clone()
    changed.view(-1)[0] = value
    return parts | {name: changed}


# what is wrong -> (parts of a layer, the key's end, words)
WITHIN_A_LAYER = {
    "LoRA without up": (without(lora(), UP), ALPHA, "stands without lora_up"),
    "LoHa without a factor": (without(loha(), "hada_w2_b"), "hada_w1_a", "stands without hada_w2_b"),
    "LoKr without its second factor": ({"lokr_w1": torch.ones(4, 4)}, "lokr_w1", "stands without lokr_w2_a"),
    "marker alone": ({"oft_R.scaled_oft": torch.tensor(True)}, "oft_R.scaled_oft", "stands without oft_R.weight"),
    "alpha alone": ({ALPHA: torch.tensor(1.0)}, ALPHA, "makes up no adapter"),
    "LoRA and LoHa": (lora() | loha(), "hada_w1_a", "belongs to LoHa, but the layer has parts of LoRA"),
    "LoRA and difference": (lora() | {"diff": torch.ones(32, 32)}, "diff", "belongs to diff"),
    "both sides of OFT": (
        oft() | {"oft_blocks": torch.zeros(4, 8, 8)}, "oft_blocks", "belongs to output-side OFT"
    ),
    "OFT with alpha": (oft() | {ALPHA: torch.tensor(1.0)}, ALPHA, "is no part of OFT"),
    "ranks of LoRA": (lora() | {UP: torch.ones(32, 5)}, UP, r"\[32, 5\], expected \[outputs, 4\]"),
    "vector for LoRA": (lora() | {DOWN: torch.ones(32)}, DOWN, r"\[32\], expected a matrix"),
    "kernel for up": (lora() | {UP: torch.ones(32, 4, 3, 3)}, UP, "expected"),
    "ranks of LoHa": (loha() | {"hada_w2_a": torch.ones(32, 3)}, "hada_w2_a", r"expected \[outputs, 4\]"),
    "sides of LoHa": (loha() | {"hada_w2_a": torch.ones(16, 4)}, "hada_w2_a", "expected"),
    "cores of LoHa": (
        loha() | {"hada_t1": torch.ones(3, 4, 3, 3), "hada_t2": torch.ones(4, 4, 3, 3)}, "hada_t1", "ranks"
    ),
    "ranks of LoKr": (lokr() | {"lokr_w2_a": torch.ones(8, 3)}, "lokr_w2_a", r"expected \[outputs, 2\]"),
    "core of LoKr": (lokr() | {"lokr_t2": torch.ones(2, 5, 3, 3)}, "lokr_t2", "ranks"),
    "not a triangle": (oft(4, 27), "oft_R.weight", r"\[4, 27\], expected \[blocks, b\(b−1\)/2\]"),
    "blocks that are not square": ({"oft_blocks": torch.zeros(4, 8, 7)}, "oft_blocks", "expected"),
    "butterfly": ({"oft_blocks": torch.zeros(2, 4, 8, 8)}, "oft_blocks", "BOFT"),
    "rescaled rotation": (
        {"oft_blocks": torch.zeros(4, 8, 8), "rescale": torch.full((32, 1), 1.1)}, "rescale", "not supported"
    ),
    "alpha of several numbers": (lora() | {ALPHA: torch.ones(3)}, ALPHA, "expected a single number"),
    "lengths": (lora() | {"dora_scale": torch.ones(7, 1)}, "dora_scale", r"expected \[32, 1\] or \[1, inputs\]"),
    "flat lengths": (lora() | {"dora_scale": torch.ones(7)}, "dora_scale", "expected one for each of 32 outputs"),
    "empty tensor": (lora() | {DOWN: torch.ones(0, 32), UP: torch.ones(32, 0)}, DOWN, "is empty"),
    "whole numbers": (lora() | {UP: torch.ones(32, 4, dtype=torch.int8)}, UP, "torch.int8, expected floating-point"),
    "whole numbers in a rotation": (
        {"oft_R.weight": torch.zeros(4, 28, dtype=torch.uint8)}, "oft_R.weight", "torch.uint8"
    ),
    "whole lengths": (lora() | {"dora_scale": torch.ones(32, 1, dtype=torch.int64)}, "dora_scale", "torch.int64"),
    "NaN": (spoilt(lora(), UP, float("nan")), UP, "NaN or infinite"),
    "infinity": (spoilt(lora(), ALPHA, float("inf")), ALPHA, "NaN or infinite"),
    "NaN in half precision": (
        {name: tensor.half() for name, tensor in spoilt(loha(), "hada_w1_b", float("nan")).items()},
        "hada_w1_b", "NaN or infinite",
    ),
    "NaN in a rotation": (spoilt(oft(), "oft_R.weight", float("nan")), "oft_R.weight", "NaN or infinite"),
}  # fmt: skip
# parts that are whole, but not for the layer
FOR_ANOTHER_MODEL = {
    "LoRA": (lora(48), DOWN, "makes a 48 x 32 matrix, expected 32 x 32"),
    "LoRA of a kernel": (lora(32, (32, 3, 3)), DOWN, "makes a 32 x 288 matrix, expected 32 x 32"),
    "LoHa": (loha(32, 64), "hada_w1_b", "expected 32 x 32"),
    "LoKr": (lokr() | {"lokr_w1": torch.ones(5, 4)}, "lokr_w2_b", "makes a 40 x 32 matrix"),
    "diff": ({"diff": torch.ones(32, 31)}, "diff", "expected 32 x 32"),
    "number of blocks": (oft(5), "oft_R.weight", "has 5 blocks of 8, which don't make up the layer's 32 inputs"),
    "size of blocks": ({"oft_blocks": torch.zeros(3, 12, 12)}, "oft_blocks", "32 outputs"),
    "lengths": (oft() | {"dora_scale": torch.ones(31, 1)}, "dora_scale", "has 31 numbers, expected 32 or 32"),
}


def write(path, layers: dict[str, dict[str, Tensor]]) -> str:
    write_safetensors(path, {f"{name}.{part}": t for name, parts in layers.items() for part, t in parts.items()})
    return str(path)


def refusal(call) -> str:
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(scope="module")
def base(make_pipeline):
    pipeline = make_pipeline()
    pipeline.naming = unet_adapter_naming(pipeline.unet, {})
    return pipeline


@pytest.mark.parametrize("wrong", WITHIN_A_LAYER)
def test_parts_that_cannot_belong_together(tmp_path, wrong):
    parts, key, words = WITHIN_A_LAYER[wrong]
    path = write(tmp_path / "bad.safetensors", {LAYER: parts})
    with pytest.raises(UserError, match=words):
        read_adapter(path)
    assert refusal(lambda: read_adapter(path)).startswith(f"{path}: {LAYER}.{key} ")


@pytest.mark.parametrize("wrong", FOR_ANOTHER_MODEL)
def test_adapters_of_another_size(base, tmp_path, wrong):
    parts, key, words = FOR_ANOTHER_MODEL[wrong]
    file = read_adapter(write(tmp_path / "other.safetensors", {LAYER: parts}))
    message = refusal(lambda: file.fit(base.naming, base.components))
    assert message.startswith(f"{file.path}: {LAYER}.{key} ") and words in message


def test_what_fits_is_taken(base, tmp_path):
    """The same checks let right files pass."""
    for parts in (lora(), loha(), lokr(), oft(), oft(1), {"diff": torch.ones(32, 32)}):
        file = read_adapter(write(tmp_path / "good.safetensors", {LAYER: parts}))
        assert file.fit(base.naming, base.components)["unet"].keys() == {base.naming.read[LAYER][1]}


def test_alpha_and_markers_may_be_whole_numbers(tmp_path):
    file = read_adapter(write(tmp_path / "good.safetensors", {LAYER: lora() | {ALPHA: torch.tensor(2)}}))
    assert file.layers[LAYER][ALPHA].item() == 2
    read_adapter(write(tmp_path / "marked.safetensors", {LAYER: oft() | {"oft_R.scaled_oft": torch.tensor(True)}}))


def test_kinds_that_differ_from_layer_to_layer(tmp_path):
    path = write(tmp_path / "mixed.safetensors", {LAYER: lora(), OTHER: loha(64, 64)})
    message = refusal(lambda: read_adapter(path))
    assert message.startswith(f"{path}: ") and "belongs to LoHa" in message and f"layer {LAYER} is LoRA" in message
    plain_and_dora = {LAYER: lora(), OTHER: lora(64, (64, 1, 1)) | {"dora_scale": torch.ones(1, 64, 1, 1)}}
    assert "DoRA on inputs" in refusal(lambda: read_adapter(write(path, plain_and_dora)))


def test_two_spellings_of_one_part(tmp_path):
    path = write(tmp_path / "twice.safetensors", {LAYER: lora() | {"lora_A.weight": torch.ones(4, 32)}})
    message = refusal(lambda: read_adapter(path))
    assert f"{LAYER}.lora_A.weight" in message and f"{LAYER}.lora_down.weight" in message


def test_one_layer_under_two_names(base, tmp_path):
    second = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"
    file = read_adapter(write(tmp_path / "twice.safetensors", {LAYER: lora(), second: lora()}))
    message = refusal(lambda: file.resolve(base.naming))
    assert LAYER in message and second in message and "occurs twice" in message


def test_truncated_and_empty_files(tmp_path):
    whole = tmp_path / "whole.safetensors"
    write(whole, {LAYER: lora()})
    data = whole.read_bytes()
    for name, content in {"half": data[: len(data) // 2], "header": data[:40], "nothing": b""}.items():
        (tmp_path / name).write_bytes(content)
        message = refusal(partial(read_adapter, tmp_path / name))
        assert str(tmp_path / name) in message and "not a complete safetensors file" in message
    write_safetensors(tmp_path / "no tensors", {})
    assert "holds no adapter" in refusal(lambda: read_adapter(tmp_path / "no tensors"))
    write_safetensors(tmp_path / "embedding", {"bundle_emb.word.clip_l": torch.ones(2)})
    assert "holds no adapter" in refusal(lambda: read_adapter(tmp_path / "embedding"))


class Trap:
    """Leaves a file behind if it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("old", [False, True])
def test_pickles_never_run_code(tmp_path, old):
    path, trap = tmp_path / "adapter.pt", tmp_path / "sprung"
    content = {f"{LAYER}.{part}": tensor for part, tensor in lora().items()}
    if old:
        path.write_bytes(pickle.dumps({"x": Trap(str(trap))}))
    else:
        torch.save(content | {"x": Trap(str(trap))}, path)
    message = refusal(lambda: read_adapter(path))
    assert str(path) in message and "pickle" in message and "safetensors" in message
    assert not trap.exists()
    # the same tensors alone are no danger
    torch.save(content, path)
    assert read_adapter(path).layers.keys() == {LAYER}


def test_loha_with_lengths_is_refused_by_name(tmp_path):
    """No class here trains or merges it; taking the file and failing later would be worse."""
    layer = {"hada_w1_a": (6, 2), "hada_w1_b": (2, 5), "hada_w2_a": (6, 2), "hada_w2_b": (2, 5), "dora_scale": (6, 1)}
    path = tmp_path / "loha.safetensors"
    write_safetensors(path, {f"lora_unet_a.{part}": torch.ones(shape) for part, shape in layer.items()}, {})
    with pytest.raises(UserError, match=r"lora_unet_a\.dora_scale"):
        read_adapter(path)
