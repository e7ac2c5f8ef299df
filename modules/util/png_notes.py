"""Texts and colour profiles in PNG files (PNG specification, third edition, sections 11.3.2 and 11.3.3).

Pillow refuses a whole image if they are large. They are not trained, so that they can be left out.
"""

import struct
import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PROFILE = b"iCCP"
TEXTS = (b"tEXt", b"zTXt", b"iTXt")
MOST_TEXT = 1 << 20
"""Bytes of texts that are kept in all, decompressed: some tell which side is up."""


def without_notes(data: bytes) -> bytes | None:
    """A PNG file without its colour profile and large texts; None if it is no PNG, or has none of them."""
    if not data.startswith(SIGNATURE):
        return None
    kept, place, room = [SIGNATURE], len(SIGNATURE), MOST_TEXT
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = min(place + 12 + length, len(data))
        size = length
        if kind in TEXTS:
            size = _text_size(kind, data[place + 8 : place + 8 + length], room)
        if kind != PROFILE and (kind not in TEXTS or size <= room):
            kept.append(data[place:end])
            room -= size if kind in TEXTS else 0
        place = end
    kept.append(data[place:])
    slim = b"".join(kept)
    return slim if len(slim) < len(data) else None


def _text_size(kind: bytes, content: bytes, room: int) -> int:
    """Bytes of a text when it is decompressed; more than `room` if there are more, or if it is broken."""
    if len(content) > room:
        return len(content)
    name, _, rest = content.partition(b"\0")
    if kind == b"iTXt" and rest[:1] == b"\1":
        rest = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    elif kind == b"zTXt":
        rest = rest[1:]
    else:
        return len(content)
    try:
        return len(name) + len(zlib.decompressobj().decompress(rest, room + 1))
    except zlib.error:
        return room + 1
