"""Small random HiDream pipelines of the real classes."""

from tests.model.flux1_models import WORDS, _disturb, _t5, _vae, t5_tokenizer

import torch

from diffusers import HiDreamImagePipeline, HiDreamImageTransformer2DModel, UniPCMultistepScheduler
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

# of three layers, one of which no block reads; the published models read all of 32, the last one in 17 blocks
LLAMA_LAYERS = [0, 2]


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """Without a token that fills texts up, as published."""
    marks = ["<|begin_of_text|>", "<|eot_id|>", "<unk>"]
    words = {word: number for number, word in enumerate([*marks, *WORDS.split()])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{marks[0]} $A", special_tokens=[(marks[0], words[marks[0]])]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=marks[0], eos_token=marks[1])


def random_hidream(clip: CLIPTokenizer, width: int = 16, heads: int = 2) -> HiDreamImagePipeline:
    """A pipeline with random weights, for images of 32 × 32 pixels.

    Args:
        clip: the tokenizer of both CLIPs.
        width: of the small CLIP, T5 and Llama; the large CLIP has as much again.
        heads: of the transformer, with 16 channels each.
    """
    t5, llama = t5_tokenizer(), llama_tokenizer()

    def encoder(own: int, act: str) -> CLIPTextModelWithProjection:
        return CLIPTextModelWithProjection(CLIPTextConfig(
            vocab_size=len(clip), hidden_size=own, intermediate_size=2 * own, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=32, projection_dim=own, hidden_act=act,
            bos_token_id=clip.bos_token_id, eos_token_id=clip.eos_token_id, pad_token_id=clip.pad_token_id,
        ))  # fmt: skip

    encoders = (
        encoder(width, "quick_gelu"), encoder(2 * width, "gelu"), _t5(t5, width),
        LlamaForCausalLM(LlamaConfig(
            vocab_size=len(llama), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3,
            num_attention_heads=2, num_key_value_heads=1, head_dim=width // 2, initializer_range=0.2,
        )),
    )  # fmt: skip
    transformer = HiDreamImageTransformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=heads, caption_channels=[width, width], text_emb_dim=3 * width, axes_dims_rope=(8, 4, 4),
        max_resolution=(12, 12), llama_layers=LLAMA_LAYERS, num_routed_experts=3,
    )  # fmt: skip
    vae = _vae()
    _disturb(transformer, vae, *encoders)
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if name.endswith("gate.weight"):
                # experts get shares that differ
                parameter.mul_(4)
    scheduler = UniPCMultistepScheduler(use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction")
    first, second, third, fourth = encoders
    pipeline = HiDreamImagePipeline(scheduler, vae, first, clip, second, clip, third, t5, fourth, llama, transformer)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.default_sample_size = 4
    return pipeline
