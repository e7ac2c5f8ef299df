"""Small random Ernie-Image pipelines of the real classes."""

import torch

from diffusers import (
    AutoencoderKLFlux2,
    ErnieImagePipeline,
    ErnieImageTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import Mistral3Config, Mistral3Model, PreTrainedTokenizerFast

_WORDS = "<pad> <s> </s> <unk> a red cat blue dog shape number 0 1 2 3 4 5 6"


def ernie_tokenizer() -> PreTrainedTokenizerFast:
    """As the published one it puts a mark before each text, and none behind it."""
    words = {word: number for number, word in enumerate(_WORDS.split())}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", words["<s>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        padding_side="left",
    )  # fmt: skip


def random_ernie(width: int = 16, heads: int = 2) -> ErnieImagePipeline:
    """`width` of the text encoder, `heads` of the transformer with 16 channels each."""
    tokenizer = ernie_tokenizer()
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": 2, "head_dim": 8}
    encoder = Mistral3Model(Mistral3Config(
        text_config={
            **sizes, "model_type": "ministral3", "num_key_value_heads": 1, "num_hidden_layers": 3,
            "vocab_size": len(tokenizer), "initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 1,
            "eos_token_id": 2, "tie_word_embeddings": True,
        },
        vision_config={**sizes, "model_type": "pixtral", "num_hidden_layers": 1, "image_size": 16, "patch_size": 8},
    ))  # fmt: skip
    transformer = ErnieImageTransformer2DModel(
        hidden_size=16 * heads, num_attention_heads=heads, num_layers=2, ffn_hidden_size=32 * heads, in_channels=16,
        out_channels=16, text_in_dim=width, rope_axes_dim=(4, 6, 6),
    )  # fmt: skip
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1,
        block_out_channels=(8, 16), norm_num_groups=4, latent_channels=4, sample_size=64,
        # the model does not use it
        batch_norm_eps=0.1,
    )  # fmt: skip
    with torch.no_grad():
        # zeros at the start of a training
        for layer in (transformer.adaLN_modulation[-1], transformer.final_linear):
            layer.weight.normal_(std=0.2)
        for module in (transformer, vae, encoder):
            for parameter in module.parameters():
                # fresh norms and biases are ones and zeros, among which a wrong order would not show
                if parameter.dim() == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        vae.bn.running_mean.normal_()
        vae.bn.running_var.uniform_(0.2, 3.0)
    return ErnieImagePipeline(
        transformer.eval(), vae.eval(), encoder.eval(), tokenizer,
        # as published: one shift for all sizes, and others named
        FlowMatchEulerDiscreteScheduler(shift=4.0, base_image_seq_len=4, max_image_seq_len=64),
    )  # fmt: skip
