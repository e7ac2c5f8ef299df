"""Captioning models of the real classes with random weights, a few kB each, as folders that transformers loads."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.tool.tiny_onnx import constant, entry, node, onnx_file, value

import torch

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    BlipConfig,
    BlipForConditionalGeneration,
    Florence2Config,
    Florence2ForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

WORDS = "a red blue green shape on of photo the white circle square big small".split()
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
GAIN = 10
FORBIDDEN = -1e4
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_blip(folder: Path) -> Path:
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]"]
    tokenizer = tokenizer_of(marks, pad="[PAD]", unk="[UNK]", cls="[CLS]", sep="[SEP]", around=("[CLS]", "[SEP]"))
    vocabulary = {"vocab_size": len(tokenizer), "bos_token_id": 4, "sep_token_id": 3, "eos_token_id": 3}
    config = BlipConfig(
        text_config={**SIZES, **vocabulary, "num_hidden_layers": 1, "encoder_hidden_size": 16, "projection_dim": 16},
        vision_config={**SIZES, "num_hidden_layers": 1, "image_size": 32, "patch_size": 16},
        projection_dim=16,
    )
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(config)
    with torch.no_grad():
        model.text_decoder.cls.predictions.bias[: len(marks)] = FORBIDDEN
    return saved(folder, model, tokenizer, BlipImageProcessorPil(size={"height": 32, "width": 32}))


def make_blip2(folder: Path) -> Path:
    marks = ["<s>", "<pad>", "</s>", "<unk>", "<image>"]
    tokenizer = tokenizer_of(marks, pad="<pad>", unk="<unk>", bos="<s>", eos="</s>")
    config = Blip2Config(
        vision_config={**SIZES, "num_hidden_layers": 1, "image_size": 32, "patch_size": 16},
        qformer_config={**SIZES, "num_hidden_layers": 1, "encoder_hidden_size": 16, "vocab_size": len(tokenizer)},
        text_config={
            "model_type": "opt", "hidden_size": 16, "ffn_dim": 16, "num_attention_heads": 2, "num_hidden_layers": 1,
            "word_embed_proj_dim": 16, "vocab_size": len(tokenizer), "bos_token_id": 0, "pad_token_id": 1,
            "eos_token_id": 2, "max_position_embeddings": 64,
        },
        num_query_tokens=3, image_token_index=4,
    )  # fmt: skip
    torch.manual_seed(0)
    folder = saved(folder, Blip2ForConditionalGeneration(config), tokenizer,
                   BlipImageProcessorPil(size={"height": 32, "width": 32}))  # fmt: skip
    (folder / "processor_config.json").write_text('{"processor_class": "Blip2Processor", "num_query_tokens": 3}')
    return folder


def make_florence(folder: Path) -> Path:
    marks = ["<s>", "<pad>", "</s>", "<unk>", "<image>"]
    tokenizer = tokenizer_of(marks, pad="<pad>", unk="<unk>", bos="<s>", eos="</s>", image="<image>")
    ends = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    layers = {f"{side}_{what}": count for side in ("encoder", "decoder")
              for what, count in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 16))}  # fmt: skip
    config = Florence2Config(
        text_config={"model_type": "bart", "vocab_size": len(tokenizer), "d_model": 16, **layers, **ends},
        vision_config={
            "depths": [1], "patch_size": [7], "patch_stride": [16], "patch_padding": [3], "patch_prenorm": [False],
            "embed_dim": [16], "num_heads": [2], "num_groups": [2], "window_size": 2, "projection_dim": 16,
        },
        image_token_id=4, **ends,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Florence2ForConditionalGeneration(config)
    model.generation_config.forced_eos_token_id = None
    model.generation_config.suppress_tokens = list(range(len(marks)))
    # a token for each of 2 x 2 places and one for their mean
    images = CLIPImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False)
    images.image_seq_length = 5
    settings = '{"processor_class": "Florence2Processor", "post_processor_config": {"pure_text": {}}}'
    folder = saved(folder, model, tokenizer, images)
    (folder / "processor_config.json").write_text(settings)
    return folder


def make_chat(folder: Path) -> Path:
    marks = ["<pad>", "<unk>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
    marks += ["<|video_pad|>"]
    tokenizer = tokenizer_of(marks, pad="<pad>", unk="<unk>", eos="<|im_end|>")
    tokenizer.chat_template = CHAT
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    config = Qwen2_5_VLConfig(
        text_config={
            **SIZES, "vocab_size": len(tokenizer), "num_hidden_layers": 1, "num_key_value_heads": 2,
            "max_position_embeddings": 512, "rope_parameters": rope, "bos_token_id": 2, "eos_token_id": 3,
        },
        vision_config={
            "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "patch_size": 4,
            "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 16, "window_size": 16,
            "fullatt_block_indexes": [0],
        },
        image_token_id=6, video_token_id=7, vision_start_token_id=4, vision_end_token_id=5,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.suppress_tokens = list(range(len(marks)))
    images = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, size={"shortest_edge": 64, "longest_edge": 1024})
    return saved(folder, model, tokenizer, images)


def make_tagger(folder: Path, tags: Mapping[str, tuple[int, Sequence[float]]]) -> Path:
    """A tagger of 4 x 4 pixels whose probability of a tag is sigmoid(mean pixel · weights).

    Args:
        folder: is made.
        tags: tag -> its category, and the weights of a pixel's three channels in the order in which they come.
    """
    folder.mkdir()
    rows = [f"{number},{tag},{category},1" for number, (tag, (category, _)) in enumerate(tags.items())]
    (folder / "selected_tags.csv").write_text("\n".join(["tag_id,name,category,count", *rows]))
    weights = np.array([channels for _, channels in tags.values()], dtype="<f4").T
    axes = entry(5, entry(1, b"axes") + entry(8, 1) + entry(8, 2) + entry(20, 7))
    flat = entry(5, entry(1, b"keepdims") + entry(3, 0) + entry(20, 2))
    graph = node("ReduceMean", ["image"], "mean", axes + flat) + node("MatMul", ["mean", "weights"], "sums")
    graph += node("Sigmoid", ["sums"], "tags") + entry(2, b"tagger")
    graph += constant("weights", weights.shape, weights.tobytes())
    graph += entry(11, value("image", [4, 4, 3])) + entry(12, value("tags", [len(tags)]))
    (folder / "model.onnx").write_bytes(onnx_file(graph))
    return folder


def tokenizer_of(marks: Sequence[str], around: tuple[str, str] | None = None, **names: str) -> PreTrainedTokenizerFast:
    """A word a token."""
    known = {word: number for number, word in enumerate([*marks, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token=names["unk"]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if around is not None:
        ends = [(mark, known[mark]) for mark in around]
        tokenizer.post_processor = TemplateProcessing(single=f"{around[0]} $A {around[1]}", special_tokens=ends)
    image = {"image_token": names.pop("image")} if "image" in names else list(marks)
    named = {f"{name}_token": mark for name, mark in names.items()}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, extra_special_tokens=image, **named)


def saved(folder: Path, model: PreTrainedModel, *made: object) -> Path:
    with torch.no_grad():
        for parameter in model.parameters():
            # as they are drawn, they are too small for the image to matter
            parameter.mul_(GAIN if parameter.dim() > 1 else 1)
    for one in (model, *made):
        one.save_pretrained(folder)
    return folder
