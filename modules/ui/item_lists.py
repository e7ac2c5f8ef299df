"""Lists of a config that need no more than `ItemList` gives."""

from modules.ui.ItemList import ItemList
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainEmbeddingConfig import TrainEmbeddingConfig
from modules.util.texts import later, tr_n
from modules.viewModel.list_items import describe_embedding, describe_sample, next_embedding, next_sample


class SampleList(ItemList):
    """The samples that a run draws."""

    key, item_class, add_text = "samples", SampleConfig, later("Add a sample")

    def counted(self, n: int) -> str:
        """How many samples there are, in words."""
        return tr_n("{n} sample", "{n} samples", n)

    def describe(self, item: SampleConfig) -> tuple[str, str]:
        """Prompt; size, seed, guidance."""
        return describe_sample(item)

    def new_item(self) -> SampleConfig:
        """One like the last."""
        return next_sample(self.list.items, self.app.form.config.model_type)


class EmbeddingList(ItemList):
    """The embeddings that are trained or used beside the adapter or model."""

    key, item_class = "additional_embeddings", TrainEmbeddingConfig
    add_text, switch_key = later("Add an embedding"), "train"

    def counted(self, n: int) -> str:
        """How many embeddings there are, in words."""
        return tr_n("{n} additional embedding", "{n} additional embeddings", n)

    def describe(self, item: TrainEmbeddingConfig) -> tuple[str, str]:
        """Placeholder; where it starts and whether it is trained."""
        return describe_embedding(item)

    def new_item(self) -> TrainEmbeddingConfig:
        """With a placeholder that no other has."""
        return next_embedding(self.list.items, self.app.form.config.embedding.placeholder)
