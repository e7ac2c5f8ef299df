from dataclasses import dataclass


@dataclass(frozen=True)
class AdapterLayout:
    """How a file format wants the parts of an adapter. Each `FileKind` brings its parts into that form.

    Attributes:
        a_b: a LoRA's factors are called lora_A and lora_B, as peft calls them.
        peft: alpha is multiplied into the weights, as the format has no place for it, and the magnitude of a DoRA on
            outputs is a vector in peft's shape and under peft's name.
        base_norm: the magnitude of a DoRA on outputs is made for a reader that divides by ‖W‖; see `base_norm.py`.
        cores: Tucker cores of Kronecker factors stay, which ComfyUI cannot load (it gives `torch.kron` a transposed
            tensor).
        kernels: factors of convolutions have four axes where OneTrainer keeps them so, see
            `FileKind.onetrainer_kernels`; ComfyUI multiplies matrices.
    """

    a_b: bool = False
    peft: bool = False
    base_norm: bool = False
    cores: bool = False
    kernels: bool = False
