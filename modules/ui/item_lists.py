"""Lists of a config that need no more than `ItemList` gives."""

from modules.ui.ItemList import ItemList
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainEmbeddingConfig import TrainEmbeddingConfig
from modules.viewModel.list_items import describe_embedding, describe_sample, next_embedding, next_sample


class SampleList(ItemList):
    """The samples that a run draws."""

    key, item_class, plural, add_text = "samples", SampleConfig, "samples", "Add a sample"

    def describe(self, item: SampleConfig) -> tuple[str, str]:
        """Prompt; size, seed, guidance."""
        return describe_sample(item)

    def new_item(self) -> SampleConfig:
        """One like the last."""
        return next_sample(self.list.items, self.app.form.config.model_type)


class EmbeddingList(ItemList):
    """The embeddings that are trained or used beside the adapter or model."""

    key, item_class, plural = "additional_embeddings", TrainEmbeddingConfig, "additional embeddings"
    add_text, switch_key = "Add an embedding", "train"

    def describe(self, item: TrainEmbeddingConfig) -> tuple[str, str]:
        """Placeholder; where it starts and whether it is trained."""
        return describe_embedding(item)

    def new_item(self) -> TrainEmbeddingConfig:
        """With a placeholder that no other has."""
        return next_embedding(self.list.items, self.app.form.config.embedding.placeholder)
