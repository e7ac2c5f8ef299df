"""`scripts/convert_adapter.py`: what differs between files for ComfyUI and for OneTrainer, and files that are none."""

from pathlib import Path

from modules.model.reference_naming import load_base
from modules.modelSaver.adapter_metadata import AdapterDescription
from modules.modelSaver.AdapterFile import read_adapter
from modules.modelSaver.save_adapter import save_adapter
from modules.module.AdapterSet import AdapterSet
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ModelFormat import ModelFormat
from tests.load_script import load_script

import torch

import pytest
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def tool():
    return load_script("convert_adapter")


@pytest.fixture
def call(tool, capsys):
    """call(arguments …) -> exit status, what it said, its lines of errors."""

    def run(*arguments: object) -> tuple[int, str, list[str]]:
        code = tool.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, [line for line in captured.err.splitlines() if line.startswith("error: ")]

    return run


@pytest.fixture(scope="module")
def base(mini_base):
    return load_base(mini_base)


def saved(base, path: Path, options: dict) -> Path:
    adapters = AdapterSet("unet", base.components["unet"], TrainConfig.from_dict(options))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    save_adapter(path, {"unet": adapters}, ModelFormat.KOHYA_LORA, base.naming, AdapterDescription())
    return path


def test_loha_for_onetrainer_and_back(call, base, mini_base, tmp_path):
    start = saved(base, tmp_path / "a.safetensors", {"peft_type": "LOHA", "lora_rank": 2, "lora_alpha": 3.0})
    theirs, rebased, ours = (tmp_path / f"{name}.safetensors" for name in ("theirs", "rebased", "ours"))
    code, said, _ = call(start, theirs, "--format", "LEGACY_LORA", "--base", mini_base)
    assert code == 0 and "note: LoHa: ComfyUI fails on convolutions from LEGACY_LORA" in said
    axes = {key: tensor.dim() for key, tensor in load_file(theirs).items()}
    assert axes["lora_unet_conv_in.hada_w1_b"] == axes["lora_unet_conv_in.hada_w2_a"] == 4
    assert set(axes.values()) == {0, 2, 4}
    # another alpha keeps the axes, for which the sizes of the layers are needed
    code, said, _ = call(theirs, rebased, "--alpha", 5, "--base", mini_base)
    assert code == 0 and {key: tensor.dim() for key, tensor in load_file(rebased).items()} == axes
    code, said, _ = call(theirs, ours, "--format", "KOHYA_LORA", "--base", mini_base)
    assert code == 0 and "note: LoHa: OneTrainer refuses the " in said
    first, last = load_file(start), load_file(ours)
    assert first.keys() == last.keys() and all(torch.equal(tensor, last[key]) for key, tensor in first.items())


@pytest.mark.parametrize("kernels", [False, True])
def test_rotations_for_onetrainer(call, base, mini_base, tmp_path, kernels):
    options = {"peft_type": "OFT_2", "oft_block_size": 4, "oft_kernels": kernels}
    start = saved(base, tmp_path / "a.safetensors", options)
    code, said, _ = call(start, tmp_path / "b.safetensors", "--format", "LEGACY_LORA", "--base", mini_base)
    assert code == 0 and "note: OFT: OneTrainer goes on from it only with oft_scaled off there" in said
    assert ("Set oft_kernels" in said) != kernels and "stock ComfyUI cannot apply it; it does not load oft_R" in said


def test_what_both_read_needs_no_word(call, base, mini_base, tmp_path):
    start = saved(base, tmp_path / "a.safetensors", {"lora_rank": 2})
    for model_format in ("COMFY_LORA", "LEGACY_LORA"):
        target = tmp_path / f"{model_format}.safetensors"
        code, said, _ = call(start, target, "--format", model_format, "--base", mini_base)
        assert code == 0 and "note:" not in said and read_adapter(target).kind.base == "LoRA"


@pytest.mark.parametrize("content", [{5: torch.ones(2)}, {"a": torch.ones(2), None: torch.ones(2)}])
def test_numbers_for_names(call, tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    for arguments in ((tmp_path / "out.safetensors", "--alpha", 3), ("--info",)):
        code, _, errors = call(tmp_path / "a.pt", *arguments)
        assert code == 1 and len(errors) == 1 and str(tmp_path / "a.pt") in errors[0] and "no names" in errors[0]
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("name", ["folder.safetensors", "missing.safetensors", "folder.safetensors/a.safetensors"])
def test_what_is_no_file(call, tmp_path, name):
    (tmp_path / "folder.safetensors").mkdir()
    code, _, errors = call(tmp_path / name, tmp_path / "out.safetensors", "--alpha", 3)
    assert code == 1 and len(errors) == 1 and name in errors[0]
