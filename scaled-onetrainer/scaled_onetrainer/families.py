"""First and last layers of the models that OneTrainer trains, by the class of the part: they step as such."""

from scaled_optim.description import INPUT_LAYERS, OUTPUT_LAYERS


def input_layers(kind: str) -> frozenset[str]:
    """Paths of the layers that activations enter a part by."""
    return INPUT_LAYERS


def output_layers(kind: str) -> frozenset[str]:
    """Paths of the layers that activations leave a part by."""
    return OUTPUT_LAYERS
