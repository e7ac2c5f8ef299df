from modules.util.optimizer_util import OPTIMIZER_DEFAULT_PARAMETERS


class BaseOptimizerParamsWindowView:
    def __init__(self, components):
        self.components = components

    def build_content(self, frame, names, ui_state):
        self.components.label(frame, 0, 0, "Optimizer", tooltip="Which one")
        self.components.options(frame, 0, 1, names, ui_state, "optimizer")

    def build_dynamic_content(self, master, controller, optimizer_ui_state, update_user_pref_cb, open_muon_adam_cb):
        for row, key in enumerate(OPTIMIZER_DEFAULT_PARAMETERS[controller.config.optimizer.optimizer], start=1):
            switch = isinstance(OPTIMIZER_DEFAULT_PARAMETERS[controller.config.optimizer.optimizer][key], bool)
            self.components.label(master, row, 0, key, tooltip=key)
            if switch:
                self.components.switch(master, row, 1, optimizer_ui_state, key, command=update_user_pref_cb)
            else:
                self.components.entry(master, row, 1, optimizer_ui_state, key, command=update_user_pref_cb)
