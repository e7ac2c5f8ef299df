from modules.ui.ItemList import ItemList
from modules.util.config.SampleConfig import SampleConfig
from modules.viewModel.list_items import describe_sample, next_sample


class SampleList(ItemList):
    """The samples that a run draws."""

    key, item_class, plural, add_text = "samples", SampleConfig, "samples", "Add a sample"

    def describe(self, item: SampleConfig) -> tuple[str, str]:
        """Prompt; size, seed, guidance."""
        return describe_sample(item)

    def new_item(self) -> SampleConfig:
        """One like the last."""
        return next_sample(self.list.items, self.app.form.config.model_type)
