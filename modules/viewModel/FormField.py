from collections.abc import Iterator
from dataclasses import dataclass, field

from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.errors import join_path
from modules.util.config.field_type import FieldType, field_type, option_of
from modules.util.config.option import Option
from modules.util.enum.OptionGroup import OptionGroup


@dataclass(frozen=True)
class FormField:
    """One option of a form.

    Attributes:
        path: keys in the JSON with dots between, as `unet.learning_rate`.
        owner: the class that declares it.
        name: its key there.
        root: the first key of the path.
    """

    path: str
    owner: type[BaseConfig]
    name: str

    @property
    def root(self) -> str:
        return self.path.split(".")[0]

    @property
    def parent(self) -> str:
        """Path of the config that holds it, empty for the outermost one."""
        return self.path.rpartition(".")[0]

    @property
    def declared(self) -> Option:
        return option_of(self.owner, self.name)

    @property
    def kind(self) -> FieldType:
        return field_type(self.owner, self.name)

    @property
    def unit_path(self) -> str:
        """Path of the sibling that holds the unit, empty if the unit is fixed."""
        unit = self.declared.unit
        return join_path(self.parent, unit) if unit.endswith("_unit") else ""

    @property
    def is_advanced(self) -> bool:
        """Whether it is for people who asked for all options. Lists and objects have windows of their own."""
        return self.declared.advanced or self.kind.kind in (list, dict)


@dataclass
class FormSection:
    """Options that stand together under one heading.

    Attributes:
        key: the group's value, or the path of a nested config.
        title, help: what stands above it.
        group: of the outermost option.
        advanced: whether the whole section is for people who asked for more.
        fields: in the order of their declaration.
    """

    key: str
    title: str
    help: str
    group: OptionGroup
    advanced: bool = False
    fields: list[FormField] = field(default_factory=list)


def form_fields(config_class: type[BaseConfig], prefix: str = "") -> Iterator[FormField]:
    """Every option of a config and of the configs nested in it.

    A config that may be null is walked into once: `optimizer.muon_adam_config` has options of its own kind again, of
    which the name of an optimizer means nothing there.
    """
    for name in config_class.model_fields:
        kind, path = field_type(config_class, name), join_path(prefix, name)
        if not kind.is_config:
            yield FormField(path, config_class, name)
        elif not kind.nullable:
            yield from form_fields(kind.kind, path)
        else:
            inner = FormField(path, config_class, name).kind.kind
            for key in inner.model_fields:
                if not field_type(inner, key).is_config and key != next(iter(inner.model_fields)):
                    yield FormField(join_path(path, key), inner, key)


def form_sections(config_class: type[BaseConfig], fields: list[FormField]) -> list[FormSection]:
    """The options of a config by heading: those of a group, and those of each nested config with what goes with it.

    A plain option of a component goes with the component, whose name begins its own, as `text_encoder_layer_skip`.
    """
    nested = [name for name in config_class.model_fields if field_type(config_class, name).is_config]
    found: dict[str, FormSection] = {}
    for one in fields:
        outer = option_of(config_class, one.root)
        if one.root in nested:
            home = one.root
        else:
            near = [
                name for name in nested if outer.group == OptionGroup.COMPONENTS and one.name.startswith(f"{name}_")
            ]
            home = max(near, key=len, default="")
        if home:
            declared = option_of(config_class, home)
            section = FormSection(home, declared.title, declared.help, declared.group, declared.advanced)
        else:
            section = FormSection(outer.group.value, outer.group.value, "", outer.group)
        found.setdefault(section.key, section).fields.append(one)
    order = list(OptionGroup)
    return sorted(found.values(), key=lambda section: (order.index(section.group), section.key in nested))
