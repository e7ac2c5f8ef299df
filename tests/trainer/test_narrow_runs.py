"""Whole runs whose layers are too narrow for the config's rank."""

import json
import re
from pathlib import Path

from modules.model.BaseModel import family_of
from modules.modelSaver.adapter_output import planned_kind
from modules.modelSaver.AdapterFile import read_adapter
from modules.module.AdapterSet import AdapterSet
from modules.tool.memory_estimate import estimate_memory, load_without_weights
from modules.util.config.TrainConfig import TrainConfig

import torch

import pytest

ROOT = Path(__file__).resolve().parents[2]
BOTH = {"text_encoder": {"train": True, "gradient_checkpointing": False}}
STIEFEL = {"optimizer": {"optimizer": "STIEFEL_LORA"}, "lora_init": "ORTHONORMAL", "lora_rank": 40, "lora_alpha": 40.0}
# a message that names a layer by nothing, or by dots alone
NAMELESS = re.compile(r"""(?:layer|of|in|:) *["']?\.+["']?(?=[ :;,]|$)|["']{2}""")


def ranks(path: Path) -> dict[str, int]:
    return {name: len(parts["lora_down.weight"]) for name, parts in read_adapter(path).layers.items()}


def deltas(path: Path, config: dict) -> dict[str, torch.Tensor]:
    model = family_of(TrainConfig.from_dict(config)).load(TrainConfig.from_dict(config), torch.device("cpu"))
    layers = read_adapter(path).fit(model.adapter_naming(), model.components)
    return {
        adapter.full_name: adapter.merged_delta()
        for component, own in layers.items()
        for adapter in AdapterSet.from_parts(component, model.components[component], own).adapters.values()
    }


@pytest.mark.parametrize("decompose", [False, True])
def test_a_run_tells_of_fewer_ranks_in_one_line_and_resumes(make_run, decompose):
    whole, resumed = make_run("whole"), make_run("resumed")
    options = {"epochs": 1, **STIEFEL, **BOTH, "lora_decompose": decompose}
    whole.train(**options)
    found = ranks(whole.output)
    narrow = {name for name, rank in found.items() if rank < 40}
    assert {"lora_unet_conv_out", "lora_te_text_model_encoder_layers_0_self_attn_q_proj"} <= narrow < found.keys()
    # told once for both components, and nothing else about ranks
    (line,) = [line for line in whole.warnings() if "rank" in line and "ORTHONORMAL" in line]
    name, _, more = line.partition(";")
    assert name.startswith("unet.") and more == f" {len(narrow) - 1} more layers likewise"
    assert NAMELESS.search("the outputs of .; found 9") and NAMELESS.search("the layer .: x")
    assert not any(NAMELESS.search(line) for line in whole.warnings())
    resumed.train(2, **options)
    resumed.train(**options, continue_last_backup=True)
    assert resumed.digest() == whole.digest()


def test_a_file_of_more_ranks_than_outputs_goes_on_with_orthonormal_columns(make_run):
    first, second = make_run("first"), make_run("second")
    first.train(epochs=1, lora_rank=24, lora_alpha=6.0, **BOTH)
    assert set(ranks(first.output).values()) == {24}
    # a step of size zero: what the run starts from comes back
    options = STIEFEL | BOTH | {"epochs": 1, "learning_rate": 0.0, "lora_model_name": str(first.output)}
    second.train(**options)
    assert min(ranks(second.output).values()) == 4
    before, after = (deltas(run.output, first.options()) for run in (first, second))
    assert before.keys() == after.keys()
    for name, delta in before.items():
        # two matrices rounded to float32 in between
        assert (after[name] - delta).abs().max() <= 1e-5 * delta.abs().max(), name
    (line,) = [line for line in second.warnings() if "rank 24 →" in line]
    assert re.match(r"\w+(\.\w+)+: rank 24 → 16, its outputs, for the same change; \d+ more layers likewise$", line)


def test_the_kind_is_known_whatever_the_rank(mini_base):
    """Before any layer is at hand."""
    for rank in (1, 8, 9, 64):
        config = TrainConfig.from_dict({"lora_rank": rank, "lora_init": "ORTHONORMAL", "peft_type": "LORA"})
        assert str(planned_kind(config)) == "LoRA"


def test_the_memory_of_a_run_with_fewer_ranks_can_be_told(mini_base):
    """Its steps are taken on tensors without numbers, none of which is orthonormal."""
    preset = json.loads((ROOT / "training_presets/Tiny/#tiny LoRA STIEFEL_LORA.json").read_text(encoding="utf-8"))
    few = {"layer_filter_preset": "custom", "layer_filter": "conv_in,conv_out", "text_encoder": {"train": False}}
    config = TrainConfig.from_dict({**preset, **few, "base_model_name": str(mini_base), "resolution": "32"})
    lines: list[str] = []
    estimate = estimate_memory(load_without_weights(config, lines.append), config, lines.append)
    assert estimate.total("training") > 0
    assert len([line for line in lines if "ORTHONORMAL" in line]) == 1
