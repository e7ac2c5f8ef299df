class BaseMuonAdamWindowView:
    def __init__(self, components):
        self.components = components

    def build_content(self, master, controller, ui_state):
        self.components.label(master, 0, 0, "Beta1")
        self.components.entry(master, 0, 1, ui_state, "beta1")
