"""The untrained components of the tiny base model: real diffusers and transformers classes at toy size.

64 x 64 pixels, a factor-4 autoencoder with 8 latent channels, a three-level UNet with cross-attention, a CLIP text
encoder with 24 positions and its own vocabulary of about a thousand byte-pair tokens.
"""

import json
import random
from pathlib import Path

from benchmarks.tinyBase.scenes import caption, random_scene

from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

RESOLUTION = 64
TOKENS = 24
EMBEDDING = 96
START, END = "<|startoftext|>", "<|endoftext|>"

# Ordinary words beside the captions' own, so that a user's captions do not fall apart into single letters.
COMMON_WORDS = """
a an and are art at background beside big black bottom bright brown by cartoon center chalk clean close color colorful
cream creature dark dot dots dotted drawing drawn eye eyes face figure flat four from front gray group hand happy high
icon image in ink isolated it large left light line lined lines little low middle minimal modern monster neon of old
on one outline outlined over paint painting paper pattern pencil photo picture plain poster print quality right round
scene shape sharp side simple single sketch smiling soft some standing sticker stripe striped stripes style symbol
texture the thick thin three tiny to toy two under up view very vintage watercolor wearing with
""".split()


def make_tokenizer(directory: Path) -> CLIPTokenizer:
    """Learns byte-pair merges from generated captions and writes `vocab.json` and `merges.txt` to `directory`."""
    rng = random.Random(7)
    corpus = [caption(random_scene(rng), rng) for _ in range(4000)] + COMMON_WORDS * 200
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=1100, min_frequency=2, initial_alphabet=alphabet, show_progress=False, end_of_word_suffix="</w>"
    )
    learner.train_from_iterator((text.lower() for text in corpus), trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    vocabulary = dict.fromkeys([*alphabet, *(byte + "</w>" for byte in alphabet)])
    vocabulary.update(dict.fromkeys(left + right for left, right in merges))
    vocabulary.update(dict.fromkeys((START, END)))
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "vocab.json").write_text(
        json.dumps({token: index for index, token in enumerate(vocabulary)}, ensure_ascii=False), encoding="utf-8"
    )
    (directory / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n", encoding="utf-8"
    )
    return CLIPTokenizer(
        vocab=str(directory / "vocab.json"),
        merges=str(directory / "merges.txt"),
        bos_token=START,
        eos_token=END,
        unk_token=END,
        pad_token=END,
        model_max_length=TOKENS,
    )


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A three-layer CLIP text encoder, 96 wide."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=EMBEDDING,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            projection_dim=EMBEDDING,
            hidden_act="quick_gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def make_vae() -> AutoencoderKL:
    """A KL autoencoder from 64 x 64 x 3 to 16 x 16 x 8."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=8,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        mid_block_add_attention=False,
        sample_size=RESOLUTION,
    )


def make_unet(channels: tuple[int, int, int] = (48, 96, 128), norm_groups: int = 16) -> UNet2DConditionModel:
    """A UNet on 16 x 16 latents; the outermost level is narrow and, being costly, has no attention.

    Args:
        channels: of the three levels, outermost first; each divisible by `norm_groups` and by the 4 attention heads.
        norm_groups: groups of each normalisation.
    """
    return UNet2DConditionModel(
        sample_size=RESOLUTION // 4,
        in_channels=8,
        out_channels=8,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=norm_groups,
        cross_attention_dim=EMBEDDING,
        attention_head_dim=4,
    )


def make_scheduler() -> DDIMScheduler:
    """Noise prediction on 1,000 steps; noisier at the end than Stable Diffusion, so that plain colours come out."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.025,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
