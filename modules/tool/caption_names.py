"""Names that the captioning tool knows by itself. The window reads them, so nothing heavy is imported here."""

KNOWN_MODELS = (
    "florence-community/Florence-2-base",
    "florence-community/Florence-2-large",
    "Salesforce/blip-image-captioning-large",
    "Salesforce/blip2-opt-2.7b",
    "Qwen/Qwen2.5-VL-3B-Instruct",
    "SmilingWolf/wd-eva02-large-tagger-v3",
)
"""Names on the hub that are offered. Every other model of their kinds can be named, too."""

FLORENCE_TASKS = ("<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>")
"""What Florence-2 can be asked for that is a caption."""

FLORENCE_TASK = "<MORE_DETAILED_CAPTION>"
CHAT_PROMPT = "Describe this image in one or two sentences. Answer with the description only."
"""What is asked where nothing else is said."""

MOST_TOKENS = 256
"""Tokens of a caption at most; longer ones are cut there."""

THRESHOLD = 0.35
"""Probability from which a tagger's tag is written, as its authors recommend for general tags."""
