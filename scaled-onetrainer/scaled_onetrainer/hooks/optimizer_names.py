"""Adds our optimizers to OneTrainer's enumeration of them."""

from enum import Enum
from types import ModuleType

from scaled_onetrainer.members import MEMBERS, rule_of
from scaled_onetrainer.run_hook import HookError, place
from scaled_optim.rules.registry import RULES


def apply(module: ModuleType) -> None:
    """`Optimizer` gets members, which step in a fused backward pass, and find a learning rate if their rule does."""
    optimizer = place(module, "Optimizer")
    if not (isinstance(optimizer, type) and issubclass(optimizer, Enum)):
        raise HookError("found an Optimizer that is no Enum")
    adaptive, fused = place(optimizer, "is_adaptive"), place(optimizer, "supports_fused_back_pass")
    if not isinstance(adaptive, property):
        raise HookError("found an Optimizer.is_adaptive that is no property")
    for name in MEMBERS:
        add_member(optimizer, name)

    def is_adaptive(self: Enum) -> bool:
        rule = rule_of(self)
        return adaptive.fget(self) if rule is None else RULES[rule].rate_found

    def supports_fused_back_pass(self: Enum) -> bool:
        return rule_of(self) is not None or fused(self)

    optimizer.is_adaptive = property(is_adaptive)
    optimizer.supports_fused_back_pass = supports_fused_back_pass


def add_member(kind: type[Enum], name: str) -> None:
    """Adds a member whose value is its name, as if it had been written last in the class; once."""
    if name in kind.__members__:
        return
    member = object.__new__(kind)
    member._name_ = member._value_ = name
    member.__objclass__ = kind
    member._sort_order_ = len(kind._member_names_)
    kind._member_names_.append(name)
    kind._member_map_[name] = member
    kind._value2member_map_[name] = member
    # an enumeration refuses to be assigned members
    type.__setattr__(kind, name, member)
