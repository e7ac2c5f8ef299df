class BaseLoraTabView:
    def __init__(self, components):
        self.components = components

    def build_lora_options(self, master, controller, ui_state, peft_type):
        self.components.label(master, 1, 0, "Rank", tooltip="Of the factors")
        self.components.entry(master, 1, 1, ui_state, "lora_rank")
