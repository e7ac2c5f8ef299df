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


class AdapterOptions(BaseConfig):
    """The adapter, the layers it sits on, and embeddings."""

    layer_filter: str = option(
        "", "Layers", "Comma-separated parts of layer names that are trained. Empty: all layers.", LAYERS
    )
    layer_filter_preset: str = option(
        "full",
        "Layer preset",
        "A named selection of the model family; custom uses `layer_filter` as it stands.",
        LAYERS,
        choices=("full", "attn-mlp", "attn-only", "blocks", "custom"),
    )
    layer_filter_regex: bool = option(
        False,
        "Regular expressions",
        "Reads `layer_filter` as comma-separated regular expressions. Commas inside of brackets belong to them.",
        LAYERS,
    )

    peft_type: PeftType = option(
        PeftType.LORA,
        "Adapter",
        "LORA adds a low-rank matrix, LOHA and LOKR products of smaller ones, OFT_2 rotates the layer's input.",
        G,
        visible_when=ADAPTER,
    )
    lora_model_name: str = option(
        "",
        "Start from",
        "An adapter file to continue from. Empty: a fresh adapter.",
        G,
        path="file",
        visible_when=ADAPTER,
    )
    lora_rank: int = option(
        16,
        "Rank",
        "Rank of the adapter's matrices. Higher can hold more and makes the file larger.",
        G,
        ge=1,
        le=32768,
        visible_when=LOW_RANK,
    )
    lora_alpha: float = option(
        1.0,
        "Alpha",
        "The adapter's output is multiplied by alpha/rank. Scaling alpha acts like scaling the learning rate "
        "and the initial weights.",
        G,
        gt=0,
        visible_when=SCALED,
    )
    lora_decompose: bool = option(
        False,
        "DoRA",
        "Trains direction and magnitude of each weight vector apart (DoRA). Closer to full fine-tuning, slower.",
        G,
        visible_when=DORA,
    )
    lora_init: LoRAInit = option(
        LoRAInit.KAIMING,
        "Start values",
        "KAIMING draws the down matrix uniformly in ±1/√fan_in, as kohya and OneTrainer do; NORMAL with variance "
        "1/fan_in, for which scaled optimizers' law of output variance is exact; ORTHONORMAL gives the up matrix "
        "orthonormal columns and starts the down matrix at zero, as Stiefel-LoRA needs it.",
        G,
        visible_when=LORA,
        advanced=True,
    )
    lora_init_scale: float = option(
        1.0,
        "Start scale",
        "Multiplies the start values that are not zero. With another alpha, 1/√k for an alpha k times as large makes "
        "training the same as before; scripts/convert_adapter.py rebases presets so.",
        G,
        gt=0,
        visible_when=LOW_RANK,
        advanced=True,
    )
    lora_decompose_norm_epsilon: bool = option(
        True,
        "DoRA epsilon",
        "Adds a tiny number to DoRA's norms, so that zero columns do no harm.",
        G,
        visible_when=DECOMPOSED,
        advanced=True,
    )
    lora_decompose_output_axis: bool = option(
        False,
        "DoRA on outputs",
        "Takes a magnitude per output instead of per input. ComfyUI reproduces the input axis "
        "from every format, the output axis from COMFY_LORA, which is adjusted for it, and only roughly from others.",
        G,
        visible_when=LORA | {"lora_decompose": (True,)},
        advanced=True,
    )
    lora_weight_dtype: DataType = option(
        DataType.FLOAT_32,
        "Adapter dtype",
        "Number format of the adapter's trained weights.",
        G,
        visible_when=ADAPTER,
        advanced=True,
    )
    dropout_probability: float = option(
        0.0,
        "Dropout",
        "Share of the adapter's inputs that are zeroed in a step, against overfitting. OFT leaves out whole rotations.",
        G,
        ge=0,
        lt=1,
        visible_when=ADAPTER,
        advanced=True,
    )
    bundle_additional_embeddings: bool = option(
        True,
        "Bundle embeddings",
        "Stores additional embeddings inside the adapter file.",
        G,
        visible_when=ADAPTER,
        affects_result=False,
        advanced=True,
    )

    oft_block_size: int = option(
        32,
        "Block size",
        "Edge of each rotation. Larger blocks can hold more and cost more.",
        G,
        ge=2,
        le=32768,
        visible_when=OFT,
    )
    oft_side: OFTSide = option(
        OFTSide.INPUT,
        "Rotated side",
        "INPUT rotates what goes into a layer (OFTv2, as OneTrainer and peft do), OUTPUT what comes out of it, which "
        "stock ComfyUI can load.",
        G,
        visible_when=OFT,
    )
    oft_kernels: bool = option(
        False,
        "Rotate whole kernels",
        "Rotates all in·kh·kw numbers of a convolution's kernels, as OneTrainer and peft do, instead of its input "
        "channels. OneTrainer reads and continues adapters of convolutions only so. Linear layers are the same.",
        G,
        visible_when=OFT | {"oft_side": (OFTSide.INPUT,)},
        advanced=True,
    )
    oft_cayley_neumann: bool = option(
        False,
        "Neumann series",
        "Approximates the rotation by five terms of a series, as OneTrainer does, instead of computing it exactly.",
        G,
        visible_when=OFT,
        advanced=True,
    )
    oft_block_share: bool = option(
        False, "Share blocks", "Uses one rotation for all blocks of a layer: a very small adapter.", G, visible_when=OFT
    )
    oft_scaled: bool = option(
        False,
        "Scaled OFT",
        "Divides the trained weights by a number of the block size, so that one learning rate suits every block size.",
        G,
        visible_when=OFT,
    )
    oft_scale_mode: OFTScaleMode = option(
        OFTScaleMode.ELEMENTS,
        "OFT scale",
        "What scaled OFT divides by, for block size b: ELEMENTS √(b(b−1)/2), ROW 2√(b−1) as OneTrainer does.",
        G,
        visible_when=OFT | {"oft_scaled": (True,)},
        advanced=True,
    )

    portable_copy: PortableCopy = option(
        PortableCopy.NONE,
        "Portable copy",
        "Writes a second file beside the adapter, for programs that do not know its kind: DIFF holds each layer's "
        "exact change and is as large as the layers, LORA the best LoRA of `portable_copy_rank`; its error is told.",
        G,
        visible_when=ADAPTER,
        affects_result=False,
        advanced=True,
    )
    portable_copy_rank: int = option(
        64,
        "Rank of the copy",
        "Rank of the LoRA that is written as a portable copy.",
        G,
        ge=1,
        le=32768,
        visible_when=ADAPTER | {"portable_copy": (PortableCopy.LORA,)},
        affects_result=False,
        advanced=True,
    )

    lokr_dim: int = option(16, "LoKr rank", "Rank of LoKr's second factor.", G, ge=1, visible_when=LOKR)
    lokr_decompose_both: bool = option(
        False, "Decompose both", "Makes LoKr's first factor low-rank, too.", G, visible_when=LOKR, advanced=True
    )
    lokr_decompose_factor: int = option(
        -1,
        "LoKr factor",
        "Size of LoKr's first factor; −1 makes both factors about equal.",
        G,
        ge=-1,
        visible_when=LOKR,
    )
    lokr_use_tucker: bool = option(
        False, "Tucker", "Factors convolution kernels by the Tucker decomposition.", G, visible_when=LOKR, advanced=True
    )
    lokr_weight_decompose: bool = option(
        False, "LoKr DoRA", "Trains direction and magnitude of each weight vector apart.", G, visible_when=LOKR
    )
    lokr_dora_on_output: bool = option(
        True,
        "LoKr DoRA on outputs",
        "Takes a magnitude per output instead of per input.",
        G,
        visible_when=LOKR | {"lokr_weight_decompose": (True,)},
        advanced=True,
    )
    lokr_full_matrix: bool = option(
        False,
        "LoKr full matrix",
        "Keeps LoKr's second factor whole instead of low-rank.",
        G,
        visible_when=LOKR,
        advanced=True,
    )
    lokr_vec_trick: bool = option(
        True,
        "LoKr fast product",
        "Multiplies by the factors one after the other, without building the whole matrix.",
        G,
        visible_when=LOKR,
        advanced=True,
    )

    embedding_learning_rate: float | None = option(
        None,
        "Embedding learning rate",
        "Learning rate of embeddings. null: the run's `learning_rate`.",
        EMBEDDING,
        ge=0,
    )
    preserve_embedding_norm: bool = option(
        False,
        "Preserve norm",
        "Keeps embeddings as long as the text encoder's own are on average.",
        EMBEDDING,
        advanced=True,
    )
    embedding: TrainEmbeddingConfig = nested(
        TrainEmbeddingConfig,
        "Embedding",
        "The embedding that the method EMBEDDING trains.",
        EMBEDDING,
        {"visible_when": {"training_method": (TrainingMethod.EMBEDDING,)}},
    )
    additional_embeddings: list[TrainEmbeddingConfig] = option(
        list,
        "Additional embeddings",
        "Embeddings that are trained or used beside the main method.",
        EMBEDDING,
        advanced=True,
    )
    embedding_weight_dtype: DataType = option(
        DataType.FLOAT_32, "Embedding dtype", "Number format of trained embeddings.", EMBEDDING, advanced=True
    )
