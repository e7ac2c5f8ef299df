from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.option import option
from modules.util.enum.OptionGroup import OptionGroup

G = OptionGroup.OPTIMIZER_MUON


class OptimizerMuonOptions(BaseConfig):
    """Options of the Muon family. null: the optimizer's own default."""

    ns_steps: int | None = option(
        None,
        "Newton–Schulz steps",
        "Iterations that make the step orthogonal. More is more exact.",
        G,
        ge=1,
        unit="steps",
    )
    accelerated_ns: bool | None = option(
        None,
        "Accelerated Newton–Schulz",
        "Uses Chebyshev coefficients that converge in fewer iterations.",
        G,
        advanced=True,
    )
    rms_rescaling: bool | None = option(
        None, "RMS rescaling", "Scales steps to the size of Adam's, so that Adam's learning rates fit.", G
    )
    normuon_variant: bool | None = option(None, "NorMuon", "Evens out the size of the step over the rows.", G)
    beta2_normuon: float | None = option(
        None, "NorMuon beta 2", "Averaging factor of those row sizes.", G, ge=0, lt=1, advanced=True
    )
    low_rank_ortho: bool | None = option(
        None,
        "Low-rank orthogonalisation",
        "Makes only a random low-rank part of the step orthogonal: faster for large matrices.",
        G,
        advanced=True,
    )
    ortho_rank: int | None = option(None, "Orthogonalisation rank", "Rank of that part.", G, ge=1, advanced=True)
    approx_mars: bool | None = option(
        None, "MARS-M", "Corrects each gradient by its change since the last step.", G, advanced=True
    )
    MuonWithAuxAdam: bool | None = option(
        None, "Auxiliary Adam", "Trains vectors, inputs and outputs with Adam and only hidden matrices with Muon.", G
    )
    muon_hidden_layers: str | None = option(
        None,
        "Muon layers",
        "Comma-separated parts of the names of layers that Muon trains. null: the model's blocks.",
        G,
        advanced=True,
    )
    muon_adam_regex: bool | None = option(
        None, "Layer patterns", "Reads `muon_hidden_layers` as regular expressions.", G, advanced=True
    )
    muon_adam_lr: float | None = option(None, "Adam learning rate", "Learning rate of the auxiliary Adam.", G, ge=0)
    muon_te1_adam_lr: float | None = option(
        None,
        "Adam learning rate, text encoder 1",
        "Learning rate of the auxiliary Adam in text encoder 1.",
        G,
        ge=0,
        advanced=True,
    )
    muon_te2_adam_lr: float | None = option(
        None,
        "Adam learning rate, text encoder 2",
        "Learning rate of the auxiliary Adam in text encoder 2.",
        G,
        ge=0,
        advanced=True,
    )
