from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

from modules.module.dense_weight import is_quantized
from modules.module.FileKind import FileKind
from modules.util.config.TrainConfig import TrainConfig
from modules.util.dtypes import FLOAT_DTYPES
from modules.util.enum.ParameterRole import ParameterRole
from modules.util.ParameterInfo import ParameterInfo, layer_path, set_parameter_info
from modules.util.UserError import UserError

import torch
from torch import Tensor, nn

AdaptedLayer = nn.Linear | nn.Conv2d


class UnfitLayerError(UserError):
    """A layer on which no adapter of the kind can sit, of whatever size.

    Args:
        reason: names the layer; no full stop.
        advice: what to do, a sentence.
    """

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(f"{reason}. {advice}")
        self.reason = reason


class AdapterModule(nn.Module, ABC):
    """A trainable change of one frozen `nn.Linear` or `nn.Conv2d`.

    The adapter is no part of the base model: it replaces the layer's `forward` while it is hooked, and the layer's
    state dict stays what it was. `train()` and `eval()` of the adapter (not of the base model) turn dropout on and
    off, as frozen models are usually left in eval mode.

    A kind of adapter is one subclass in one file, and one entry in `kinds.ADAPTER_CLASSES`.

    An adapter has two faces: `parts`, what files hold and other programs read, and `state`, the raw tensors with which
    a run is resumed to the bit. For most kinds they are the same.

    Attributes:
        file_kinds: what files know of the kind; several where the options decide it.
        size_option: option of the config that says how large it is: its rank or block size.
        part_names: names of the raw tensors (OneTrainer's internal spelling) -> attribute that holds it.
        strength_parts: names in files of tensors whose multiple is a weaker or stronger adapter, as long as it has no
            magnitude: ΔW, or the tangent of a rotation's half angle, is proportional to each of them.
        factored: whether ΔW is made of trained tensors, and is none itself.
        notes: what came up while the adapter was made -> the remark for the user, which names the layer; may be empty.
            A run says each once, with the first layer, whatever the number of layers.
        strength: share of ΔW that is applied, for kinds in which no tensor stands for it; set it before hooking.
        neumann: whether a rotation is the Neumann series; None for other kinds.
        kernels: whether a rotation turns whole kernels; None for other kinds.
    """

    file_kinds: ClassVar[tuple[FileKind, ...]] = ()
    size_option: ClassVar[str] = ""
    part_names: ClassVar[Mapping[str, str]] = {}
    strength_parts: ClassVar[Collection[str]] = ()
    factored: ClassVar[bool] = True
    neumann: bool | None = None
    kernels: bool | None = None

    def __init__(self, layer: AdaptedLayer, component: str, layer_name: str) -> None:
        super().__init__()
        assert component or layer_name, "messages name the layer"
        # in a tuple, so that the base layer does not become a submodule
        self._layer_ref = (layer,)
        self.component = component
        self.layer_name = layer_name
        self.notes: dict[str, str] = {}
        self.strength = 1.0
        self._original_forward: Any = layer.forward
        self._had_own_forward = False
        self._plain = type(layer) in (nn.Linear, nn.Conv2d)
        self._hooked = False
        self._unmerged: Tensor | None = None

    @classmethod
    def create(cls, layer: AdaptedLayer, component: str, layer_name: str, config: TrainConfig, seed: int) -> Self:
        """A fresh adapter, which changes nothing yet, with the options of `config`.

        Sizes that the layer is too narrow for become smaller, see `notes`.

        Raises:
            UnfitLayerError: there is no size that would fit; a run leaves the layer out.
        """
        own = cls.own_arguments(layer, config, seed)
        dropout, dtype = config.dropout_probability, trained_dtype(config)
        return cls(layer, component, layer_name, dropout=dropout, dtype=dtype, **own)

    @classmethod
    def own_arguments(cls, layer: AdaptedLayer, config: TrainConfig, seed: int) -> dict[str, Any]:
        """The arguments of a fresh adapter beside those of every kind: layer, names, dropout and dtype."""
        return {}

    @classmethod
    @abstractmethod
    def recognizes(cls, names: Collection[str]) -> bool:
        """Whether parts of these names make up an adapter of this kind."""

    @classmethod
    @abstractmethod
    def options_of(cls, parts: Mapping[str, Tensor], layer: AdaptedLayer) -> dict[str, Any]:
        """The options of the config, kind included, with which `create` makes an adapter that can hold `parts`.

        Raises:
            UserError: a part is missing or has a shape that can't be.
        """

    @classmethod
    def prepare(cls, adapters: Sequence[Self]) -> None:
        """Work that is cheaper for all layers at once; an `AdapterSet` calls it before each forward of its component.

        It is not called again where gradient checkpointing repeats a part of that forward.
        """

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """What the layer returns while the adapter is hooked."""

    @abstractmethod
    def delta_weight(self) -> Tensor:
        """ΔW in the layer's weight shape, float32, differentiable."""

    @abstractmethod
    def load_parts(self, parts: Mapping[str, Tensor]) -> None:
        """Takes over the tensors of a file, as `parts` gives them, in any spelling of them that some program writes.

        Raises:
            UserError: a tensor is missing, foreign or of another shape.
        """

    @property
    def layer(self) -> AdaptedLayer:
        """The layer that the adapter changes."""
        return self._layer_ref[0]

    @property
    def full_name(self) -> str:
        return layer_path(self.component, self.layer_name)

    def state(self) -> dict[str, Tensor]:
        """The raw tensors that make up the adapter, as in `part_names`; not copied."""
        return {name: getattr(self, attribute).detach() for name, attribute in self.part_names.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes over what `state` gave. Raises UserError if it does not fit."""
        self.load_parts(state)

    def parts(self) -> dict[str, Tensor]:
        """What a file holds of the adapter, under internal part names; not necessarily copied."""
        return self.state()

    def hook(self) -> None:
        """Puts the adapter in place of the layer's forward and freezes the layer. Hooking twice does nothing."""
        if self._hooked:
            return
        layer = self.layer
        layer.requires_grad_(False)
        self._had_own_forward = "forward" in vars(layer)
        # only a torch layer as it comes lets its weight be used directly; any other one is called
        self._plain = type(layer) in (nn.Linear, nn.Conv2d) and not self._had_own_forward
        self._original_forward = layer.forward
        self._hooked = True
        layer.forward = self.forward if self.strength == 1 else self._blended_forward

    def _blended_forward(self, x: Tensor) -> Tensor:
        """With W + strength·ΔW, which a layer that is linear in its weight gives without knowing ΔW."""
        y = self._original_forward(x)
        return torch.lerp(y, self.forward(x).to(y.dtype), self.strength)

    def unhook(self) -> None:
        """Gives the layer its own forward back. It stays frozen."""
        if not self._hooked:
            return
        if self._had_own_forward:
            self.layer.forward = self._original_forward
        else:
            del self.layer.forward
        self._hooked = False

    @torch.no_grad()
    def merged_delta(self) -> Tensor:
        """ΔW in the layer's weight shape, float32, on the adapter's device, without gradient."""
        delta = self.delta_weight().detach()
        return delta if self.strength == 1 else self.strength * delta

    @torch.no_grad()
    def merge(self) -> None:
        """Adds ΔW to the layer's weight. Don't merge and hook at once: the change would count twice.

        Raises:
            UserError: the weight is quantized, so that it can't hold the sum.
        """
        assert self._unmerged is None, f"{self.full_name} is merged already"
        if is_quantized(self.layer):
            raise UserError(f"{self.full_name} is quantized; nothing can be merged into it. Load it unquantized.")
        weight = self.layer.weight
        self._unmerged = weight.clone()
        weight.copy_(weight.float() + self.merged_delta().to(weight.device))

    @torch.no_grad()
    def unmerge(self) -> None:
        """Restores the layer's weight exactly as it was before `merge`."""
        assert self._unmerged is not None, f"{self.full_name} is not merged"
        self.layer.weight.copy_(self._unmerged)
        self._unmerged = None

    def compute_dtype(self, x: Tensor) -> torch.dtype:
        """The dtype in which the layer computes on `x`: autocast's, or that of `x`."""
        dtype = x.dtype
        device = x.device.type
        if torch.is_autocast_enabled(device) and dtype != torch.float64:
            return torch.get_autocast_dtype(device)
        return dtype

    def describe(
        self,
        parameter: nn.Parameter,
        role: ParameterRole,
        part: str,
        pair: str | None = None,
        forward_scale: float = 1.0,
    ) -> None:
        """Tells optimizers what a trained tensor is, see `ParameterInfo`; `part` and `pair` are names of parts."""
        name, partner = f"{self.full_name}.{part}", None if pair is None else f"{self.full_name}.{pair}"
        info = ParameterInfo(role, self.component, self.layer_name, name, partner, forward_scale)
        set_parameter_info(parameter, replace(info, adapter=self.factored))

    def part_error(self, text: str) -> UserError:
        return UserError(f"The adapter does not fit the layer {self.full_name}: {text}")


def trained_dtype(config: TrainConfig) -> torch.dtype:
    """The torch dtype of `lora_weight_dtype`; UserError if it is not one that can be trained."""
    if config.lora_weight_dtype not in FLOAT_DTYPES:
        raise UserError(
            f"lora_weight_dtype: found {config.lora_weight_dtype}, "
            f"expected one of {', '.join(str(key) for key in FLOAT_DTYPES)}."
        )
    return FLOAT_DTYPES[config.lora_weight_dtype]
