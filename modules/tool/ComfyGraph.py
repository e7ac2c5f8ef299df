"""A graph of ComfyUI's nodes, in the form in which it saves workflows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TOP, COLUMN, WIDTH, GAP = 80, 420, 360, 40
TITLE, ROW, TEXT = 40, 28, 160


def workflow_place(adapter: Path) -> Path:
    """Where the workflow of an adapter is written: beside it."""
    return adapter.with_name(f"{adapter.stem} workflow.json")


@dataclass(frozen=True)
class NodeType:
    """What a node takes and gives.

    Attributes:
        inputs: name -> type of what is linked to it.
        widgets: names of what is entered in it, in its order.
        outputs: types of what it gives.
        height: of it, in pixels.
    """

    inputs: Mapping[str, str]
    widgets: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    height: int = 0

    @property
    def rows(self) -> int:
        """Pixels that it takes on the screen."""
        return self.height or TITLE + ROW * (max(len(self.inputs), len(self.outputs)) + len(self.widgets))


_MODEL_AND_CLIP = {"model": "MODEL", "clip": "CLIP"}
_CLIP_AND_VAE = {"clip": "CLIP", "vae": "VAE"}
_SIZE = ("width", "height", "batch_size")
_SHIFT = NodeType({"model": "MODEL"}, ("shift",), ("MODEL",))
_EMPTY = NodeType({}, _SIZE, ("LATENT",))
NODE_TYPES: Mapping[str, NodeType] = {
    "CheckpointLoaderSimple": NodeType({}, ("ckpt_name",), ("MODEL", "CLIP", "VAE")),
    "UNETLoader": NodeType({}, ("unet_name", "weight_dtype"), ("MODEL",)),
    "CLIPLoader": NodeType({}, ("clip_name", "type", "device"), ("CLIP",)),
    "DualCLIPLoader": NodeType({}, ("clip_name1", "clip_name2", "type", "device"), ("CLIP",)),
    "TripleCLIPLoader": NodeType({}, ("clip_name1", "clip_name2", "clip_name3"), ("CLIP",)),
    "QuadrupleCLIPLoader": NodeType({}, ("clip_name1", "clip_name2", "clip_name3", "clip_name4"), ("CLIP",)),
    "VAELoader": NodeType({}, ("vae_name",), ("VAE",)),
    "LoraLoader": NodeType(_MODEL_AND_CLIP, ("lora_name", "strength_model", "strength_clip"), ("MODEL", "CLIP")),
    "LoraLoaderModelOnly": NodeType({"model": "MODEL"}, ("lora_name", "strength_model"), ("MODEL",)),
    "LoadOFTRotation": NodeType(
        _MODEL_AND_CLIP, ("file_name", "strength_model", "strength_clip", "neumann"), ("MODEL", "CLIP")
    ),
    "ModelSamplingAuraFlow": _SHIFT,
    "ModelSamplingSD3": _SHIFT,
    "CLIPTextEncode": NodeType({"clip": "CLIP"}, ("text",), ("CONDITIONING",), TEXT),
    "CLIPTextEncodePixArtAlpha": NodeType({"clip": "CLIP"}, ("width", "height", "text"), ("CONDITIONING",), TEXT + 60),
    "TextEncodeQwenImageEdit": NodeType({**_CLIP_AND_VAE, "image": "IMAGE"}, ("prompt",), ("CONDITIONING",), TEXT + 60),
    "TextEncodeQwenImageEditPlus": NodeType(
        {**_CLIP_AND_VAE, "image1": "IMAGE"}, ("prompt",), ("CONDITIONING",), TEXT + 60
    ),
    "ConditioningZeroOut": NodeType({"conditioning": "CONDITIONING"}, (), ("CONDITIONING",)),
    "FluxGuidance": NodeType({"conditioning": "CONDITIONING"}, ("guidance",), ("CONDITIONING",)),
    "EmptyLatentImage": _EMPTY,
    "EmptySD3LatentImage": _EMPTY,
    "EmptyFlux2LatentImage": _EMPTY,
    "LoadImage": NodeType({}, ("image", "upload"), ("IMAGE", "MASK"), 320),
    "FluxKontextImageScale": NodeType({"image": "IMAGE"}, (), ("IMAGE",)),
    "VAEEncode": NodeType({"pixels": "IMAGE", "vae": "VAE"}, (), ("LATENT",)),
    "ReferenceLatent": NodeType({"conditioning": "CONDITIONING", "latent": "LATENT"}, (), ("CONDITIONING",)),
    "InpaintModelConditioning": NodeType(
        {"positive": "CONDITIONING", "negative": "CONDITIONING", "vae": "VAE", "pixels": "IMAGE", "mask": "MASK"},
        ("noise_mask",), ("CONDITIONING", "CONDITIONING", "LATENT"),
    ),
    "KSampler": NodeType(
        {"model": "MODEL", "positive": "CONDITIONING", "negative": "CONDITIONING", "latent_image": "LATENT"},
        ("seed", "control_after_generate", "steps", "cfg", "sampler_name", "scheduler", "denoise"), ("LATENT",),
    ),
    "RandomNoise": NodeType({}, ("noise_seed", "control_after_generate"), ("NOISE",)),
    "KSamplerSelect": NodeType({}, ("sampler_name",), ("SAMPLER",)),
    "Flux2Scheduler": NodeType({}, ("steps", "width", "height"), ("SIGMAS",)),
    "BasicGuider": NodeType({"model": "MODEL", "conditioning": "CONDITIONING"}, (), ("GUIDER",)),
    "CFGGuider": NodeType(
        {"model": "MODEL", "positive": "CONDITIONING", "negative": "CONDITIONING"}, ("cfg",), ("GUIDER",)
    ),
    "SamplerCustomAdvanced": NodeType(
        {"noise": "NOISE", "guider": "GUIDER", "sampler": "SAMPLER", "sigmas": "SIGMAS", "latent_image": "LATENT"},
        (), ("LATENT", "LATENT"),
    ),
    "VAEDecode": NodeType({"samples": "LATENT", "vae": "VAE"}, (), ("IMAGE",)),
    "SaveImage": NodeType({"images": "IMAGE"}, ("filename_prefix",), (), 400),
    "Note": NodeType({}, ("text",), (), 220),
}  # fmt: skip
"""Those that are used here."""


@dataclass(frozen=True)
class Output:
    """What a node gives at one of its outputs."""

    node: int
    slot: int
    kind: str


@dataclass
class ComfyGraph:
    """Nodes and links, in columns from left to right."""

    nodes: list[dict[str, Any]] = field(default_factory=list)
    links: list[list[Any]] = field(default_factory=list)
    _below: dict[int, int] = field(default_factory=dict)

    def add(self, kind: str, column: int, widgets: tuple[Any, ...] = (), **inputs: Output) -> tuple[Output, ...]:
        """Adds a node; returns what it gives.

        Args:
            kind: a name in `NODE_TYPES`.
            column: of the picture.
            widgets: what is entered in it.
            inputs: name -> what is linked to it; each that it has.
        """
        known, number = NODE_TYPES[kind], len(self.nodes) + 1
        if len(widgets) != len(known.widgets) or inputs.keys() != known.inputs.keys():
            raise ValueError(f"{kind}: found {widgets}, {sorted(inputs)}, expected {known}")
        slots = []
        for place, (name, expected) in enumerate(known.inputs.items()):
            source = inputs[name]
            if source.kind != expected:
                raise ValueError(f"{kind}.{name}: found {source.kind}, expected {expected}")
            link = len(self.links) + 1
            self.links.append([link, source.node, source.slot, number, place, expected])
            self.nodes[source.node - 1]["outputs"][source.slot]["links"].append(link)
            slots.append({"name": name, "type": expected, "link": link})
        top = self._below.get(column, TOP)
        self._below[column] = top + known.rows + GAP
        self.nodes.append({
            "id": number, "type": kind, "pos": [COLUMN * column, top], "size": [WIDTH, known.rows], "flags": {},
            "order": number - 1, "mode": 0, "inputs": slots,
            "outputs": [
                {"name": given, "type": given, "slot_index": slot, "links": []}
                for slot, given in enumerate(known.outputs)
            ],
            "properties": {"Node name for S&R": kind}, "widgets_values": list(widgets),
        })  # fmt: skip
        return tuple(Output(number, slot, given) for slot, given in enumerate(known.outputs))

    def to_json(self) -> dict[str, Any]:
        """The workflow as ComfyUI saves it."""
        return {
            "last_node_id": len(self.nodes), "last_link_id": len(self.links), "nodes": self.nodes, "links": self.links,
            "groups": [], "config": {}, "extra": {}, "version": 0.4,
        }  # fmt: skip
