"""Models for masks of the real classes, a few kB each: as folders that transformers loads, and as ONNX files."""

import json
from collections.abc import Sequence
from pathlib import Path

from tests.tool.tiny_captioners import saved, tokenizer_of
from tests.tool.tiny_onnx import constant, entry, node, onnx_file, value

import torch

import numpy as np
from transformers import (
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SwinConfig,
)
from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

LABELS = {0: "wall", 1: "person", 2: "Red shape", 3: "door, gate"}
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
RED = (40.0, -20.0, -20.0)
"""Weights of a pixel's channels by which red is the subject."""


def make_matting(
    path: Path, weights: Sequence[float] = RED, logits: bool = False, size: Sequence[int | str] = (16, 16)
) -> Path:
    """An ONNX file whose mask is sigmoid(pixel · weights) or, as logits, pixel · weights.

    Args:
        path: of the file.
        weights: of the three channels, from 0 to 1.
        logits: whether the sigmoid is left to who reads it.
        size: height and width that it takes; names mean any.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    graph = node("Conv", ["image", "weights"], "mask" if logits else "sums")
    graph += b"" if logits else node("Sigmoid", ["sums"], "mask")
    graph += entry(2, b"matting") + constant("weights", (1, 3, 1, 1), np.array(weights, "<f4").tobytes())
    graph += entry(11, value("image", [3, *size])) + entry(12, value("mask", [1, *size]))
    path.write_bytes(onnx_file(graph))
    return path


def make_settings(folder: Path, **said: object) -> None:
    """`preprocessor_config.json` of pixels from 0 to 1."""
    usual = {"image_mean": [0, 0, 0], "image_std": [1, 1, 1], "rescale_factor": 1 / 255}
    (folder / "preprocessor_config.json").write_text(json.dumps({**usual, **said}))


def make_clipseg(folder: Path) -> Path:
    marks = ["<|startoftext|>", "<|endoftext|>", "<unk>"]
    tokenizer = tokenizer_of(marks, (marks[0], marks[1]), bos=marks[0], eos=marks[1], pad=marks[1], unk=marks[2])
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = CLIPSegConfig(
        text_config={**SIZES, **ends, "num_hidden_layers": 1, "vocab_size": len(tokenizer)},
        vision_config={**SIZES, "num_hidden_layers": 2, "image_size": 32, "patch_size": 8},
        projection_dim=16, extract_layers=[0, 1], reduce_dim=16, decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )  # fmt: skip
    torch.manual_seed(0)
    images = ViTImageProcessorPil(size={"height": 32, "width": 32})
    return saved(folder, CLIPSegForImageSegmentation(config), tokenizer, images)


def make_segformer(folder: Path) -> Path:
    config = SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[1, 1], hidden_sizes=[8, 16], patch_sizes=[3, 3],
        strides=[2, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=16, id2label=LABELS,
        label2id={label: index for index, label in LABELS.items()},
    )  # fmt: skip
    torch.manual_seed(0)
    return saved(folder, SegformerForSemanticSegmentation(config),
                 SegformerImageProcessorPil(size={"height": 32, "width": 32}))  # fmt: skip


def make_mask2former(folder: Path) -> Path:
    backbone = SwinConfig(
        image_size=32, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = Mask2FormerConfig(
        backbone_config=backbone, hidden_dim=32, feature_size=32, mask_feature_size=32, num_attention_heads=2,
        encoder_layers=1, decoder_layers=2, dim_feedforward=16, encoder_feedforward_dim=16, num_queries=5,
        id2label=LABELS, label2id={label: index for index, label in LABELS.items()},
    )  # fmt: skip
    torch.manual_seed(0)
    images = Mask2FormerImageProcessorPil(size={"shortest_edge": 48, "longest_edge": 96}, size_divisor=32)
    return saved(folder, Mask2FormerForUniversalSegmentation(config), images)
