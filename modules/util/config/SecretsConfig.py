from typing import Any

from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.option import option
from modules.util.enum.OptionGroup import OptionGroup


class SecretsConfig(BaseConfig):
    """Tokens and passwords. They are written only into a file that the user saves by hand."""

    huggingface_token: str = option(
        "",
        "Hugging Face token",
        "Access token for gated models. It is never logged and never stored beside a model.",
        OptionGroup.SECRETS,
        affects_result=False,
        secret=True,
    )
    cloud: dict[str, Any] = option(
        dict,
        "Cloud access",
        "Access data of OneTrainer's cloud runs; kept for it, not used here.",
        OptionGroup.SECRETS,
        affects_result=False,
        secret=True,
        advanced=True,
    )
