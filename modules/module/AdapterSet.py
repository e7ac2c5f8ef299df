from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from modules.module.AdapterModule import AdaptedLayer, AdapterModule, UnfitLayerError
from modules.module.kinds import adapter_class_of, class_of_layers
from modules.module.layer_notes import summarized
from modules.module.magnitude import DORA_SCALE, PEFT_MAGNITUDE
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.LoRAInit import LoRAInit
from modules.util.enum.TrainingMethod import TrainingMethod
from modules.util.LayerFilter import LayerFilter
from modules.util.ParameterInfo import layer_path
from modules.util.UserError import UserError

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

# the start values of an adapter that a file then fills: any rank can have them
NOT_DRAWN = {"lora_init": LoRAInit.KAIMING}
# what changes an adapter, but not of every kind; whoever sets it should know where it does nothing
SHAPING = ("lora_decompose", "lora_decompose_output_axis", "lora_init", "lora_init_scale")


class AdapterSet:
    """The adapters of one component of a model.

    Building a set changes nothing about the component: call `hook()`. Selected layers on which no adapter of the kind
    can sit are left out, and noted.

    Args:
        component: its name in the config, for example "unet".
        root_module: the component itself.
        config: `peft_type` and the options of that kind of adapter.
        layer_filter: the layers to adapt; None takes all `nn.Linear` and `nn.Conv2d`.
        seed: of the start values.
        start: layer name -> parts of an adapter to start from. Its kind, ranks and sizes replace those of the config;
            selected layers that it lacks get fresh adapters of its kind, and of the size that most of its layers have.

    Attributes:
        layer_notes: (topic, remark that names its layer), see `summarized`.
        option_notes: remarks about options, one line each.

    Raises:
        UserError: an unsupported kind of adapter, a filter that selects nothing, a dtype that can't be trained, parts
            that do not fit, not one layer that an adapter could sit on.
    """

    def __init__(
        self,
        component: str,
        root_module: nn.Module,
        config: TrainConfig,
        layer_filter: LayerFilter | None = None,
        seed: int = 0,
        start: Mapping[str, Mapping[str, Tensor]] | None = None,
    ) -> None:
        self.component = component
        self.root_module = root_module
        layers, start = adaptable_layers(root_module), start or {}
        names = (layer_filter or LayerFilter()).select(layers, component)
        self._check_names("layers", names & start.keys(), start.keys())
        self.adapter_class = class_of_layers(start) if start else adapter_class_of(config)
        found = {name: self._options(layers[name], name, parts) for name, parts in start.items()}
        if start:
            config = config.model_copy(update=usual_options(list(found.values())))
        self.adapters: dict[str, AdapterModule] = {}
        self.layer_notes: list[tuple[str, str]] = []
        unfit: list[UnfitLayerError] = []
        for name in names:
            own = config if name not in start else config.model_copy(update=found[name] | NOT_DRAWN)
            try:
                adapter = self.adapter_class.create(layers[name], component, name, own, seed)
            except UnfitLayerError as error:
                unfit.append(error)
                self.layer_notes.append(("left out", f"{error.reason}; it is left out"))
                continue
            self.adapters[name] = adapter
            self.layer_notes += adapter.notes.items()
            if name in start:
                adapter.load_parts(start[name])
        if unfit and not self.adapters:
            raise unfit[0]
        # options are declared for the method that trains adapters, and whoever is here does
        method = config.model_copy(update={"training_method": TrainingMethod.LORA})
        ignored = [] if start else [name for name in SHAPING if _is_set(config, name) and not method.applies(name)]
        self.option_notes = [f"{option} has no effect with {config.peft_type}; it is ignored." for option in ignored]
        self._prepared: RemovableHandle | None = None

    @classmethod
    def from_parts(
        cls,
        component: str,
        root_module: nn.Module,
        parts: Mapping[str, Mapping[str, Tensor]],
        neumann: bool = False,
        strength: float = 1.0,
    ) -> "AdapterSet":
        """Adapters on exactly the layers of a file.

        Args:
            neumann: rotations are the Neumann series, which no part tells.
            strength: how much of the adapter is applied. ΔW times it; for a rotation without magnitude, its generator
                Q times it, which stays a rotation, by nearly as many times the angle while angles are small.

        Raises:
            UserError: the component has no such layers, or the parts do not fit.
        """
        config = TrainConfig(oft_cayley_neumann=neumann)
        own = class_of_layers(parts).strength_parts if strength != 1 else ()
        decomposed = any(name in (DORA_SCALE, PEFT_MAGNITUDE) for layer in parts.values() for name in layer)
        if own and not decomposed:
            parts = {
                layer: {name: strength * tensor.float() if name in own else tensor for name, tensor in tensors.items()}
                for layer, tensors in parts.items()
            }
            strength = 1.0
        adapters = cls(component, root_module, config, LayerFilter.exactly(parts), start=parts)
        for adapter in adapters.adapters.values():
            adapter.strength = strength
        return adapters

    def _options(self, layer: AdaptedLayer, name: str, parts: Mapping[str, Tensor]) -> dict[str, Any]:
        try:
            return self.adapter_class.options_of(parts, layer)
        except UserError as error:
            where = layer_path(self.component, name)
            raise UserError(f"The adapter does not fit the layer {where}: {error}") from error

    @property
    def notes(self) -> list[str]:
        """Remarks for the user, one line each."""
        return [*self.option_notes, *summarized(self.layer_notes)]

    def hook(self) -> None:
        """Switches all adapters on and freezes their layers."""
        for adapter in self.adapters.values():
            adapter.hook()
        if self._prepared is None and self.adapter_class.prepare is not AdapterModule.prepare:
            self._prepared = self.root_module.register_forward_pre_hook(lambda module, arguments: self.prepare())

    def prepare(self) -> None:
        """See `AdapterModule.prepare`; needed by hand only where a part of the component is called by itself."""
        self.adapter_class.prepare(list(self.adapters.values()))

    def unhook(self) -> None:
        """Switches all adapters off; the component is the base model again."""
        if self._prepared is not None:
            self._prepared.remove()
            self._prepared = None
        for adapter in self.adapters.values():
            adapter.unhook()

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """Meanwhile a component whose adapters are hooked is the base model."""
        self.unhook()
        try:
            yield
        finally:
            self.hook()

    def merge(self) -> None:
        """Adds every ΔW to its layer's weight."""
        for adapter in self.adapters.values():
            adapter.merge()

    def unmerge(self) -> None:
        """Undoes `merge` exactly."""
        for adapter in self.adapters.values():
            adapter.unmerge()

    def train(self, mode: bool = True) -> "AdapterSet":
        """Turns the adapters' dropout on or off. The component's own mode is left alone."""
        for adapter in self.adapters.values():
            adapter.train(mode)
        return self

    def eval(self) -> "AdapterSet":
        """`train(False)`: call it before sampling and validation."""
        return self.train(False)

    def to(self, device: torch.device | str) -> "AdapterSet":
        """Moves the adapters; the parameters stay the same objects, so an optimizer keeps them."""
        device = torch.device(device)
        for adapter in self.adapters.values():
            if any(tensor.device != device for tensor in (*adapter.parameters(), *adapter.buffers())):
                adapter.to(device)
        return self

    def requires_grad_(self, requires_grad: bool = True) -> "AdapterSet":
        """Starts or stops training of the whole set; the adapters stay in effect."""
        for adapter in self.adapters.values():
            adapter.requires_grad_(requires_grad)
        return self

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Trained tensors by attribute: "<component>.<layer>.<attribute>", in the component's layer order."""
        for adapter in self.adapters.values():
            for name, parameter in adapter.named_parameters():
                yield f"{adapter.full_name}.{name}", parameter

    def parameters(self) -> list[nn.Parameter]:
        """Trained tensors, in the component's layer order; each carries a `ParameterInfo`."""
        return [parameter for _, parameter in self.named_parameters()]

    def layers(self) -> dict[str, dict[str, Tensor]]:
        """Layer name -> what a file holds of its adapter, by internal part names; not necessarily copied."""
        return {name: adapter.parts() for name, adapter in self.adapters.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """The raw tensors by "<component>.<layer>.<part>", for resuming; not copied."""
        return {
            f"{self.component}.{layer}.{part}": tensor
            for layer, adapter in self.adapters.items()
            for part, tensor in adapter.state().items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes over what `state_dict` gave; the keys must be the same.

        Raises:
            UserError: keys or shapes differ; the set may then be half loaded.
        """
        expected = {
            f"{self.component}.{layer}.{part}": (layer, part)
            for layer, adapter in self.adapters.items()
            for part in adapter.part_names
        }
        self._check_names("tensors", expected.keys(), state.keys())
        layers: dict[str, dict[str, Tensor]] = {}
        for key, (layer, part) in expected.items():
            layers.setdefault(layer, {})[part] = state[key]
        for layer, own in layers.items():
            self.adapters[layer].load_state(own)

    def load_layers(self, layers: Mapping[str, Mapping[str, Tensor]], *, strict: bool = True) -> None:
        """Takes over adapters that were read from a file.

        Args:
            layers: layer name -> tensors, named as in `AdapterModule.part_names`.
            strict: the file must hold exactly the layers of this set. Otherwise layers that the file lacks stay as
                they are, and only layers that this set lacks are an error.

        Raises:
            UserError: the layers or their shapes differ; the set may then be half loaded.
        """
        expected = self.adapters.keys() if strict else self.adapters.keys() & layers.keys()
        self._check_names("layers", expected, layers.keys())
        for name in expected:
            self.adapters[name].load_parts(layers[name])

    def _check_names(self, what: str, expected: Collection[str], found: Collection[str]) -> None:
        missing = [name for name in expected if name not in found]
        foreign = [name for name in found if name not in expected]
        if missing or foreign:
            complaints = [f"{len(missing)} {what} are missing in the file ({_some(missing)})"] if missing else []
            if foreign:
                complaints.append(f"{len(foreign)} of its {what} are not selected here ({_some(foreign)})")
            raise UserError(
                f"The adapter does not fit {self.component}: {' and '.join(complaints)}. "
                "Use the layer_filter and the kind of adapter with which it was trained."
            )


def usual_options(options: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The options that most layers of an adapter have; of equally many those of the earlier layer.

    Options that these lack, as they mean nothing there, are those of the first layer that has them.

    Args:
        options: of each layer, see `AdapterModule.options_of`; at least one.
    """
    counted = Counter(tuple(sorted(own.items())) for own in options)
    rest = {name: value for own in reversed(options) for name, value in own.items()}
    return rest | dict(max(counted, key=counted.__getitem__))


def adaptable_layers(root_module: nn.Module) -> dict[str, AdaptedLayer]:
    """Every layer on which an adapter can sit, by module path, in the module's order."""
    return {name: module for name, module in root_module.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))}


def _is_set(config: TrainConfig, option: str) -> bool:
    return getattr(config, option) != type(config).model_fields[option].get_default(call_default_factory=True)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
