"""`scripts/convert_adapter.py` on adapters of every kind for a miniature base model."""

import json
import shutil
from pathlib import Path

from modules.model.reference_naming import load_base
from modules.modelSaver.adapter_metadata import AdapterDescription
from modules.modelSaver.AdapterFile import read_adapter
from modules.modelSaver.save_adapter import save_adapter, save_parts
from modules.module.AdapterSet import AdapterSet
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ModelFormat import ModelFormat
from tests.adapters import SMALL_KINDS
from tests.load_script import load_script

import torch

import pytest
from safetensors.torch import load_file, save_file

# alpha is no power of two and not the rank, so that a lost one shows
RANK, ALPHA = 4, 3.0
WITH_ALPHA = ["lora", "dora", "dora on outputs", "loha", "lokr"]

Deltas = dict[tuple[str, str], torch.Tensor]


@pytest.fixture(scope="module")
def tool():
    return load_script("convert_adapter")


@pytest.fixture
def run(tool, capsys):
    """run(arguments …) -> what it said; it must end well."""

    def call(*arguments: object) -> str:
        code = tool.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return captured.out

    return call


@pytest.fixture
def fails(tool, capsys):
    """fails(arguments …) -> the one line that says why."""

    def call(*arguments: object) -> str:
        code = tool.main([str(argument) for argument in arguments])
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert code == 1 and len(lines) == 1
        return lines[0]

    return call


@pytest.fixture(scope="module")
def base(mini_base):
    """The miniature with weights; tests must not change it."""
    return load_base(mini_base)


class Made:
    """An adapter file of a kind, and what it does to the base."""

    def __init__(self, base, path: Path, options: dict) -> None:
        self.path = path
        config = TrainConfig.from_dict({"lora_rank": RANK, "lora_alpha": ALPHA, **options})
        generator = torch.Generator().manual_seed(5)
        sets = {}
        for component in ("unet", "text_encoder"):
            sets[component] = AdapterSet(component, base.components[component], config)
            for parameter in sets[component].parameters():
                with torch.no_grad():
                    parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
        self.deltas: Deltas = {
            (component, name): adapter.merged_delta()
            for component, adapters in sets.items()
            for name, adapter in adapters.adapters.items()
        }
        description = AdapterDescription(title="made here", resolution="32x32", comment="kept")
        save_adapter(path, sets, ModelFormat.KOHYA_LORA, base.naming, description)


@pytest.fixture(scope="module")
def made(base, tmp_path_factory):
    """made("lora") -> an adapter of that kind; tests must not change its file."""
    folder, found = tmp_path_factory.mktemp("adapters"), {}

    def make(kind: str) -> Made:
        if kind not in found:
            found[kind] = Made(base, folder / f"{kind}.safetensors", SMALL_KINDS[kind])
        return found[kind]

    return make


def deltas_of(path: Path, base) -> Deltas:
    found: Deltas = {}
    for component, layers in read_adapter(path).fit(base.naming, base.components).items():
        adapters = AdapterSet.from_parts(component, base.components[component], layers)
        found |= {(component, name): adapter.merged_delta() for name, adapter in adapters.adapters.items()}
    return found


def error(found: Deltas, expected: Deltas) -> float:
    """‖difference‖/‖expected‖ over all layers."""
    assert found.keys() == expected.keys()
    lost = sum((found[name] - delta).square().sum() for name, delta in expected.items())
    return (lost / sum(delta.square().sum() for delta in expected.values())).sqrt().item()


# ---- formats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lora", "dora on outputs", "lokr", "oft"])
def test_to_comfyui_and_back(run, made, base, mini_base, tmp_path, kind):
    source, comfy, back = made(kind), tmp_path / "comfy.safetensors", tmp_path / "back.safetensors"
    said = run(source.path, comfy, "--format", "COMFY_LORA", "--base", mini_base)
    assert "COMFY_LORA" in said and read_adapter(comfy).format == ModelFormat.COMFY_LORA
    run(comfy, back, "--format", "KOHYA_LORA", "--base", mini_base)
    assert load_file(back).keys() == load_file(source.path).keys()
    # scales for ComfyUI's norm are multiplied and divided again, with float32's rounding; all else is copied
    assert error(deltas_of(back, base), source.deltas) < 1e-5
    metadata = read_adapter(back).metadata
    assert metadata["modelspec.title"] == "made here" and metadata["ss_training_comment"] == "kept"
    assert metadata["ss_resolution"] == "(32, 32)"


def test_to_diffusers_folds_alpha_in(run, made, base, mini_base, tmp_path):
    source, target = made("lora"), tmp_path / "x.safetensors"
    run(source.path, target, "--format", "DIFFUSERS_LORA", "--base", mini_base, "--dtype", "FLOAT_16")
    tensors = load_file(target)
    assert not [key for key in tensors if "alpha" in key]
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert error(deltas_of(target, base), source.deltas) < 1e-3  # 11 bits in both factors


def test_what_diffusers_cannot_hold(fails, made, mini_base, tmp_path):
    target = tmp_path / "x.safetensors"
    text = fails(made("oft").path, target, "--format", "DIFFUSERS_LORA", "--base", mini_base)
    assert "--format: DIFFUSERS_LORA cannot hold OFT" in text and not target.exists()


def test_standard_models_need_no_base(run, tmp_path):
    """A file of SD 2.x's cross-attention and second text encoder layers is told from one of SD 1.x by its sizes."""
    name, te = (
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k",
        "lora_te_text_model_encoder_layers_0_mlp_fc1",
    )
    for width, hidden, clip in ((768, 768, "clip_l"), (1024, 1024, "clip_h")):
        source, target = tmp_path / f"{width}.safetensors", tmp_path / f"{width} out.safetensors"
        tensors = {
            f"{name}.lora_down.weight": torch.ones(2, width), f"{name}.lora_up.weight": torch.ones(320, 2),
            f"{te}.lora_down.weight": torch.ones(2, hidden), f"{te}.lora_up.weight": torch.ones(4 * hidden, 2),
        }  # fmt: skip
        save_file(tensors, source)
        said = run(source, target, "--format", "COMFY_LORA")
        assert f"Stable Diffusion {'1' if width == 768 else '2'}.x" in said
        written = load_file(target)
        assert f"text_encoders.{clip}.transformer.text_model.encoder.layers.0.mlp.fc1.lora_A.weight" in written
        assert "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.lora_B.weight" in written


def test_a_model_that_nobody_knows_needs_base(fails, made, tmp_path):
    text = fails(made("lora").path, tmp_path / "x.safetensors", "--format", "COMFY_LORA")
    assert "made for none of Stable Diffusion 1.x, Stable Diffusion 2.x, SDXL" in text and "--base" in text


# ---- alpha, rank, kind -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WITH_ALPHA)
def test_another_alpha_is_the_same_change(run, made, base, tmp_path, kind):
    source, target = made(kind), tmp_path / "x.safetensors"
    run(source.path, target, "--alpha", 16)
    before, after = load_file(source.path), load_file(target)
    assert before.keys() == after.keys()
    full = {key.removesuffix(".lokr_w1") for key in after if key.endswith(".lokr_w1")}
    full &= {key.removesuffix(".lokr_w2") for key in after if key.endswith(".lokr_w2")}
    # a LoKr with two full factors has no use for it
    alphas = {after[key].item() for key in after if key.endswith(".alpha") and key.removesuffix(".alpha") not in full}
    assert alphas == {16.0}
    assert error(deltas_of(target, base), source.deltas) < 1e-5  # float32, one rounding a factor


def test_factors_keep_their_balance(run, made, tmp_path):
    source, target = made("lora"), tmp_path / "x.safetensors"
    run(source.path, target, "--alpha", 12)  # four times
    before, after = load_file(source.path), load_file(target)
    for key in before:
        if not key.endswith(".alpha"):
            assert torch.equal(after[key], before[key] / 2)


@pytest.mark.parametrize("kind", ["oft", "oft on outputs", "dora-oft"])
def test_rotations_have_no_alpha(fails, made, tmp_path, kind):
    assert "has no alpha" in fails(made(kind).path, tmp_path / "x.safetensors", "--alpha", 2)


def test_a_lora_is_resized_by_svd(run, made, base, tmp_path):
    source, target = made("lora"), tmp_path / "x.safetensors"
    said = run(source.path, target, "--rank", 2)
    expected: Deltas = {}
    for name, delta in source.deltas.items():
        left, sigma, right = torch.linalg.svd(delta.double().flatten(1), full_matrices=False)
        expected[name] = ((left[:, :2] * sigma[:2]) @ right[:2]).view(delta.shape).float()
    found = deltas_of(target, base)
    assert error(found, expected) < 1e-5  # float32
    told = float(said.split("relative error ")[1].split(";")[0])
    assert told == pytest.approx(error(found, source.deltas), rel=5e-3)  # three digits are printed
    ranks = {tensor.shape[0] for key, tensor in load_file(target).items() if key.endswith("lora_down.weight")}
    # the scale alpha/rank stays
    alphas = {tensor.item() for key, tensor in load_file(target).items() if key.endswith(".alpha")}
    assert ranks == {2} and alphas == {ALPHA / 2}
    assert "nothing is lost" in run(source.path, target, "--rank", 64, "--overwrite")
    assert error(deltas_of(target, base), source.deltas) == 0


@pytest.mark.parametrize("kind", ["loha", "lokr", "oft on outputs", "dora-oft"])
def test_other_kinds_become_a_lora(run, made, base, mini_base, tmp_path, kind):
    source, target = made(kind), tmp_path / "x.safetensors"
    errors = []
    for rank in (1, 512):
        said = run(source.path, target, "--rank", rank, "--base", mini_base, "--overwrite")
        assert str(read_adapter(target).kind) == "LoRA"
        errors.append(error(deltas_of(target, base), source.deltas))
    told = float(said.split("relative error ")[1].split(";")[0]) if "relative error" in said else 0.0
    # a full rank loses only what float32 rounds
    assert errors[0] > 0.1 and errors[1] < 1e-5 and told < 1e-5


def test_a_dora_becomes_a_lora_only_on_request(run, fails, made, base, mini_base, tmp_path):
    source, target = made("dora"), tmp_path / "x.safetensors"
    run(source.path, target, "--rank", 2)
    assert "DoRA" in str(read_adapter(target).kind)
    run(source.path, target, "--to", "lora", "--rank", 512, "--base", mini_base, "--overwrite")
    assert str(read_adapter(target).kind) == "LoRA"
    assert error(deltas_of(target, base), source.deltas) < 1e-5  # as above
    assert "--to lora: needs the rank" in fails(source.path, tmp_path / "y.safetensors", "--to", "lora")


@pytest.mark.parametrize("kind", ["dora on outputs", "loha", "oft"])
def test_the_exact_change(run, made, base, mini_base, tmp_path, kind):
    source, target = made(kind), tmp_path / "x.safetensors"
    run(source.path, target, "--to", "diff", "--base", mini_base)
    written = load_file(target)
    assert {key.rsplit(".", 1)[1] for key in written} == {"diff"}
    assert error(deltas_of(target, base), source.deltas) < 1e-6  # computed the same way from the same file


@pytest.mark.parametrize("kind", ["oft on outputs", "dora-oft", "dora"])
def test_what_depends_on_the_base_says_so(fails, made, tmp_path, kind):
    text = fails(made(kind).path, tmp_path / "x.safetensors", "--to", "lora", "--rank", 4)
    assert "depends on the base model's weights" in text and "--base" in text


# ---- merging, extracting ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lora", "dora-oft"])
def test_merged_model(run, made, base, mini_base, tmp_path, kind):
    source, target = made(kind), tmp_path / "merged"
    run(source.path, target, "--merge", "--base", mini_base)
    merged = load_base(target)
    for component, module in merged.components.items():
        for name, tensor in module.state_dict().items():
            before = base.components[component].state_dict()[name]
            delta = source.deltas.get((component, name.removesuffix(".weight")), torch.zeros(()))
            # float32, the delta once from the adapter and once from its file
            assert torch.allclose(tensor, before + delta, atol=1e-5, rtol=0), name
    # everything else is there as it was
    files = {path.relative_to(mini_base) for path in mini_base.rglob("*")}
    assert {path.relative_to(target) for path in target.rglob("*")} == files
    assert [path.name for path in target.parent.iterdir()] == ["merged"], "nothing is left beside it"
    name = "unet/diffusion_pytorch_model.safetensors"
    assert load_file(target / name).keys() == load_file(mini_base / name).keys()


def test_merged_files_keep_names_and_take_a_dtype(run, made, mini_base, tmp_path):
    """Files of transformers 4 have a level more in the text encoder's names."""
    old = tmp_path / "old base"
    shutil.copytree(mini_base, old)
    file = old / "text_encoder" / "model.safetensors"
    save_file({f"text_model.{name}": tensor for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    run(made("lora").path, tmp_path / "merged", "--merge", "--base", old, "--dtype", "FLOAT_16")
    written = load_file(tmp_path / "merged" / "text_encoder" / "model.safetensors")
    assert written.keys() == load_file(file).keys()
    assert {tensor.dtype for tensor in written.values()} == {torch.float16}
    before = load_file(file)
    key = "text_model.encoder.layers.0.mlp.fc1.weight"
    assert not torch.equal(written[key], before[key].half())


def test_biases_of_a_diff_are_merged(run, base, mini_base, tmp_path):
    layer, shape = "conv_in", base.components["unet"].conv_in.weight.shape
    parts = {"diff": torch.full(shape, 0.5), "diff_b": torch.full(shape[:1], 0.25)}
    path = tmp_path / "diff.safetensors"
    save_parts(path, {"unet": {layer: parts}}, ModelFormat.KOHYA_LORA, base.naming, AdapterDescription())
    run(path, tmp_path / "merged", "--merge", "--base", mini_base)
    name = "unet/diffusion_pytorch_model.safetensors"
    before, after = load_file(mini_base / name), load_file(tmp_path / "merged" / name)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"conv_in.weight", "conv_in.bias"}
    assert torch.equal(after["conv_in.bias"], before["conv_in.bias"] + 0.25)


def test_extracting_finds_what_was_merged(run, made, base, mini_base, tmp_path):
    source, target = made("lora"), tmp_path / "x.safetensors"
    run(source.path, tmp_path / "merged", "--merge", "--base", mini_base)
    said = run(target, "--extract", mini_base, tmp_path / "merged", "--rank", RANK, "--alpha", 2)
    # the merged weights are float32 sums: what they round is not of the rank
    assert error(deltas_of(target, base), source.deltas) < 1e-4
    assert "warning" not in said and f"{len(source.deltas)} layers" in said
    assert {tensor.item() for key, tensor in load_file(target).items() if key.endswith("alpha")} == {2.0}


def test_extracting_tells_what_a_lora_cannot_hold(run, fails, mini_base, tmp_path):
    tuned, file = tmp_path / "tuned", "unet/diffusion_pytorch_model.safetensors"
    shutil.copytree(mini_base, tuned)
    assert "no layer differs" in fails(tmp_path / "x.safetensors", "--extract", mini_base, tuned)
    tensors = load_file(tuned / file)
    tensors["conv_in.weight"] = tensors["conv_in.weight"] + 1
    tensors["conv_in.bias"] = tensors["conv_in.bias"] + 1
    save_file(tensors, tuned / file, {"format": "pt"})
    said = run(tmp_path / "x.safetensors", "--extract", mini_base, tuned, "--rank", 8)
    assert "1 other tensors differ" in said and "unet.conv_in.bias" in said and "1 layers" in said


@pytest.fixture
def own_base(mini_base, tmp_path) -> Path:
    """A copy of the miniature that a test may lose."""
    return Path(shutil.copytree(mini_base, tmp_path / "models" / "base"))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_merging_replaces_nothing_but_models(run, fails, made, mini_base, tmp_path):
    target = tmp_path / "photos"
    target.mkdir()
    (target / "holiday.png").write_text("mine")
    arguments = made("lora").path, target, "--merge", "--base", mini_base, "--overwrite"
    assert "photos" in (text := fails(*arguments)) and "model_index.json" in text
    assert content(tmp_path) == {"photos/holiday.png": b"mine"}
    target = tmp_path / "a file"
    target.write_text("mine")
    assert "a file" in fails(made("lora").path, target, "--merge", "--base", mini_base, "--overwrite")
    assert target.read_text() == "mine"


@pytest.mark.parametrize("place", ["models/base", "models", "models/base/unet", "models/base/new/merged", "linked"])
def test_merging_keeps_off_the_base(fails, made, own_base, tmp_path, place):
    (tmp_path / "models" / "model_index.json").write_text("{}")
    (own_base / "unet" / "model_index.json").write_text("{}")
    (tmp_path / "linked").symlink_to(own_base)
    before = content(tmp_path)
    text = fails(made("lora").path, tmp_path / place, "--merge", "--base", own_base, "--overwrite")
    assert str(own_base) in text and content(tmp_path) == before
    assert not (own_base / "new").exists()


def test_merging_keeps_the_adapter(fails, made, mini_base, own_base):
    adapter = Path(shutil.copy(made("lora").path, own_base / "mine.safetensors"))
    assert str(adapter) in fails(adapter, own_base, "--merge", "--base", mini_base, "--overwrite")
    assert adapter.is_file()


def test_a_link_keeps_pointing_to_the_model(run, made, mini_base, own_base, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(own_base)
    before = content(own_base)
    run(made("lora").path, link, "--merge", "--base", mini_base, "--overwrite")
    assert link.is_symlink() and content(own_base).keys() == before.keys() and content(own_base) != before
    assert {path.name for path in tmp_path.rglob(".*")} == set()


def test_what_cannot_be_read_is_not_blamed_on_the_target(fails, made, own_base, tmp_path):
    (own_base / "unet" / "notes.txt").symlink_to(tmp_path / "nowhere")  # copying follows links
    text = fails(made("lora").path, tmp_path / "merged", "--merge", "--base", own_base)
    assert "notes.txt" in text and "Cannot write" not in text and not (tmp_path / "merged").exists()


def test_what_cannot_be_written_is(fails, made, mini_base, tmp_path):
    (tmp_path / "file").write_text("mine")
    text = fails(made("lora").path, tmp_path / "file" / "merged", "--merge", "--base", mini_base)
    assert f"Cannot write {tmp_path / 'file' / 'merged'}" in text


# ---- what is inside --------------------------------------------------------------------------------------------------


def row_of(said: str, layer: str) -> list[str]:
    return next(line for line in said.splitlines() if line.startswith(f"{layer} ")).split()


@pytest.mark.parametrize("kind", SMALL_KINDS)
def test_info(run, made, base, mini_base, kind):
    source = made(kind)
    said = run(source.path, "--info", "--base", mini_base)
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    delta = source.deltas["unet", path].double()
    values = torch.linalg.svdvals(delta)
    shares = values / values.sum()
    expected = torch.exp(-(shares * shares.clamp(min=1e-300).log()).sum()).item()
    name, rank, alpha, norm, effective, *remark = row_of(said, f"lora_unet_{path.replace('.', '_')}")
    assert float(norm) == pytest.approx(delta.norm().item(), rel=1e-3)  # four digits are printed
    # rank-deficient changes: rounding counts as a little entropy where the Gram matrix is used
    assert float(effective) == pytest.approx(expected, abs=0.06)
    has_alpha = kind in WITH_ALPHA
    assert (alpha == "–") == (not has_alpha) and (not has_alpha or float(alpha) == ALPHA)
    assert int(rank) == (1 if kind == "lokr" else 4)
    assert bool(remark) == ("oft" in kind) and "Metadata:" in said and "made here" in said


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr", "dora-oft"])
def test_info_without_a_base(run, made, kind):
    source = made(kind)
    said = run(source.path, "--info")
    name = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    cells = row_of(said, name)
    if kind in ("lora", "loha", "lokr"):
        norm = source.deltas["text_encoder", "encoder.layers.0.mlp.fc1"].norm().item()
        assert float(cells[3]) == pytest.approx(norm, rel=1e-3)  # four digits are printed
    else:
        assert cells[3] == "–" and "needs --base" in " ".join(cells)
    assert "note: " in said and "made for none of" in said


def test_info_names_what_the_model_lacks(run, made, mini_base, tmp_path):
    tensors = load_file(made("lora").path)
    tensors |= {
        "lora_unet_stranger.lora_down.weight": torch.ones(2, 4),
        "lora_unet_stranger.lora_up.weight": torch.ones(4, 2),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    said = run(tmp_path / "x.safetensors", "--info", "--base", mini_base)
    assert "lacks:\n  lora_unet_stranger" in said


@pytest.mark.parametrize("kind", ["lora", "diff", "oft"])
def test_info_names_a_base_of_other_sizes(run, mini_base, tmp_path, kind):
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"  # 32 x 32
    parts = {
        "lora": {"lora_down.weight": torch.ones(2, 32), "lora_up.weight": torch.ones(48, 2)},
        "diff": {"diff": torch.ones(48, 32)},
        "oft": {"oft_R.weight": torch.zeros(5, 28)},
    }[kind]
    save_file({f"{layer}.{part}": tensor for part, tensor in parts.items()}, tmp_path / "x.safetensors")
    said = run(tmp_path / "x.safetensors", "--info", "--base", mini_base)
    assert "base model: unknown" in said and row_of(said, layer)
    assert f"note: {tmp_path / 'x.safetensors'}: {layer}." in said and "made for another base model" in said


def test_the_angle_of_a_rotation(run, tmp_path):
    save_file({"lora_unet_a.oft_R.weight": torch.tensor([[0.5]])}, tmp_path / "x.safetensors")
    # 2·arctan(0.5)
    assert "53.1°" in run(tmp_path / "x.safetensors", "--info")


# ---- wrong wishes ----------------------------------------------------------------------------------------------------


def test_nothing_is_overwritten(run, fails, made, mini_base, tmp_path):
    target = tmp_path / "x.safetensors"
    target.write_text("mine")
    assert "exists" in fails(made("lora").path, target, "--alpha", 2) and target.read_text() == "mine"
    assert "exists" in fails(target, "--extract", mini_base, mini_base)
    folder = tmp_path / "merged"
    run(made("lora").path, folder, "--merge", "--base", mini_base)
    before = content(folder)
    assert "exists" in fails(made("lora").path, folder, "--merge", "--base", mini_base)
    run(made("lora").path, target, "--alpha", 2, "--overwrite")
    run(made("dora").path, folder, "--merge", "--base", mini_base, "--overwrite")
    assert content(folder).keys() == before.keys() and content(folder) != before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{in}", "{out}"], "nothing to do"),
        (["{in}", "{out}", "--format", "KOHYA_LORA"], "nothing to do"),
        (["{in}", "{out}", "--to", "diff", "--rank", "2"], "a diff has none"),
        (["{in}", "{out}", "--merge"], "--base"),
        (["{in}", "{out}", "--merge", "--base", "{base}"], "diffusers folders only"),
        (["{in}", "{out}", "--format", "COMFY_LORA", "--base", "nowhere"], "nowhere does not exist"),
        (["{out}", "--extract", "nowhere", "{base}"], "nowhere does not exist"),
        (["nowhere.safetensors", "--info"], "there is no such file"),
        (["nowhere.json", "{out}", "--alpha", "2"], "nowhere.json"),
        (["{in}", "{folder}/out.json", "--alpha", "2"], "out.json: expected a name that ends with .safetensors"),
        (["{in}", "{folder}/out", "--alpha", "2"], "out: expected a name that ends with .safetensors"),
        (["{folder}/out.pt", "--extract", "{base}", "{base}"], "out.pt: expected a name"),
    ],
)
def test_wrong_wishes(fails, made, mini_base, tmp_path, arguments, words):
    places = {"in": made("lora").path, "out": tmp_path / "out.safetensors", "base": mini_base, "folder": tmp_path}
    assert words in fails(*(argument.format(**places) for argument in arguments))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        *(["a"], ["a", "b", "c"], ["a", "b", "--rank", "0"], ["a", "b", "--alpha", "0"], ["a", "--info", "--merge"]),
        *(["a.json", "--info"], ["a.json", "b.json", "--merge"], ["b.json", "--extract", "a", "c"]),
    ],
)
def test_wrong_command_lines(tool, arguments):
    with pytest.raises(SystemExit) as error:
        tool.main(arguments)
    assert error.value.code == 2


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        ("a.json b.json --alpha 8 --rank 4", "--rank"),
        ("a.json b.json --alpha 8 --format KOHYA_LORA", "--format"),
        ("a.json b.json --alpha 8 --base c", "--base"),
        ("a.json b.json --alpha 8 --to diff", "--to"),
        ("a.json b.json --alpha 8 --dtype FLOAT_16", "--dtype"),
        ("a --info --rank 4", "--rank"),
        ("a --info --alpha 4", "--alpha"),
        ("a --info --overwrite", "--overwrite"),
        ("a b --merge --base c --alpha 2", "--alpha"),
        ("a b --merge --base c --format KOHYA_LORA", "--format"),
        ("a b --merge --base c --rank 2", "--rank"),
        ("a b --merge --base c --to diff", "--to"),
        ("a --extract b c --base d", "--base"),
        ("a --extract b c --to lora", "--to"),
    ],
)
def test_options_without_effect(tool, capsys, arguments, option):
    with pytest.raises(SystemExit) as error:
        tool.main(arguments.split())
    assert error.value.code == 2 and f"error: {option}: " in capsys.readouterr().err


def test_negative_alpha_in_the_file(fails, tmp_path):
    parts = {"lora_down.weight": torch.ones(2, 4), "lora_up.weight": torch.ones(4, 2), "alpha": torch.tensor(-1.0)}
    save_file({f"lora_unet_a.{part}": tensor for part, tensor in parts.items()}, tmp_path / "x.safetensors")
    text = fails(tmp_path / "x.safetensors", tmp_path / "y.safetensors", "--alpha", 4)
    assert "lora_unet_a" in text and "found -1" in text and not (tmp_path / "y.safetensors").exists()


def test_a_preset(run, tmp_path):
    path, target = tmp_path / "in.json", tmp_path / "out.json"
    path.write_text(json.dumps({"training_method": "LORA", "lora_alpha": 1, "optimizer": {"optimizer": "ADAMW"}}))
    assert "lora_alpha: 1 → 16" in run(path, target, "--alpha", 16)
    assert json.loads(target.read_text())["lora_alpha"] == 16


def test_dtype_stays_that_of_the_file(run, made, tmp_path):
    half = tmp_path / "half.safetensors"
    run(made("lora").path, half, "--dtype", "BFLOAT_16")
    run(half, tmp_path / "x.safetensors", "--alpha", 2)
    written = load_file(tmp_path / "x.safetensors")
    assert {tensor.dtype for key, tensor in written.items() if "lora" in key.rsplit(".", 2)[1]} == {torch.bfloat16}


def onetrainer_rotation(numbers: torch.Tensor) -> torch.Tensor:
    """OneTrainer's forward, block by block in float64: I + 2Q + 2Q² + 2Q³ + Q⁴ of row-major upper triangles."""
    size = round((1 + (1 + 8 * numbers.shape[1]) ** 0.5) / 2)
    blocks = []
    for row in numbers.double():
        skew, place = torch.zeros(size, size, dtype=torch.float64), 0
        for i in range(size):
            for j in range(i + 1, size):
                skew[i, j], skew[j, i] = row[place], -row[place]
                place += 1
        square = skew @ skew
        blocks.append(
            torch.eye(size, dtype=torch.float64) + 2 * skew + 2 * square + 2 * square @ skew + square @ square
        )
    return torch.block_diag(*blocks)


def file_of_onetrainer(path: Path, base, share: bool, scaled: bool, header: dict[str, str]) -> Deltas:
    """Writes rotations as OneTrainer does; returns what they change there: W·Rᵀ of a linear layer, and of a convolution
    each output's in·kh·kw numbers times R.
    """
    generator = torch.Generator().manual_seed(3)
    layers = {"conv_in": 4, "down_blocks.0.resnets.0.conv1": 8, "time_embedding.linear_1": 8}
    tensors, expected = {}, {}
    for name, size in layers.items():
        weight = base.components["unet"].get_submodule(name).weight.detach().double()
        rows = weight.flatten(1)
        blocks = rows.shape[1] // size
        numbers = 0.2 * torch.randn(1 if share else blocks, size * (size - 1) // 2, generator=generator)
        key = f"lora_unet_{name.replace('.', '_')}.oft_R"
        tensors[f"{key}.weight"] = numbers * (2 * (size - 1) ** 0.5 if scaled else 1.0)
        if scaled:
            tensors[f"{key}.scaled_oft"] = torch.tensor(True)
        rotation = onetrainer_rotation(numbers.expand(blocks, -1))
        rotated = rows @ (rotation.T if weight.dim() == 2 else rotation)
        expected["unet", name] = (rotated.view(weight.shape) - weight).float()
    save_file(tensors, path, header)
    return expected


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_merging_a_file_of_onetrainers_gives_the_weights_of_its_forward(run, base, mini_base, tmp_path, scaled, share):
    """With the marker numbers are halved by 2√(b−1); a shared block is known for OneTrainer's by marker or header."""
    header = {} if scaled else {"ot_branch": "master", "ot_revision": "0123abc"}
    expected = file_of_onetrainer(tmp_path / "theirs.safetensors", base, share, scaled, header)
    arguments = (tmp_path / "theirs.safetensors", tmp_path / "d.safetensors", "--to", "diff", "--base", mini_base)
    said = run(*arguments, "--neumann")
    assert "does not say how its rotations were computed" in said and "warning" not in said
    assert error(deltas_of(tmp_path / "d.safetensors", base), expected) < 1e-5  # float32
    run(*arguments, "--overwrite")
    # exact rotations by the same numbers are others
    assert error(deltas_of(tmp_path / "d.safetensors", base), expected) > 1e-2


@pytest.mark.parametrize("options", [("--format", "COMFY_LORA"), ("--dtype", "BFLOAT_16")])
def test_the_layout_of_kernels_stays_through_conversions(run, base, mini_base, tmp_path, options):
    """Also where no model is needed, so that shapes of layers are not known."""
    theirs, ours = tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors"
    expected = file_of_onetrainer(theirs, base, True, True, {})
    run(theirs, ours, *options, *(("--base", mini_base) if "--format" in options else ()), "--neumann")
    assert not any("scaled_oft" in key or "kernels" in key for key in load_file(ours))
    run(ours, tmp_path / "d.safetensors", "--to", "diff", "--base", mini_base)
    # bfloat16 has eight bits
    assert error(deltas_of(tmp_path / "d.safetensors", base), expected) < (1e-5 if "--format" in options else 1e-2)


def test_a_shared_block_without_a_word_is_read_as_older_files_are(run, base, mini_base, tmp_path):
    expected = file_of_onetrainer(tmp_path / "x.safetensors", base, True, False, {})
    target = tmp_path / "d.safetensors"
    said = run(tmp_path / "x.safetensors", target, "--to", "diff", "--base", mini_base, "--neumann")
    assert "warning: " in said and "(2 layers, for example lora_unet_conv_in). Input channels are assumed" in said
    found, linear = deltas_of(target, base), ("unet", "time_embedding.linear_1")
    assert error({linear: found[linear]}, {linear: expected[linear]}) < 1e-5 < 0.1 < error(found, expected)


def test_a_block_that_fits_no_layout_is_refused_by_the_true_reason(fails, mini_base, tmp_path):
    save_file({"lora_unet_conv_in.oft_R.weight": torch.zeros(5, 6)}, tmp_path / "x.safetensors")
    said = fails(tmp_path / "x.safetensors", tmp_path / "d.safetensors", "--to", "diff", "--base", mini_base)
    assert (
        "lora_unet_conv_in.oft_R.weight has 5 blocks of 4, which make up neither the layer's 4 input channels nor the "
        "36 numbers of its kernels. It belongs to a layer of another size." in said
    )
