class NamedParameterGroup:
    def __init__(self, unique_name, parameters, learning_rate, display_name=None):
        self.unique_name, self.display_name = unique_name, display_name or unique_name
        self.parameters, self.learning_rate = list(parameters), learning_rate


class NamedParameterGroupCollection:
    def __init__(self):
        self.groups = []

    def add_group(self, group):
        self.groups.append(group)

    def parameters(self):
        return sum((group.parameters for group in self.groups), [])

    def parameters_for_optimizer(self, config):
        rates = [config.learning_rate if g.learning_rate is None else g.learning_rate for g in self.groups]
        return [
            {"name": group.display_name, "params": list(group.parameters), "lr": lr, "initial_lr": lr}
            for group, lr in zip(self.groups, rates, strict=True)
        ]

    @property
    def unique_name_mapping(self):
        return [group.unique_name for group in self.groups]
