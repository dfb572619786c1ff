"""Which texts are taken: by Nova for names and metadata (nova-facts, 3 and 5), and by us for everything else."""

import re
import unicodedata

MAX_NAME = 254
"""Huawei's bound; Nova's own is 255."""
MAX_METADATA_TEXT = 255

METADATA_KEY = re.compile(r"[a-zA-Z0-9\-_:. ]{1,255}", re.ASCII)


def printable(text: str) -> bool:
    """No control character, no line break, no half of a surrogate pair: what a ledger and a table can show."""
    if text.isascii():
        return text.isprintable()
    return not any(c[0] == "C" or c in ("Zl", "Zp") for c in map(unicodedata.category, text))


def in_plane_zero(text: str) -> bool:
    """No character beyond U+FFFF: Nova refuses those in names, and answers 500 to them in metadata."""
    return text.isascii() or max(text, default="") <= "\uffff"


def server_name_fault(name: str) -> str | None:
    """Why Nova or Huawei would refuse `name` for a server, with the remedy; None where they take it."""
    if not name or name.isspace():
        return "must not be empty or blank"
    if len(name) > MAX_NAME:
        return f"is {len(name)} characters long; the cloud takes at most {MAX_NAME}"
    if name != name.strip():
        return "must not begin or end with a blank: the cloud refuses such names"
    if not printable(name):
        return "must be of printable characters: the cloud refuses others in names"
    if not in_plane_zero(name):
        return "must not hold emoji or other characters beyond U+FFFF: the cloud refuses them in names"
    return None


def metadata_key_fault(key: str) -> str | None:
    """Why Nova would refuse `key`; None where it takes it."""
    if METADATA_KEY.fullmatch(key) is None:
        return "a metadata key is 1 to 255 of letters, digits, blanks and - _ : . (the cloud refuses others)"
    return None


def metadata_value_fault(value: str) -> str | None:
    """Why Nova would refuse `value`, or fail on it; None where it takes it."""
    if len(value) > MAX_METADATA_TEXT:
        return f"is {len(value)} characters long; a metadata value is at most {MAX_METADATA_TEXT}"
    if "\0" in value or any(unicodedata.category(c) == "Cs" for c in value):
        return "must not hold NUL characters or halves of surrogate pairs"
    if not in_plane_zero(value):
        return "must not hold emoji or other characters beyond U+FFFF: the cloud's database fails on them"
    return None
