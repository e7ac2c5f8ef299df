"""Which kind of model a folder, hub name or file holds, for tools that have no config to say so."""

from pathlib import Path

from modules.model.BaseModel import BaseModel, model_families
from modules.model.families import marked_types, piped_family
from modules.model.hub import Hub
from modules.model.model_index import is_component
from modules.model.ModelSource import library_class, load_errors, read_index
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ModelType import ModelType
from modules.util.UserError import UserError

from safetensors import safe_open

# what a folder may hold beside the components of its family
_BESIDE = {
    *("scheduler", "safety_checker", "feature_extractor", "image_encoder"),
    *("pe", "pe_tokenizer", "prompt_enhancer_head"),
}


def find_model_type(config: TrainConfig, hub: Hub | None = None) -> ModelType:
    """The type of `config.base_model_name`. Of a folder whose family serves several types it is the first, as its own
    files tell the rest.

    Args:
        config: of which nothing else is read.
        hub: of the run; None: one that reports nothing.

    Raises:
        UserError: there is no such model, it is of a family that is not known here, or it could be of several types.
    """
    place = (hub or Hub(config)).place(config.base_model_name, "base_model_name")
    if isinstance(place, Path) and place.is_file():
        return _type_of_file(place)
    index = read_index(place)
    found = {component: entry[-1] for component, entry in index.items() if is_component(entry) and entry[-1]}
    piped = piped_family(index)
    # those whose pipelines tell them from the others come last
    known = [family for family in dict.fromkeys(model_families().values()) if _has_components(family, found)]
    if piped and any(family.model_types == piped.model_types for family in known):
        return piped.model_types[0]
    if known:
        return known[0].model_types[0]
    components = ", ".join(f"{component} {kind}" for component, kind in found.items() if component not in _BESIDE)
    raise UserError(
        f"{config.base_model_name}: a model of {components or 'no components'}, which is none that is known here. "
        "If you know better, give --config or --model-type."
    )


def _has_components(family: type[BaseModel], found: dict[str, str]) -> bool:
    wanted = {*family.modules, *family.tokenizers, *family.preparers}
    absent = wanted - found.keys()
    # published models may lack what is brought from elsewhere
    if {*found} - _BESIDE - wanted or absent - {
        name for key, own in family.brought.items() for name in (key, own.tokenizer)
    }:
        return False
    kinds = family.variants or (family.modules,)
    return any(
        all(
            found[component] in (family.index_names.get(component), library_class(kind).__name__)
            for component, kind in modules.items()
            if component not in absent
        )
        for modules in kinds
    )


def _type_of_file(path: Path) -> ModelType:
    if path.suffix.lower() != ".safetensors":
        raise UserError(f"{path}: only .safetensors files tell what they hold. Give --config or --model-type.")
    with load_errors(str(path)), safe_open(path, framework="pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}
    types = marked_types(shapes)
    if len(types) == 1:
        return types[0]
    if types:
        raise UserError(
            f"{path}: could be {', '.join(types[:-1])} or {types[-1]}, which its tensors do not tell. "
            "Give the right one by --model-type, or a config that names it by --config."
        )
    raise UserError(
        f"{path}: not a complete model of a kind that is known here. Expected a whole checkpoint; "
        "if you know better, give --config or --model-type."
    )
