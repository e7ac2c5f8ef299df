"""The tokenizer of OpenAI's CLIP, built from the merges in `resources/clip_tokenizer/`: no download needed."""

import gzip
from functools import cache
from pathlib import Path

from transformers import CLIPTokenizer

MERGES = Path(__file__).parents[2] / "resources" / "clip_tokenizer" / "merges.txt.gz"
START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
MAX_TOKENS = 77


@cache
def clip_merges() -> tuple[tuple[str, str], ...]:
    """The 48,894 byte-pair merges, most frequent first."""
    lines = gzip.decompress(MERGES.read_bytes()).decode().splitlines()
    return tuple(tuple(line.split(" ")) for line in lines)


def byte_alphabet() -> list[str]:
    """One printable character per byte, in the order of CLIP's first 256 ids.

    Bytes that print stand for themselves and come first; the others follow as U+0100 and up.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + k) for k in range(256 - len(printable))]


@cache
def clip_vocabulary() -> dict[str, int]:
    """Token -> id, 0 … 49,407: bytes, bytes that end a word, merges in order, start and end of text."""
    single = byte_alphabet()
    tokens = [*single, *(letter + WORD_END for letter in single), *map("".join, clip_merges()), START, END]
    return {token: index for index, token in enumerate(tokens)}


def clip_tokenizer(pad_token: str = END) -> CLIPTokenizer:
    """CLIP's tokenizer for 77 tokens. SD 1 pads with the end token, SD 2 with `!`, whose id is 0."""
    return CLIPTokenizer(
        vocab=clip_vocabulary(),
        merges=list(clip_merges()),
        bos_token=START,
        eos_token=END,
        unk_token=END,
        pad_token=pad_token,
        model_max_length=MAX_TOKENS,
    )
