"""What the plugin does with each module of OneTrainer, right after it was loaded: `apply(module)`."""
