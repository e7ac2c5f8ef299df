"""What `scripts/convert_adapter.py` does with files: reads, chooses the base model, calls the tools, writes, tells."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from modules.model.hub import Hub
from modules.model.model_name import short_name
from modules.model.reference_naming import (
    base_place,
    load_base,
    reference_of_folder,
    reference_of_pipeline,
    single_file_pipeline,
    standard_models,
)
from modules.modelSaver.adapter_layout import LAYOUTS
from modules.modelSaver.adapter_metadata import AdapterDescription
from modules.modelSaver.AdapterFile import AdapterFile, read_adapter
from modules.modelSaver.convert import (
    Layers,
    as_diff,
    as_lora,
    describe_file,
    extract_lora,
    find_reference,
    merge_into,
    names_as_they_are,
    with_alpha,
    with_rank,
)
from modules.modelSaver.format_rules import comfy_remarks, onetrainer_remarks
from modules.modelSaver.inspect_adapter import info_text, inspect_adapter
from modules.modelSaver.merged_model import changed_tensors, folder_at_once, write_merged_folder, writing
from modules.modelSaver.save_adapter import kind_of_components, save_parts
from modules.module.AdapterModule import AdaptedLayer
from modules.util.AdapterNaming import AdapterNaming
from modules.util.config.TrainConfig import TrainConfig
from modules.util.dtypes import OUTPUT_DTYPES
from modules.util.enum.DataType import DataType
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.ReferenceModel import ReferenceModel
from modules.util.UserError import UserError

Say = Callable[[str], None]


@dataclass(frozen=True)
class Wishes:
    """What the command line asked for.

    Attributes:
        format: of the written file; None keeps that of the read one.
        base: folder, file or hub name of the base model; None where it is not needed.
        rank: of the written LoRA; None keeps it.
        alpha: of the written adapter, for the same ΔW; None keeps it.
        kind: "lora" (of `rank`) or "diff" (ΔW in full) in place of the file's kind; None keeps it, but for `rank`,
            which only a LoRA can have.
        dtype: of the written weights; None keeps that of the read ones.
        overwrite: replaces the output if it exists.
        neumann: rotations are the Neumann series, where the file does not say which they are.
        hub: where models that are not on this machine come from.
    """

    format: ModelFormat | None = None
    base: str | Path | None = None
    rank: int | None = None
    alpha: float | None = None
    kind: str | None = None
    dtype: DataType | None = None
    overwrite: bool = False
    neumann: bool = False
    hub: Hub = field(default_factory=lambda: Hub(TrainConfig()))


def show(path: Path, wishes: Wishes, say: Say) -> None:
    """Prints what is in an adapter file. A base model makes norms of rotations and DoRAs known."""
    file, base = read_adapter(path), wishes.base
    model, note = None, ""
    if base is not None:
        model = _base(wishes, weights=file.kind.needs_weights or file.base_norm)
    else:
        try:
            model = find_reference(file, standard_models())
        except UserError as error:
            note = str(error)  # no reason to tell less about the file itself
    known = model is not None and all(name in model.naming.read or name in model.naming.fused for name in file.layers)
    if known and base is not None:
        try:
            file.fit(model.naming, model.components)
        except UserError as error:
            model, known, note = None, False, str(error)
    say(info_text(file, inspect_adapter(file, model if known else None), model))
    if note:
        say(f"\nnote: {note}")


def convert(path: Path, target: Path, wishes: Wishes, say: Say) -> None:
    """Reads an adapter, changes it as wished, and writes it.

    Raises:
        UserError: nothing is wished, the target exists, the adapter or the base can't be read or don't fit, or the
            kind can't be changed so.
    """
    _check_target(target, wishes.overwrite)
    file = read_adapter(path)
    kind = _wished_kind(file, wishes)
    model_format = wishes.format or file.format
    neumann = _neumann(file, wishes, say)
    if file.extra:
        say(f"warning: {len(file.extra)} tensors that belong to no layer, as embeddings, are left out.")
    by_layer = file.kind.file_kind.onetrainer_kernels and LAYOUTS[model_format].kernels
    by_names = kind is None and not file.base_norm and not by_layer
    if model_format == file.format and wishes.base is None and by_names:
        model = None
        components, naming = names_as_they_are(file)
    else:
        model = _model_for(file, wishes, weights=file.base_norm or (kind is not None and file.kind.needs_weights))
        say(f"base model: {model.name}")
        components, naming = file.fit(model.naming, model.components, _warner(say)), model.naming
        if file.kind.dora == "output" and LAYOUTS[model_format].base_norm and not model.has_weights:
            say(
                "warning: without --base the magnitude can't be adjusted for ComfyUI, which is then only roughly right."
            )
    if kind == "lora":
        components, loss = as_lora(components, model, wishes.rank, neumann)
        say(f"LoRA of rank {wishes.rank}: {loss}")
    elif kind == "diff":
        components = as_diff(components, model, neumann)
    elif wishes.rank is not None:
        components, loss = with_rank(components, wishes.rank)
        say(f"rank {wishes.rank}: {loss}")
    if wishes.alpha is not None:
        components = with_alpha(components, wishes.alpha)
    description = replace(describe_file(file, model), neumann=True if neumann else file.neumann)
    _save(target, components, model_format, naming, description, wishes.dtype or _dtype_of(file), model)
    for remark in _remarks(components, model_format, model):
        say(f"note: {remark}")
    say(f"written: {target} ({kind_of_components(components)}, {model_format})")


def merge(path: Path, target: Path, wishes: Wishes, say: Say) -> None:
    """Writes the base model with the adapter in its weights as a diffusers folder."""
    if wishes.base is None:
        raise UserError("--merge: needs the model to merge into. Name its folder or file by --base.")
    if target.suffix.lower() in (".safetensors", ".ckpt"):
        raise UserError(
            f"{target}: merged models are written as diffusers folders only, not as single files. Name a folder."
        )
    file = read_adapter(path)
    neumann = _neumann(file, wishes, say)
    dtype = OUTPUT_DTYPES[wishes.dtype or DataType.NONE]
    base = base_place(str(wishes.base), "--base", wishes.hub, whole=True)
    with folder_at_once(target, wishes.overwrite, sources=(base, path)) as folder:
        if base.is_dir():
            model = load_base(base)
            components = file.fit(model.naming, model.components, _warner(say))
            merge_into(components, model, neumann)
            biases = file.kind.file_kind.changes_biases
            changed = {
                name: changed_tensors(model.components[name], layers, biases) for name, layers in components.items()
            }
            write_merged_folder(base, folder, changed, dtype)
        else:
            pipeline = single_file_pipeline(base)
            model = reference_of_pipeline(pipeline, str(wishes.base))
            merge_into(file.fit(model.naming, model.components, _warner(say)), model, neumann)
            with writing(target):
                (pipeline if dtype is None else pipeline.to(dtype)).save_pretrained(folder)
    say(f"written: {target} ({len(file.layers)} layers of {wishes.base} changed)")


def extract(base: str | Path, tuned: str | Path, target: Path, wishes: Wishes, say: Say) -> None:
    """Writes the LoRA between two models, each a folder, a file or a hub name."""
    _check_target(target, wishes.overwrite)
    first, second = (load_base(base_place(str(name), "--extract", wishes.hub)) for name in (base, tuned))
    components, loss, left_out = extract_lora(first, second, wishes.rank or 16)
    say(f"rank {wishes.rank or 16}: {loss}")
    if left_out:
        say(
            f"warning: {len(left_out)} other tensors differ, which a LoRA can't hold (norms, biases, embeddings), "
            f"for example {left_out[0]}."
        )
    if wishes.alpha is not None:
        components = with_alpha(components, wishes.alpha)
    description = AdapterDescription(title=target.stem, base_model=short_name(str(base)))
    model_format = wishes.format or ModelFormat.KOHYA_LORA
    dtype = wishes.dtype or DataType.FLOAT_32
    _save(target, components, model_format, first.naming, description, dtype, first)
    say(f"written: {target} ({sum(map(len, components.values()))} layers, {model_format})")


def _remarks(components: Layers, model_format: ModelFormat, model: ReferenceModel | None) -> list[str]:
    """What ComfyUI and OneTrainer will not do with a written file, as far as the model is known."""
    kind = kind_of_components(components)
    if model is None or kind is None:
        return []
    layers = {name: parts for own in components.values() for name, parts in own.items()}
    channels = not any(kind.file_kind.turns_kernels(parts) for parts in layers.values())
    found = onetrainer_remarks(model_format, kind, model.naming, layers.__contains__, channels)
    # without weights a DoRA on outputs is not adjusted for ComfyUI, which was said already
    if kind.dora == "output" and LAYOUTS[model_format].base_norm and not model.has_weights:
        return found
    return comfy_remarks(model_format, kind, model.naming) + found


def _warner(say: Say) -> Say:
    return lambda text: say(f"warning: {text}")


def _wished_kind(file: AdapterFile, wishes: Wishes) -> str | None:
    """ "lora" or "diff" if the file's kind is to be replaced. Raises UserError for wishes that make no sense."""
    wanted = (wishes.rank, wishes.alpha, wishes.kind, wishes.dtype)
    if wishes.format in (None, file.format) and all(wish is None for wish in wanted):
        raise UserError(
            f"{file.path}: is {file.format} already, so there is nothing to do. "
            "Give --format, --rank, --alpha, --to or --dtype."
        )
    if wishes.kind == "diff" and wishes.rank is not None:
        raise UserError("--rank: a diff has none. Leave it out, or give --to lora.")
    if wishes.kind == "lora" and wishes.rank is None:
        raise UserError("--to lora: needs the rank. Give --rank, for example --rank 64.")
    if wishes.kind is None and wishes.rank is not None and not file.kind.file_kind.resizable:
        return "lora"
    return wishes.kind


def _neumann(file: AdapterFile, wishes: Wishes, say: Say) -> bool:
    """Whether to read rotations as the Neumann series; says what was taken where the file leaves it open."""
    if not file.kind.file_kind.rotates:
        return False
    if file.neumann is not None:
        return file.neumann
    taken = "the Neumann series, by --neumann" if wishes.neumann else "exact; for OneTrainer's files give --neumann"
    say(f"note: {file.path} does not say how its rotations were computed; they are taken as {taken}.")
    return wishes.neumann


def _check_target(target: Path, overwrite: bool) -> None:
    if target.suffix.lower() != ".safetensors":
        raise UserError(f"{target}: expected a name that ends with .safetensors, as adapters are written so.")
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists. Choose another name, or give --overwrite.")


def _base(wishes: Wishes, weights: bool) -> ReferenceModel:
    path = base_place(str(wishes.base), "--base", wishes.hub, weights)
    model = reference_of_folder(path) if path.is_dir() and not weights else load_base(path)
    return replace(model, name=str(wishes.base))


def _model_for(file: AdapterFile, wishes: Wishes, weights: bool) -> ReferenceModel:
    if wishes.base is not None:
        return _base(wishes, weights or file.kind.needs_weights)
    if weights:
        raise UserError(
            f"{file.path}: {file.kind} depends on the base model's weights here. Name its folder or file by --base."
        )
    return find_reference(file, standard_models())


def _dtype_of(file: AdapterFile) -> DataType:
    """The number format of most of the file's tensors."""
    found = Counter(tensor.dtype for parts in file.layers.values() for tensor in parts.values())
    names = {dtype: name for name, dtype in OUTPUT_DTYPES.items() if dtype is not None}
    return names.get(found.most_common(1)[0][0], DataType.FLOAT_32)


def _save(
    target: Path,
    components: Layers,
    model_format: ModelFormat,
    naming: AdapterNaming,
    description: AdapterDescription,
    dtype: DataType,
    model: ReferenceModel | None,
) -> None:
    def layer_of(component: str, layer: str) -> AdaptedLayer:
        return model.components[component].get_submodule(layer)

    try:
        save_parts(target, components, model_format, naming, description, dtype, None if model is None else layer_of)
    except UserError as error:
        # what a config calls so is an option of the command line here
        text = str(error).replace("output_model_format:", "--format:").replace("output_dtype", "--dtype")
        raise UserError(text) from error
