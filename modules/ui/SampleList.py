from modules.ui.ItemList import ItemList
from modules.util.config.SampleConfig import SampleConfig
from modules.viewModel.families import sample_defaults_of


class SampleList(ItemList):
    """The samples that a run draws."""

    key, item_class, plural, add_text = "samples", SampleConfig, "samples", "Add a sample"

    def describe(self, item: SampleConfig) -> tuple[str, str]:
        """Prompt; size, seed, guidance."""
        seed = "random seed" if item.random_seed else f"seed {item.seed}"
        about = f"{item.width} × {item.height} · {seed} · {item.diffusion_steps} steps · guidance {item.cfg_scale:g}"
        return item.prompt or "no prompt", about

    def new_item(self) -> SampleConfig:
        """One like the last, so that sizes are what they were; the first is as the model family draws it."""
        if not self.list.items:
            return SampleConfig.from_dict(sample_defaults_of(self.app.form.config.model_type))
        return self.list.items[-1].model_copy(deep=True, update={"prompt": ""})
