"""Files with a digest of their content: without it, Parquet and torch load damaged files silently, or crash."""

import hashlib

SEAL = b"sealed:"
BLANK = SEAL + b"0" * 64
"""Placeholder for the digest; the content must contain it exactly once."""


def with_digest(content: bytes) -> bytes:
    """The content with its digest in place of ``BLANK``."""
    return content.replace(BLANK, SEAL + _digest(content))


def verified(content: bytes) -> bytes:
    """The content, if it has not changed since :func:`with_digest` returned it.

    Raises:
        ValueError: if it has changed.
    """
    start = content.rfind(SEAL)
    end = start + len(BLANK)
    if content[start:end] != SEAL + _digest(content[:start] + BLANK + content[end:]):
        raise ValueError("its content has changed since it was written")
    return content


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()
