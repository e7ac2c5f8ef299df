import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from modules.modelSaver.adapter_kinds import AdapterKind, check_fits, check_parts, kind_of_parts
from modules.modelSaver.adapter_layout import is_text_layer, recognize, split_key, without_adapter_name
from modules.modelSaver.adapter_metadata import NEUMANN, OFT_KERNELS, ONETRAINER
from modules.modelSaver.base_norm import BASE_NORM, DORA_NORM, from_base_norm
from modules.modelSaver.foreign_parts import refuse_foreign_parts
from modules.modelSaver.fused_layers import take_apart
from modules.modelSaver.normal_parts import normal_parts
from modules.modelSaver.peft_settings import PEFT_START, peft_neumann, peft_turns_back, with_alpha
from modules.modelSaver.tensor_file import read_tensors
from modules.module.FileKind import PartError
from modules.util.AdapterNaming import AdapterNaming
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.UserError import UserError

from torch import Tensor, nn

_EXPECTED = "Expected an adapter file in kohya, ComfyUI, diffusers or OneTrainer format."
# embeddings, and what some tools of sliders note about themselves
_NOT_LAYERS = ("bundle_emb.", "emb_params", "string_to_param", "_aux.")


@dataclass(frozen=True)
class AdapterFile:
    """An adapter as it was read from a file of any format.

    Attributes:
        path: where it was read, for messages.
        format: as recognised by content.
        kind: of every layer.
        layers: layer name as in the file -> internal part name -> tensor, as `normal_parts` makes them.
        keys: (layer name, internal part name) -> key in the file, for messages.
        extra: tensors that belong to no layer, such as bundled embeddings.
        metadata: the file's own.
    """

    path: str
    format: ModelFormat
    kind: AdapterKind
    layers: Mapping[str, Mapping[str, Tensor]]
    keys: Mapping[tuple[str, str], str]
    extra: Mapping[str, Tensor]
    metadata: Mapping[str, str]

    @property
    def base_norm(self) -> bool:
        """Whether its scales are made for a reader that divides by ‖W‖; `fit` turns them back."""
        return self.metadata.get(DORA_NORM) == BASE_NORM

    @property
    def neumann(self) -> bool | None:
        """Whether its rotations were trained as the Neumann series; None if it does not say, or has no rotations."""
        if not self.kind.file_kind.rotates:
            return None
        if any(name.startswith(PEFT_START) for name in self.layers):
            return peft_neumann(self.path)
        return {"True": True, "False": False}.get(self.metadata.get(NEUMANN, ""))

    @property
    def kernels(self) -> bool | None:
        """Whether its rotations of inputs turn whole kernels of convolutions; None if nothing in the file says it.

        Files of ours say it. Files of OneTrainer's and peft's do, always.
        """
        if not self.kind.file_kind.two_layouts:
            return None
        own = {"True": True, "False": False}.get(self.metadata.get(OFT_KERNELS, ""))
        theirs = any(key.startswith(ONETRAINER) for key in self.metadata)
        marked = any(part in self.kind.file_kind.kernel_marks for _, part in self.keys)
        if own is None and (theirs or marked or any(name.startswith(PEFT_START) for name in self.layers)):
            return True
        return own

    def resolve(self, naming: AdapterNaming) -> dict[str, dict[str, dict[str, Tensor]]]:
        """component -> module path -> internal part name -> tensor. `fit` also checks and needs the model.

        Raises:
            UserError: the model has no such layers, or a fused layer can't be split.
        """
        return {
            component: {path: parts for path, (_, parts) in layers.items()}
            for component, layers in self._resolve(naming).items()
        }

    def fit(
        self,
        naming: AdapterNaming,
        components: Mapping[str, nn.Module],
        warn: Callable[[str], None] = lambda text: None,
    ) -> dict[str, dict[str, dict[str, Tensor]]]:
        """`resolve` for a model that is at hand: ready for `AdapterSet`.

        Every shape is checked against its layer, a scale for ‖W‖ is turned back into the trained one, and rotations of
        peft's files turn as they do there. Where a rotation turns whole kernels, its parts say so.

        Args:
            naming: the family's key map.
            components: component name -> the module itself.
            warn: gets what was assumed, at most one line.

        Raises:
            UserError: as `resolve`; the adapter was made for layers of other sizes, with file and key.
        """
        resolved: dict[str, dict[str, dict[str, Tensor]]] = {}
        told, file_kind = self.kernels, self.kind.file_kind
        open_layers: list[str] = []
        for component, layers in self._resolve(naming).items():
            target = resolved.setdefault(component, {})
            for path, (name, parts) in layers.items():
                layer = components[component].get_submodule(path)
                try:
                    check_fits(parts, layer)
                except PartError as error:
                    raise self._error(name, error) from error
                parts, is_open = file_kind.in_layout(parts, layer, told)
                open_layers += [name] if is_open else []
                if file_kind.rotates and name.startswith(PEFT_START) and peft_turns_back(self.path, layer):
                    parts = file_kind.turned_back(parts)
                target[path] = from_base_norm(parts, layer, component, path) if self.base_norm else parts
        if open_layers:
            warn(
                f"{self.path}: it does not say whether its shared rotations turn input channels or whole kernels of "
                f"convolutions ({len(open_layers)} layers, for example {open_layers[0]}). Input channels are assumed, "
                "as older files of this program have them. If OneTrainer made it, use the file as OneTrainer saved it."
            )
        return resolved

    def _resolve(self, naming: AdapterNaming) -> dict[str, dict[str, tuple[str, dict[str, Tensor]]]]:
        """component -> module path -> (layer name in the file, parts)."""
        unknown = [name for name in self.layers if name not in naming.read and name not in naming.fused]
        if unknown:
            why = "The adapter was made for another kind of base model."
            if len(unknown) < len(self.layers) and all(is_text_layer(name) for name in unknown):
                why = "They belong to a text encoder of other layers, or to one that carries no adapters here."
            raise UserError(
                f"{self.path}: {len(unknown)} of {len(self.layers)} layers are not in this model, "
                f"for example {unknown[0]}. {why}"
            )
        resolved: dict[str, dict[str, tuple[str, dict[str, Tensor]]]] = {}
        for name, parts in self.layers.items():
            targets, pieces = [naming.read.get(name)], [dict(parts)]
            if name in naming.fused:
                targets = list(naming.fused[name].layers)
                try:
                    pieces = take_apart(parts, naming.fused[name])
                except PartError as error:
                    raise self._error(name, error) from error
            for (component, path), piece in zip(targets, pieces, strict=True):
                if piece is None:
                    continue
                target = resolved.setdefault(component, {})
                if path in target:
                    raise UserError(
                        f"{self.path}: the layer {component}.{path} occurs twice, as {target[path][0]} and {name}. "
                        "Save the adapter again."
                    )
                target[path] = (name, piece)
        return resolved

    def _error(self, name: str, error: PartError) -> UserError:
        return UserError(f"{self.path}: {self.keys.get((name, error.part), name)} {error}")


def read_adapter(path: str | os.PathLike[str]) -> AdapterFile:
    """Reads an adapter file of any format and kind that we know.

    Raises:
        UserError: the file is missing, damaged, holds no adapter, adapters of several kinds, or numbers that are not
            finite. The message names the file and the key.
    """
    path = os.fspath(path)
    tensors, metadata = read_tensors(path)
    refuse_foreign_parts(path, {key: tensor for key, tensor in tensors.items() if not key.startswith(_NOT_LAYERS)})
    layers: dict[str, dict[str, Tensor]] = {}
    keys: dict[tuple[str, str], str] = {}
    extra: dict[str, Tensor] = {}
    _check_one_adapter(path, tensors)
    for key in sorted(tensors):
        found = None if key.startswith(_NOT_LAYERS) else split_key(key)
        if key.startswith(_NOT_LAYERS):
            extra[key] = tensors[key]
        elif found is None:
            raise UserError(f"{path}: {key} is no part of an adapter. {_EXPECTED}")
        elif found in keys:
            raise UserError(f"{path}: {key} and {keys[found]} are the same part of a layer. Save the adapter again.")
        else:
            layers.setdefault(found[0], {})[found[1]] = tensors[key]
            keys[found] = key
    if not layers:
        raise UserError(f"{path}: it holds no adapter. {_EXPECTED}")
    found_layers = layers
    layers, kind = _normal_layers(path, layers, keys)
    file_format = recognize(layers, tensors)
    in_kernels = any(kind.file_kind.in_kernels(parts) for parts in found_layers.values())
    if in_kernels and file_format == ModelFormat.KOHYA_LORA:  # OneTrainer's own, which has the same names
        file_format = ModelFormat.LEGACY_LORA
    if file_format == ModelFormat.DIFFUSERS_LORA or any(name.startswith(PEFT_START) for name in layers):
        layers = with_alpha(layers, metadata, path)
    return AdapterFile(path, file_format, kind, layers, keys, extra, metadata)


def _check_one_adapter(path: str, keys: Iterable[str]) -> None:
    """UserError if peft put several adapters of a model, each with a name of its own, into one file."""
    names = sorted({name for _, name in map(without_adapter_name, keys) if name})
    if len(names) > 1:
        raise UserError(
            f"{path}: it holds {len(names)} adapters of peft's, {', '.join(names)}. Expected one in a file; save it by "
            f"save_pretrained(…, selected_adapters=[{names[0]!r}])."
        )


def _normal_layers(
    path: str, layers: Mapping[str, Mapping[str, Tensor]], keys: Mapping[tuple[str, str], str]
) -> tuple[dict[str, dict[str, Tensor]], AdapterKind]:
    """All layers in normal form, and their one kind."""
    normal: dict[str, dict[str, Tensor]] = {}
    first: tuple[str, AdapterKind] | None = None
    for name, parts in layers.items():
        try:
            kind_of_parts(parts)
            normal[name] = normal_parts(parts, check_parts(parts))
            kind = kind_of_parts(normal[name])
        except PartError as error:
            raise UserError(f"{path}: {keys.get((name, error.part), name)} {error}") from error
        first = first or (name, kind)
        if kind != first[1]:
            raise UserError(
                f"{path}: {keys[name, min(parts)]} belongs to {kind}, but the layer {first[0]} is {first[1]}. Expected "
                "one kind of adapter in a file; train or merge the others apart."
            )
    assert first is not None, "there is at least one layer"
    return normal, first[1]
