from modules.util.NamedParameterGroup import NamedParameterGroup


class PairEmbeddingSetup:
    """A group for each embedding that is trained, as large ones have rates of their own."""

    def add_embeddings(self, embeddings, parameter_group_collection, learning_rate):
        for name, vector in embeddings.items():
            parameter_group_collection.add_group(NamedParameterGroup(f"embeddings/{name}", [vector], learning_rate))
