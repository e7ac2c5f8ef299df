from modules.util.NamedParameterGroup import NamedParameterGroup


class BaseModelSetup:
    def report_to_tensorboard(self, model, config, scheduler, tensorboard):
        for name, lr in zip(model.param_group_mapping, scheduler.get_last_lr(), strict=True):
            tensorboard.add_scalar(f"lr/{name}", lr, model.train_progress.global_step)

    def _create_model_part_parameters(self, parameter_group_collection, unique_name, model, config):
        if config.train:
            group = NamedParameterGroup(unique_name, model.parameters(), config.learning_rate)
            parameter_group_collection.add_group(group)
