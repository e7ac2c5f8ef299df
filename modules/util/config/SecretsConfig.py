from functools import partial
from typing import Any

from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.option import option
from modules.util.enum.OptionGroup import OptionGroup

basic = partial(option, group=OptionGroup.SECRETS, affects_result=False, secret=True)


class SecretsConfig(BaseConfig):
    """Tokens and passwords. They are written only into a file that the user saves by hand."""

    huggingface_token: str = basic(
        "", "Hugging Face token", "Access token for gated models. It is never logged and never stored beside a model."
    )
    wandb_api_key: str = basic(
        "", "API key of wandb", "For runs that are logged to Weights & Biases. Empty: that of `wandb login`."
    )
    cloud: dict[str, Any] = basic(
        dict, "Cloud access", "Access data of OneTrainer's cloud runs; kept for it, not used here.", advanced=True
    )
