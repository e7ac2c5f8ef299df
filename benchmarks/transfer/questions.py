"""Over what a learning rate should transfer, and which settings show it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.transfer.Setting import DORA, DORA_OFT, FULL, LORA, OFT, Setting
from benchmarks.transfer.tasks import ONE, TASKS, WIDTHS
from scaled_optim.rules.registry import RULES

RULE_NAMES = ("ADAMW_ADV", "LION_ADV", "MUON_ADV", "STIEFEL_LORA", "LORA_RITE")
RANKS, BLOCKS = (1, 4, 16, 64, 128), (4, 16, 64, 128)
# the first task has them all, the others the ends and the middle, and at most as many ranks as a rule allows
FEWER_RANKS, FEWER_BLOCKS = (1, 16, 64, 128), (4, 16, 128)
FULL_TASK = "lumo"
COMPARED_WIDTHS = ("1/2", ONE, "2")
RANK, BLOCK = 16, 16
# of a slice that takes minutes
QUICK_SIZES = {LORA: (4, RANK, 64), OFT: (4, 64)}
# an up factor with orthonormal columns has at most as many ranks as the narrowest layer has outputs
NARROWEST = {"lumo": 96, "longer": 96, "second": 96, "sentence": 384}
# tasks of some rules only, with scaled steps: those whose best rates after 40 steps are chance, or differ
RULES_OF: Mapping[str, tuple[str, ...]] = {"longer": ("LION_ADV",)}
SEEDS = (0, 1, 2)
# where searches begin; a wrong one costs trainings, but leads to the same rate
SCALED_RATE = 0.022
UNSCALED_RATES: Mapping[tuple[str, str], float] = {
    ("ADAMW_ADV", LORA): 0.003, ("ADAMW_ADV", DORA): 0.003, ("ADAMW_ADV", OFT): 0.04, ("ADAMW_ADV", DORA_OFT): 0.02,
    ("ADAMW_ADV", FULL): 0.0003,
    ("LION_ADV", LORA): 0.0008, ("LION_ADV", DORA): 0.0008, ("LION_ADV", OFT): 0.01, ("LION_ADV", DORA_OFT): 0.004,
    ("LION_ADV", FULL): 0.0001,
    ("MUON_ADV", LORA): 0.006, ("MUON_ADV", DORA): 0.006, ("MUON_ADV", OFT): 0.04, ("MUON_ADV", DORA_OFT): 0.02,
    ("MUON_ADV", FULL): 0.001,
    ("LORA_RITE", LORA): 0.01, ("LORA_RITE", DORA): 0.01,
}  # fmt: skip


@dataclass(frozen=True)
class Axis:
    """Something over which the best rate should stay the same.

    Attributes:
        name: in tables.
        goal: the largest ratio of two best rates.
    """

    name: str
    goal: float


RANK_AXIS, BLOCK_AXIS = Axis("rank", 1.25), Axis("block size", 1.25)
WIDTH_AXIS, METHOD_AXIS = Axis("width", 1.25), Axis("method", 1.5)
AXES = (RANK_AXIS, BLOCK_AXIS, WIDTH_AXIS, METHOD_AXIS)


def axis_settings(axis: Axis, task: str, rule: str, scaled: bool) -> list[Setting]:
    """The settings along an axis; none where the rule or the task does not have it."""

    def setting(method: str, size: int, width: str = ONE) -> Setting:
        return Setting(task, width, rule, scaled, method, size)

    pairs = RULES[rule].needs_pairs
    if axis == RANK_AXIS:
        most = NARROWEST[task] if RULES[rule].orthonormal_up else max(RANKS)
        ranks = [rank for rank in (RANKS if task == FULL_TASK else FEWER_RANKS) if rank <= most]
        return [setting(LORA, rank) for rank in ranks if task == FULL_TASK or rank in (1, RANK, max(ranks))]
    if axis == BLOCK_AXIS:
        return [] if pairs else [setting(OFT, block) for block in (BLOCKS if task == FULL_TASK else FEWER_BLOCKS)]
    if axis == WIDTH_AXIS:
        widths = [width for width in COMPARED_WIDTHS if width in TASKS[task].widths]
        return [setting(LORA, RANK, width) for width in widths] if len(widths) > 1 else []
    others = [] if pairs else [setting(OFT, BLOCK), setting(FULL, 0)]
    return [setting(LORA, RANK), setting(DORA, RANK), *others]


def beside(task: str, rule: str, scaled: bool) -> list[Setting]:
    """Settings that are shown, but belong to no axis.

    DoRA-OFT, which moves the function twice at once (see DESIGN), and with the first rule the widths of other methods
    and the narrowest base, which learns a third of what the others learn.
    """
    if RULES[rule].needs_pairs or task != FULL_TASK:
        return []
    shown = [width for width in WIDTHS if width != ONE]
    widths = [(width, *kind) for width in shown for kind in ((LORA, RANK), (OFT, BLOCK), (FULL, 0))]
    kinds = [(ONE, DORA_OFT, BLOCK), *(widths if rule == RULE_NAMES[0] and scaled else [])]
    return [Setting(task, width, rule, scaled, method, size) for width, method, size in kinds]


def reference(task: str, rule: str, scaled: bool) -> Setting:
    """The setting whose best rate is used everywhere: LoRA of rank 16."""
    return Setting(task, ONE, rule, scaled, LORA, RANK)


def settings_of(task: str, rule: str, scaled: bool) -> list[Setting]:
    """All settings of a task and rule, the reference first; none for what a rule or a task has not."""
    if not scaled and (RULES[rule].orthonormal_up or task in RULES_OF):
        return []
    if rule not in RULES_OF.get(task, RULE_NAMES):
        return []
    along = [setting for axis in AXES for setting in axis_settings(axis, task, rule, scaled)]
    return list(dict.fromkeys([reference(task, rule, scaled), *along, *beside(task, rule, scaled)]))


def expected_rate(setting: Setting) -> float:
    """Where the search for a setting's best rate begins."""
    return SCALED_RATE if setting.scaled else UNSCALED_RATES[setting.rule, setting.method]


def all_settings(tasks: Sequence[str], rules: Sequence[str], scaled: bool) -> list[Setting]:
    """The settings of several tasks and rules."""
    return [setting for task in tasks for rule in rules for setting in settings_of(task, rule, scaled)]
