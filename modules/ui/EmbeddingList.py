from modules.ui.ItemList import ItemList
from modules.util.config.TrainEmbeddingConfig import TrainEmbeddingConfig


class EmbeddingList(ItemList):
    """The embeddings that are trained or used beside the adapter or model."""

    key, item_class, plural = "additional_embeddings", TrainEmbeddingConfig, "additional embeddings"
    add_text, switch_key = "Add an embedding", "train"

    def describe(self, item: TrainEmbeddingConfig) -> tuple[str, str]:
        """Placeholder; where it starts and whether it is trained."""
        start = f"from {item.model_name}" if item.model_name else f'from the words "{item.initial_embedding_text}"'
        tokens = (
            f"{item.token_count} token{'s' if item.token_count > 1 else ''}"
            if item.token_count
            else "as many tokens as its text"
        )
        return item.placeholder, f"{start} · {tokens} · {'trained' if item.train else 'only used'}"

    def new_item(self) -> TrainEmbeddingConfig:
        """With a placeholder that no other has."""
        taken = {item.placeholder for item in self.list.items} | {self.app.form.config.embedding.placeholder}
        names = (f"<embedding{number}>" for number in range(1, len(taken) + 2))
        return TrainEmbeddingConfig(placeholder=next(name for name in names if name not in taken))
