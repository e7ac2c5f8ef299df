"""Small random Sana pipelines of the real classes."""

from modules.model.SanaModel import INSTRUCTION
from tests.model.qwen_base import unsettle

from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import Gemma2Config, Gemma2Model, PreTrainedTokenizerFast

WORDS = "a red cat blue dog shape number 0 1 2 3 4 5 6"


def sana_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each word, behind a mark, as Gemma's has it."""
    marks = ["<pad>", "<bos>", "<unk>"]
    words = {word: number for number, word in enumerate(dict.fromkeys([*marks, *WORDS.split(), *INSTRUCTION.split()]))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", words["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", unk_token="<unk>", padding_side="right"
    )


def random_sana(width: int = 16, heads: int = 2) -> SanaPipeline:
    """`width` of the text encoder, `heads` of the transformer with 16 channels each."""
    tokenizer = sana_tokenizer()
    encoder = Gemma2Model(Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, query_pre_attn_scalar=8, initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
    ))  # fmt: skip
    sides = 16 * heads
    transformer = SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=heads, attention_head_dim=16, num_layers=2,
        num_cross_attention_heads=heads, cross_attention_head_dim=16, cross_attention_dim=sides, caption_channels=width,
        mlp_ratio=2.0, sample_size=8,
    )  # fmt: skip
    vae = AutoencoderDC(
        latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8), encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1), downsample_block_type="conv",
        upsample_block_type="interpolate", scaling_factor=0.41407,
    )  # fmt: skip
    unsettle(transformer, vae, encoder)
    scheduler = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction", timestep_spacing="linspace"
    )
    pipeline = SanaPipeline(tokenizer, encoder.eval(), vae.eval(), transformer.eval(), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
