"""Workflows for ComfyUI: whole graphs, of which every node gets what it takes, with the adapter on the way."""

import json
from pathlib import Path

from modules.model.families import FAMILIES
from modules.modelSaver.AdapterFile import read_adapter
from modules.tool.comfy_recipes import RECIPES, recipe_of
from modules.tool.comfy_workflow import by_hand, workflow
from modules.tool.ComfyGraph import NODE_TYPES, ComfyGraph, workflow_place
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ModelType import ModelType
from modules.util.UserError import UserError
from tests.load_script import load_script

import torch

import pytest
from safetensors.torch import save_file

TYPES = [kind for family in FAMILIES for kind in family.model_types]
NAMES = {
    ModelType.FLUX_2: ("black-forest-labs/FLUX.2-dev", "FLUX.2-klein-base-4B", "FLUX.2-klein-base-9B"),
    ModelType.QWEN_EDIT: ("Qwen/Qwen-Image-Edit", "Qwen/Qwen-Image-Edit-2511"),
    ModelType.FLUX_DEV_1: ("FLUX.1-dev", "FLUX.1-schnell"),
}
# ComfyUI has no nodes for the first; of the second it draws with two models at once, as no recipe says
UNKNOWN = {ModelType.SANA, ModelType.IDEOGRAM_4}
UNET, TEXT = "lora_unet_down_blocks_0_attentions_0_proj_in", "lora_te_text_model_encoder_layers_0_self_attn_q_proj"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """A LoRA, one with layers of the text encoder, and a rotation."""
    folder = tmp_path_factory.mktemp("adapters")
    factors = {"lora_down.weight": torch.ones(2, 8), "lora_up.weight": torch.ones(8, 2), "alpha": torch.tensor(2.0)}
    tensors = {
        "plain": {f"{UNET}.{part}": value for part, value in factors.items()},
        "text": {f"{layer}.{part}": value.clone() for layer in (UNET, TEXT) for part, value in factors.items()},
        "rotation": {f"{UNET}.oft_R.weight": torch.zeros(2, 6)},
    }
    for name, own in tensors.items():
        save_file(own, folder / f"{name}.safetensors")
    return {name: folder / f"{name}.safetensors" for name in tensors}


def check_whole(graph: dict) -> dict[str, list[dict]]:
    """AssertionError unless links and nodes tell the same and all reaches the picture; nodes by their kind."""
    nodes, links = {node["id"]: node for node in graph["nodes"]}, {link[0]: link for link in graph["links"]}
    needed, open_nodes = set(), [node["id"] for node in graph["nodes"] if node["type"] == "SaveImage"]
    assert len(open_nodes) == 1
    while open_nodes:
        node = nodes[open_nodes.pop()]
        needed.add(node["id"])
        known = NODE_TYPES[node["type"]]
        assert len(node["widgets_values"]) == len(known.widgets)
        for place, slot in enumerate(node["inputs"]):
            _, source, output, target, at, kind = links[slot["link"]]
            assert (target, at, kind) == (node["id"], place, slot["type"]) and source < node["id"]
            given = nodes[source]["outputs"][output]
            assert given["type"] == kind and slot["link"] in given["links"]
            open_nodes.append(source)
    assert {node["type"] for number, node in nodes.items() if number not in needed} == {"Note"}
    kinds: dict[str, list[dict]] = {}
    for node in graph["nodes"]:
        kinds.setdefault(node["type"], []).append(node)
    # nothing covers anything
    boxes = [(*node["pos"], *node["size"]) for node in graph["nodes"]]
    for index, (x, y, w, h) in enumerate(boxes):
        for ox, oy, ow, oh in boxes[:index]:
            assert x + w <= ox or ox + ow <= x or y + h <= oy or oy + oh <= y
    return kinds


@pytest.mark.parametrize("name", ["plain", "text", "rotation"])
@pytest.mark.parametrize("model_type", [kind for kind in TYPES if kind not in UNKNOWN])
def test_every_family_is_drawn_with_its_adapter(files, model_type, name):
    for base in NAMES.get(model_type, ("a model",)):
        config = TrainConfig(model_type=model_type, base_model_name=base)
        sample = SampleConfig(prompt="a red shape", negative_prompt="blue", width=768, height=512, cfg_scale=3.0)
        kinds = check_whole(workflow(config, read_adapter(files[name]), sample))
        loader = {"plain": "LoraLoaderModelOnly", "text": "LoraLoader", "rotation": "LoadOFTRotation"}[name]
        assert kinds[loader][0]["widgets_values"][0] == files[name].name
        lines = by_hand(config, read_adapter(files[name]))
        assert kinds["Note"][0]["widgets_values"] == ["\n".join(lines)]
        assert ("custom_nodes" in lines[1]) == (name == "rotation")


def test_families_that_comfyui_does_not_know_are_refused():
    assert set(RECIPES) == set(TYPES) - UNKNOWN
    for kind in UNKNOWN:
        with pytest.raises(UserError, match="no workflow is known"):
            recipe_of(kind, "")
    with pytest.raises(UserError, match="can't be trained here"):
        recipe_of(ModelType.HUNYUAN_VIDEO, "")


def test_guidance_is_told_or_computed(files):
    sample = SampleConfig(prompt="p", negative_prompt="n", cfg_scale=3.5, diffusion_steps=9, seed=7)

    def kinds(base: str, model_type: ModelType) -> dict[str, list[dict]]:
        config = TrainConfig(model_type=model_type, base_model_name=base)
        return check_whole(workflow(config, read_adapter(files["plain"]), sample))

    told = kinds("FLUX.1-dev", ModelType.FLUX_DEV_1)
    assert told["FluxGuidance"][0]["widgets_values"] == [3.5]
    assert told["KSampler"][0]["widgets_values"][:4] == [7, "fixed", 9, 1.0]
    computed = kinds("", ModelType.QWEN)
    assert "FluxGuidance" not in computed and computed["KSampler"][0]["widgets_values"][3] == 3.5
    assert [node["widgets_values"] for node in computed["CLIPTextEncode"]] == [["p"], ["n"]]
    edited = kinds("Qwen/Qwen-Image-Edit-2511", ModelType.QWEN_EDIT)
    assert [node["widgets_values"] for node in edited["TextEncodeQwenImageEditPlus"]] == [["p"], ["n"]]
    assert edited["UNETLoader"][0]["widgets_values"][0] == "qwen_image_edit_2511_bf16.safetensors"
    assert "BasicGuider" in kinds("FLUX.2-dev", ModelType.FLUX_2)
    assert "CFGGuider" in kinds("FLUX.2-klein-base-4B", ModelType.FLUX_2)


def test_the_graph_takes_only_what_fits():
    graph = ComfyGraph()
    model, clip, _ = graph.add("CheckpointLoaderSimple", 0, ("a",))
    with pytest.raises(ValueError, match="expected MODEL"):
        graph.add("LoraLoaderModelOnly", 1, ("b", 1.0), model=clip)
    with pytest.raises(ValueError, match="LoraLoaderModelOnly"):
        graph.add("LoraLoaderModelOnly", 1, ("b",), model=model)


def test_the_command_line(files, tmp_path, capsys):
    script, adapter = load_script("comfy_workflow"), tmp_path / "my lora.safetensors"
    adapter.write_bytes(files["plain"].read_bytes())
    config = tmp_path / "config.json"
    config.write_text(json.dumps({
        "model_type": "STABLE_DIFFUSION_15", "base_model_name": "models/dreamshaper.safetensors",
        "output_model_destination": str(adapter), "samples": [{"prompt": "a lumo", "width": 64, "height": 64}],
    }), encoding="utf-8")  # fmt: skip
    assert script.main([str(config)]) == 0
    said, target = capsys.readouterr().out, workflow_place(adapter)
    assert f"written: {target}" in said and "models/loras" in said
    kinds = check_whole(json.loads(target.read_text(encoding="utf-8")))
    assert kinds["CheckpointLoaderSimple"][0]["widgets_values"] == ["dreamshaper.safetensors"]
    assert kinds["CLIPTextEncode"][0]["widgets_values"] == ["a lumo"]
    assert kinds["EmptyLatentImage"][0]["widgets_values"] == [64, 64, 1]
    assert script.main([str(config)]) == 1 and "--overwrite" in capsys.readouterr().err
    assert script.main([str(config), "--overwrite"]) == 0
    assert script.main([str(config), "--adapter", str(tmp_path / "none.safetensors"), "--overwrite"]) == 1
