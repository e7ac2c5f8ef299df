"""Adds the form of OFT's scale and the start values of LoRA to the LoRA tab."""

from types import ModuleType
from typing import Any

from scaled_onetrainer.fields import SCALE_FORMS, STARTS
from scaled_onetrainer.run_hook import place

# by OneTrainer's name of the kind of adapter: key, label, help, choices, and the free cell of the grid
ROWS: dict[str, tuple[str, str, str, tuple[str, ...], tuple[int, int]]] = {
    "OFT_2": (
        "oft_scale_mode",
        "OFT scale form",
        "What Scaled OFT divides the trained numbers by. ROW: twice the root of the block size less one, as OneTrainer "
        "does. ELEMENTS: the root of how many numbers a block has, so that a learning rate holds for all block sizes. "
        "Has no effect while Scaled OFT is off. Default: ROW.",
        SCALE_FORMS,
        (3, 3),
    ),
    "LORA": (
        "lora_init",
        "Start values",
        "What a new LoRA starts from. KAIMING: the down factor uniform at random, as OneTrainer draws it. NORMAL: the "
        "down factor normal at random. ORTHONORMAL: the up factor with orthonormal columns, as STIEFEL_LORA needs; a "
        "layer then has at most as many ranks as outputs. Its partner starts at zero. Default: KAIMING.",
        STARTS,
        (4, 3),
    ),
}


def apply(module: ModuleType) -> None:
    """`build_lora_options` shows its own rows, then ours in cells that it leaves free."""
    view = place(module, "BaseLoraTabView")
    build = place(view, "build_lora_options")

    def build_lora_options(self: Any, master: Any, controller: Any, ui_state: Any, peft_type: Any) -> None:
        build(self, master, controller, ui_state, peft_type)
        if str(peft_type) not in ROWS:
            return
        key, title, text, choices, (line, column) = ROWS[str(peft_type)]
        self.components.label(master, line, column, title, tooltip=text, wide_tooltip=True)
        self.components.options_kv(master, line, column + 1, [(word, word) for word in choices], ui_state, key)

    view.build_lora_options = build_lora_options
