from functools import partial

from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.option import nested, option
from modules.util.config.TrainEmbeddingConfig import TrainEmbeddingConfig
from modules.util.enum.DataType import DataType
from modules.util.enum.LoRAInit import LoRAInit
from modules.util.enum.OFTScaleMode import OFTScaleMode
from modules.util.enum.OFTSide import OFTSide
from modules.util.enum.OptionGroup import OptionGroup
from modules.util.enum.PeftType import PeftType
from modules.util.enum.PortableCopy import PortableCopy
from modules.util.enum.TrainingMethod import TrainingMethod

G = OptionGroup.ADAPTER
LAYERS = OptionGroup.LAYERS
EMBEDDING = OptionGroup.EMBEDDING
ADAPTER = {"training_method": (TrainingMethod.LORA,)}
LORA = ADAPTER | {"peft_type": (PeftType.LORA,)}
LOW_RANK = ADAPTER | {"peft_type": (PeftType.LORA, PeftType.LOHA)}
SCALED = ADAPTER | {"peft_type": (PeftType.LORA, PeftType.LOHA, PeftType.LOKR)}
DORA = ADAPTER | {"peft_type": (PeftType.LORA, PeftType.OFT_2)}
DECOMPOSED = DORA | {"lora_decompose": (True,)}
OFT = ADAPTER | {"peft_type": (PeftType.OFT_2,)}
LOKR = ADAPTER | {"peft_type": (PeftType.LOKR,)}
layer_option = partial(option, group=LAYERS)
adapter_option = partial(option, group=G, visible_when=ADAPTER)
advanced_adapter_option = partial(option, group=G, visible_when=ADAPTER, advanced=True)
oft_option = partial(option, group=G, visible_when=OFT)
lokr_option = partial(option, group=G, visible_when=LOKR)
advanced_lokr_option = partial(option, group=G, visible_when=LOKR, advanced=True)
embedding_option = partial(option, group=EMBEDDING)
advanced_embedding_option = partial(option, group=EMBEDDING, advanced=True)


class AdapterOptions(BaseConfig):
    """The adapter, the layers it sits on, and embeddings."""

    layer_filter: str = layer_option(
        "", "Layers", "Comma-separated parts of layer names that are trained. Empty: all layers."
    )
    layer_filter_preset: str = layer_option(
        "full",
        "Layer preset",
        "A named selection of the model family; custom uses `layer_filter` as it stands.",
        choices=("full", "attn-mlp", "attn-only", "blocks", "custom"),
    )
    layer_filter_regex: bool = layer_option(
        False,
        "Regular expressions",
        "Reads `layer_filter` as comma-separated regular expressions. Commas inside of brackets belong to them.",
    )

    peft_type: PeftType = adapter_option(
        PeftType.LORA,
        "Adapter",
        "LORA adds a low-rank matrix, LOHA and LOKR products of smaller ones, OFT_2 rotates the layer's input.",
    )
    lora_model_name: str = adapter_option(
        "", "Start from", "An adapter file to continue from. Empty: a fresh adapter.", path="file"
    )
    lora_rank: int = adapter_option(
        16,
        "Rank",
        "Rank of the adapter's matrices. Higher can hold more and makes the file larger.",
        ge=1,
        le=32768,
        visible_when=LOW_RANK,
    )
    lora_alpha: float = adapter_option(
        1.0,
        "Alpha",
        "The adapter's output is multiplied by alpha/rank. Scaling alpha acts like scaling the learning rate "
        "and the initial weights.",
        gt=0,
        visible_when=SCALED,
    )
    lora_decompose: bool = adapter_option(
        False,
        "DoRA",
        "Trains direction and magnitude of each weight vector apart (DoRA). Closer to full fine-tuning, slower.",
        visible_when=DORA,
    )
    lora_init: LoRAInit = advanced_adapter_option(
        LoRAInit.KAIMING,
        "Start values",
        "KAIMING draws the down matrix uniformly in ±1/√fan_in, as kohya and OneTrainer do; NORMAL with variance "
        "1/fan_in, for which scaled optimizers' law of output variance is exact; ORTHONORMAL gives the up matrix "
        "orthonormal columns and starts the down matrix at zero, as Stiefel-LoRA needs it.",
        visible_when=LORA,
    )
    lora_init_scale: float = advanced_adapter_option(
        1.0,
        "Start scale",
        "Multiplies the start values that are not zero. With another alpha, 1/√k for an alpha k times as large makes "
        "training the same as before; scripts/convert_adapter.py rebases presets so.",
        gt=0,
        visible_when=LOW_RANK,
    )
    lora_decompose_norm_epsilon: bool = advanced_adapter_option(
        True,
        "DoRA epsilon",
        "Adds a tiny number to DoRA's norms, so that zero columns do no harm.",
        visible_when=DECOMPOSED,
    )
    lora_decompose_output_axis: bool = advanced_adapter_option(
        False,
        "DoRA on outputs",
        "Takes a magnitude per output instead of per input. ComfyUI reproduces the input axis "
        "from every format, the output axis from COMFY_LORA, which is adjusted for it, and only roughly from others.",
        visible_when=LORA | {"lora_decompose": (True,)},
    )
    lora_weight_dtype: DataType = advanced_adapter_option(
        DataType.FLOAT_32, "Adapter dtype", "Number format of the adapter's trained weights."
    )
    dropout_probability: float = advanced_adapter_option(
        0.0,
        "Dropout",
        "Share of the adapter's inputs that are zeroed in a step, against overfitting. OFT leaves out whole rotations.",
        ge=0,
        lt=1,
    )
    bundle_additional_embeddings: bool = advanced_adapter_option(
        True, "Bundle embeddings", "Stores additional embeddings inside the adapter file.", affects_result=False
    )

    oft_block_size: int = oft_option(
        32, "Block size", "Edge of each rotation. Larger blocks can hold more and cost more.", ge=2, le=32768
    )
    oft_side: OFTSide = oft_option(
        OFTSide.INPUT,
        "Rotated side",
        "INPUT rotates what goes into a layer (OFTv2, as OneTrainer and peft do), OUTPUT what comes out of it, which "
        "stock ComfyUI can load.",
    )
    oft_kernels: bool = advanced_adapter_option(
        False,
        "Rotate whole kernels",
        "Rotates all in·kh·kw numbers of a convolution's kernels, as OneTrainer and peft do, instead of its input "
        "channels. OneTrainer reads and continues adapters of convolutions only so. Linear layers are the same.",
        visible_when=OFT | {"oft_side": (OFTSide.INPUT,)},
    )
    oft_cayley_neumann: bool = oft_option(
        False,
        "Neumann series",
        "Approximates the rotation by five terms of a series, as OneTrainer does, instead of computing it exactly.",
        advanced=True,
    )
    oft_block_share: bool = oft_option(
        False, "Share blocks", "Uses one rotation for all blocks of a layer: a very small adapter."
    )
    oft_scaled: bool = oft_option(
        False,
        "Scaled OFT",
        "Divides the trained weights by a number of the block size, so that one learning rate suits every block size.",
    )
    oft_scale_mode: OFTScaleMode = advanced_adapter_option(
        OFTScaleMode.ELEMENTS,
        "OFT scale",
        "What scaled OFT divides by, for block size b: ELEMENTS √(b(b−1)/2), ROW 2√(b−1) as OneTrainer does.",
        visible_when=OFT | {"oft_scaled": (True,)},
    )

    portable_copy: PortableCopy = advanced_adapter_option(
        PortableCopy.NONE,
        "Portable copy",
        "Writes a second file beside the adapter, for programs that do not know its kind: DIFF holds each layer's "
        "exact change and is as large as the layers, LORA the best LoRA of `portable_copy_rank`; its error is told.",
        affects_result=False,
    )
    portable_copy_rank: int = advanced_adapter_option(
        64,
        "Rank of the copy",
        "Rank of the LoRA that is written as a portable copy.",
        ge=1,
        le=32768,
        visible_when=ADAPTER | {"portable_copy": (PortableCopy.LORA,)},
        affects_result=False,
    )

    lokr_dim: int = lokr_option(16, "LoKr rank", "Rank of LoKr's second factor.", ge=1)
    lokr_decompose_both: bool = advanced_lokr_option(
        False, "Decompose both", "Makes LoKr's first factor low-rank, too."
    )
    lokr_decompose_factor: int = lokr_option(
        -1, "LoKr factor", "Size of LoKr's first factor; −1 makes both factors about equal.", ge=-1
    )
    lokr_use_tucker: bool = advanced_lokr_option(
        False, "Tucker", "Factors convolution kernels by the Tucker decomposition."
    )
    lokr_weight_decompose: bool = lokr_option(
        False, "LoKr DoRA", "Trains direction and magnitude of each weight vector apart."
    )
    lokr_dora_on_output: bool = advanced_adapter_option(
        True,
        "LoKr DoRA on outputs",
        "Takes a magnitude per output instead of per input.",
        visible_when=LOKR | {"lokr_weight_decompose": (True,)},
    )
    lokr_full_matrix: bool = advanced_lokr_option(
        False, "LoKr full matrix", "Keeps LoKr's second factor whole instead of low-rank."
    )
    lokr_vec_trick: bool = advanced_lokr_option(
        True, "LoKr fast product", "Multiplies by the factors one after the other, without building the whole matrix."
    )

    embedding_learning_rate: float | None = embedding_option(
        None, "Embedding learning rate", "Learning rate of embeddings. null: the run's `learning_rate`.", ge=0
    )
    preserve_embedding_norm: bool = advanced_embedding_option(
        False, "Preserve norm", "Keeps embeddings as long as the text encoder's own are on average."
    )
    embedding: TrainEmbeddingConfig = nested(
        TrainEmbeddingConfig,
        "Embedding",
        "The embedding that the method EMBEDDING trains.",
        EMBEDDING,
        {"visible_when": {"training_method": (TrainingMethod.EMBEDDING,)}},
    )
    additional_embeddings: list[TrainEmbeddingConfig] = advanced_embedding_option(
        list, "Additional embeddings", "Embeddings that are trained or used beside the main method."
    )
    embedding_weight_dtype: DataType = advanced_embedding_option(
        DataType.FLOAT_32, "Embedding dtype", "Number format of trained embeddings."
    )
