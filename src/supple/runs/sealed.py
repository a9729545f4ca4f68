"""Files that carry a digest of themselves: Parquet and torch load changed values without a word, or die of them."""

import hashlib

SEAL = b"sealed:"
BLANK = SEAL + b"0" * 64
"""Where in a file its digest goes; the content must hold it once."""


def sealed(content: bytes) -> bytes:
    """Content with its digest in the place of ``BLANK``."""
    return content.replace(BLANK, SEAL + _digest(content))


def checked(content: bytes) -> bytes:
    """Sealed content in which nothing has changed since.

    Raises:
        ValueError: for any other.
    """
    start = content.rfind(SEAL)
    end = start + len(BLANK)
    if content[start:end] != SEAL + _digest(content[:start] + BLANK + content[end:]):
        raise ValueError("it is not what was written")
    return content


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()
