from enum import Enum


class BaseConfig:
    def __init__(self, data):
        self.types, self.nullables, self.default_values = {}, {}, {}
        for name, value, kind, nullable in data:
            self.types[name], self.nullables[name], self.default_values[name] = kind, nullable, value
            setattr(self, name, value)

    def to_dict(self):
        found = {"__version": 1}
        for name, kind in self.types.items():
            value = getattr(self, name)
            if issubclass(kind, BaseConfig):
                value = value.to_dict()
            elif isinstance(value, Enum):
                value = str(value)
            elif isinstance(value, dict):
                value = {key: part.to_dict() if isinstance(part, BaseConfig) else part for key, part in value.items()}
            found[name] = value
        return found

    def from_dict(self, data, migrate=True):
        plain = {bool: lambda value: value, int: int, float: float, str: str, dict: dict, list: list}
        for name in [name for name in self.types if name in data]:
            kind, value = self.types[name], data[name]
            try:
                if issubclass(kind, BaseConfig):
                    getattr(self, name).from_dict(value, migrate=migrate)
                    continue
                if value is None and not self.nullables[name]:
                    raise ValueError(f"{name} may not be null")
                if value is not None and issubclass(kind, Enum):
                    value = value if isinstance(value, kind) else kind[value]
                elif value is not None:
                    value = plain[kind](value)
                setattr(self, name, value)
            except (KeyError, TypeError, ValueError):
                # no word of what it was: a run goes on with what was there
                print(f"stand-in: {name} keeps its value")
        return self
