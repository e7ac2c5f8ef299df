"""What loading of weights and their settings raises. Quick to load, as tools need no more of the families."""

from safetensors import SafetensorError

LOAD_ERRORS = (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, SafetensorError)
