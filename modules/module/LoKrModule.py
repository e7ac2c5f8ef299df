import math
from collections.abc import Collection, Mapping
from typing import Any, Self

from modules.module.AdapterModule import AdaptedLayer
from modules.module.DeltaModule import DeltaModule
from modules.module.dense_weight import weight_shape
from modules.module.FileKind import ALPHA
from modules.module.lokr_form import T2, W1, W1_A, W1_B, W2, W2_A, W2_B, LoKrForm, form_of_options, form_of_parts
from modules.module.LoKrFileKind import LoKrFileKind
from modules.module.LoRAModule import padded
from modules.module.magnitude import DORA_SCALE, kronecker_change, magnitude_of
from modules.module.MagnitudeMixin import MagnitudeMixin
from modules.module.part_checks import check_names, fitted, for_layer, number
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ParameterRole import ParameterRole
from modules.util.enum.PeftType import PeftType
from modules.util.keyed_random import layer_generator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FACTORS = (W1, W1_A, W1_B, W2, W2_A, W2_B, T2)


class LoKrModule(MagnitudeMixin, DeltaModule):
    """LoKr: W' = W + s·kron(w1, w2), as in LyCORIS (arXiv 2309.14859); shapes and forms are those of `lokr_form`.

    s is alpha/rank, and 1 if both factors are whole: alpha is then kept as the rank, and readers ignore it. One tensor
    of w2 starts at zero, the others uniform (Kaiming with a = √5). The start values depend on seed, component and layer
    name only. With a magnitude it is the DoRA of that ΔW, see `MagnitudeMixin`.

    Args:
        layer: the frozen layer.
        component: the layer's, for names.
        layer_name: module path inside the component.
        form: of the factors.
        rank: of the config, for alpha.
        alpha: more than 0.
        dropout: in [0, 1), share of the adapter's inputs that are zeroed while training.
        vec_trick: multiplies by the factors one after the other; kron(w1, w2) is never formed. Convolutions with groups
            form it all the same.
        dora_on_output: None for no DoRA, else whether its magnitude is per output.
        norm_epsilon: adds float32's epsilon, 1.2e-7, to the norms.
        dtype: of the factors.
        seed: of the run.
    """

    file_kinds = (LoKrFileKind(),)
    size_option = "lokr_dim"
    strength_parts = (W1, W1_A)

    def __init__(
        self,
        layer: AdaptedLayer,
        component: str,
        layer_name: str,
        *,
        form: LoKrForm,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        vec_trick: bool = True,
        dora_on_output: bool | None = None,
        norm_epsilon: bool = True,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        super().__init__(layer, component, layer_name, dropout)
        self.vec_trick = vec_trick
        self.register_buffer(ALPHA, torch.tensor(float(alpha)))
        self._take_form(form, dtype, rank)
        self._draw(layer_generator(seed, self.full_name))
        if dora_on_output is not None:
            self.start_magnitude(layer, dora_on_output, norm_epsilon)
            self.part_names = {**self.part_names, DORA_SCALE: "magnitude"}

    @classmethod
    def own_arguments(cls, layer: AdaptedLayer, config: TrainConfig, seed: int) -> dict[str, Any]:
        form = form_of_options(
            weight_shape(layer),
            config.lokr_dim,
            config.lokr_decompose_factor,
            config.lokr_decompose_both,
            config.lokr_full_matrix,
            config.lokr_use_tucker,
        )
        size = {"form": form, "rank": config.lokr_dim, "alpha": config.lora_alpha}
        dora = config.lokr_dora_on_output if config.lokr_weight_decompose else None
        how = {"dora_on_output": dora, "norm_epsilon": config.lora_decompose_norm_epsilon}
        return {**size, **how, "vec_trick": config.lokr_vec_trick, "seed": seed}

    @classmethod
    def create(cls, layer: AdaptedLayer, component: str, layer_name: str, config: TrainConfig, seed: int) -> Self:
        adapter = super().create(layer, component, layer_name, config, seed)
        form = adapter.form
        if form.right_rank is None and not config.lokr_full_matrix:
            adapter.notes["whole"] = (
                f"{adapter.full_name}: lokr_dim {config.lokr_dim} is at least half of LoKr's second factor "
                f"{' x '.join(map(str, form.right))}, which is kept whole"
            )
        return adapter

    @classmethod
    def recognizes(cls, names: Collection[str]) -> bool:
        return any(name in names for name in FACTORS)

    @classmethod
    def options_of(cls, parts: Mapping[str, Tensor], layer: AdaptedLayer) -> dict[str, Any]:
        """Options near to the file's form, which `load_parts` then gives the adapter exactly."""
        form = form_of_parts(parts, weight_shape(layer))
        options: dict[str, Any] = {
            "peft_type": PeftType.LOKR,
            "lokr_decompose_factor": max(form.left),
            "lokr_decompose_both": form.left_rank is not None,
            "lokr_full_matrix": form.rank is None,
            "lokr_use_tucker": form.tucker,
            "lokr_weight_decompose": DORA_SCALE in parts,
        }
        if form.rank is not None:
            options |= {"lokr_dim": form.rank, "lora_alpha": number(parts, ALPHA, form.rank)}
        if DORA_SCALE in parts:
            options["lokr_dora_on_output"] = magnitude_of(parts, weight_shape(layer))[1]
        return options

    def factors(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, self.part_names[part]) for part in self.form.shapes())

    def direction(self) -> Collection[Tensor]:
        return *self.factors(), self.alpha

    def squared_norm_change(self) -> Tensor:
        w1, w2 = self._whole(self.factors())
        return kronecker_change(self.layer, w1, w2, self.scale, self.output_axis)

    def build(self, *factors: Tensor) -> Tensor:
        w1, w2 = self._whole(factors)
        return torch.kron(w1.reshape(*w1.shape, *(1 for _ in self.form.kernel)), self.scale * w2)

    def delta_weight(self) -> Tensor:
        return self.with_magnitude(super().delta_weight())

    def forward(self, x: Tensor) -> Tensor:
        inputs = self.on_scaled_inputs()
        if inputs is not None:
            x = (x * (inputs if x.dim() < 4 else inputs.view(-1, 1, 1))).to(x.dtype)
        layer = self.layer
        if self.vec_trick and (isinstance(layer, nn.Linear) or layer.groups == 1):
            y = self._original_forward(x)
            if self.dropout and self.training:
                x = F.dropout(x, self.dropout)
            x = x.to(y.dtype)
            term = self._linear_term(x) if isinstance(layer, nn.Linear) else self._conv_term(x)
            y = torch.add(y, term, alpha=self.scale)
        else:
            y = self.delta_forward(x)
        return self.with_scaled_outputs(y)

    @torch.no_grad()
    def load_parts(self, parts: Mapping[str, Tensor]) -> None:
        """Takes over factors, alpha and magnitude, and the file's form: its trained tensors may be replaced."""
        if self.has_magnitude:
            parts = self.load_magnitude(parts, "lokr_dora_on_output")
        check_names(self, parts, (), (*FACTORS, ALPHA), "LoKr")
        with for_layer(self):
            form = form_of_parts(parts, weight_shape(self.layer))
        rank = form.rank or self.rank
        if form != self.form:
            self._take_form(form, self.factors()[0].dtype, rank)
        self._fill(parts, rank)

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes over what `state` gave; the form must be the same."""
        if self.has_magnitude:
            state = self.load_magnitude(state, "lokr_dora_on_output")
        check_names(self, state, self.form.shapes(), (*self.form.shapes(), ALPHA), "LoKr of this form")
        self._fill(state, self.rank)

    def _fill(self, parts: Mapping[str, Tensor], rank: int) -> None:
        for part, shape in self.form.shapes().items():
            tensor, target = parts[part], getattr(self, self.part_names[part])
            # low-rank factors of convolutions have four axes in some files
            target.copy_(fitted(self, tensor.flatten(1) if len(shape) == 2 < tensor.dim() else tensor, target, part))
        with for_layer(self):
            self.alpha.fill_(number(parts, ALPHA, rank))
        self.scale = self._scale()

    def _take_form(self, form: LoKrForm, dtype: torch.dtype, rank: int) -> None:
        """Gives the adapter trained tensors of that form, all zero."""
        for name in [name for name in self._parameters if name != "magnitude"]:
            delattr(self, name)
        self.form, self.rank = form, rank
        magnitude = {DORA_SCALE: "magnitude"} if self.has_magnitude else {}
        self.part_names = {part: part.removeprefix("lokr_") for part in form.shapes()} | {ALPHA: ALPHA} | magnitude
        for part, shape in form.shapes().items():
            self.add(part, self.part_names[part], torch.zeros(shape, dtype=dtype), _role(part, form.tucker))
        if form.rank is None:
            self.alpha.fill_(rank)
        self.scale = self._scale()

    @torch.no_grad()
    def _draw(self, generator: torch.Generator) -> None:
        zero = W2 if self.form.right_rank is None else W2_B
        if self.layer.weight.device.type == "meta":
            return
        for part, shape in self.form.shapes().items():
            if part != zero:
                values = nn.init.kaiming_uniform_(torch.empty(shape), a=math.sqrt(5), generator=generator)
                getattr(self, self.part_names[part]).copy_(values)

    def _scale(self) -> float:
        return self.alpha.item() / self.form.rank if self.form.rank else 1.0

    def _whole(self, factors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """w1 `[o1, i1]` and w2 `[o2, i2(, h, w)]` of the trained tensors, float32."""
        own = {part: factor.float() for part, factor in zip(self.form.shapes(), factors, strict=True)}
        w1 = own[W1] if W1 in own else torch.mm(own[W1_A], own[W1_B])
        if W2 in own:
            return w1, own[W2]
        if T2 in own:
            # kron wants memory in order
            return w1, torch.einsum("pqhw,po,qi->oihw", own[T2], own[W2_A], own[W2_B]).contiguous()
        return w1, torch.mm(own[W2_A], own[W2_B]).view(*self.form.right, *self.form.kernel)

    def _cast(self, dtype: torch.dtype) -> dict[str, Tensor]:
        own = dict(zip(self.form.shapes(), (factor.to(dtype) for factor in self.factors()), strict=True))
        if W1 not in own:
            own[W1] = torch.mm(own[W1_A], own[W1_B])
        return own

    def _linear_term(self, x: Tensor) -> Tensor:
        """kron(w1, w2)·x of each row: w2·X·w1ᵀ, where X `[i2, i1]` is the row as a matrix."""
        own, (o1, i1), (o2, i2) = self._cast(x.dtype), self.form.left, self.form.right
        right = own[W2] if W2 in own else own[W2_B]  # [m, i2]: all of w2, or its first half
        hidden = F.linear(x.reshape(-1, i2), right)  # [n·i1, m]
        hidden = hidden.view(-1, i1, len(right)).transpose(1, 2)
        hidden = F.linear(hidden.reshape(-1, i1), own[W1]).view(-1, len(right), o1).transpose(1, 2)  # [n, o1, m]
        if W2 not in own:
            hidden = F.linear(hidden.reshape(-1, len(right)), own[W2_A])
        return hidden.reshape(*x.shape[:-1], o1 * o2)

    def _conv_term(self, x: Tensor) -> Tensor:
        """The same for convolutions: w1 mixes groups of channels, w2 is a convolution within each."""
        own, (o1, i1), (o2, i2) = self._cast(x.dtype), self.form.left, self.form.right
        x, geometry = padded(x, self.layer)
        grouped = x.reshape(-1, i2, *x.shape[2:])  # [b·i1, i2, h, w]
        if T2 in own:
            grouped = F.conv2d(grouped, own[W2_B][..., None, None])
            grouped = F.conv2d(grouped, own[T2], None, *geometry)
        else:
            kernel = own[W2] if W2 in own else own[W2_B].view(-1, i2, *self.form.kernel)
            grouped = F.conv2d(grouped, kernel, None, *geometry)
        size = grouped.shape[1:]
        mixed = torch.matmul(own[W1], grouped.reshape(len(x), i1, -1)).view(-1, *size)  # [b·o1, m, h', w']
        if W2 not in own:
            last = own[W2_A].t() if T2 in own else own[W2_A]
            mixed = F.conv2d(mixed, last[..., None, None])
        return mixed.reshape(len(x), o1 * o2, *size[1:])


def _role(part: str, tucker: bool) -> ParameterRole:
    """By where the ranks are: rows of the tensor for LORA_DOWN, columns for LORA_UP."""
    if part in (W1, W2, T2):
        return ParameterRole.HIDDEN
    down = part.endswith("_b") or (tucker and part == W2_A)
    return ParameterRole.LORA_DOWN if down else ParameterRole.LORA_UP
