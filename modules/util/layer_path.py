"""How messages and files name a layer."""


def layer_path(component: str, layer: str) -> str:
    """ "<component>.<layer>", or the one of them that is not empty.

    Args:
        component: of the model, for example "unet"; empty where layers have a file's own names.
        layer: module path inside the component; empty where the component itself is the layer.
    """
    return ".".join(filter(None, (component, layer)))
