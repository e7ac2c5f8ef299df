from modules.ui.ItemList import ItemList
from modules.util.config.TrainEmbeddingConfig import TrainEmbeddingConfig
from modules.viewModel.list_items import describe_embedding, next_embedding


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
