"""Images named by a web address (http or https), read into memory.

A path cannot hold the two slashes of an address; ``Path("https://host/a.jpg")`` has one, and ``address`` gives the
other back.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from densekit.errors import DensekitError

MOST_BYTES = 2**27
"""A larger answer is not read to its end (128 MiB)."""

ANSWER_SECONDS = 15.0
"""How long to wait for a sign of the server."""

MOST_SECONDS = 120.0
"""How long a whole image may take."""

_KEPT = 16  # images are read again where they are drawn
_PIECE = 2**16


def is_web(path: Path | str) -> bool:
    """Whether this is a web address."""
    return str(path).startswith(("http:/", "https:/"))


def address(path: Path) -> str:
    """The address that a path stands for; of a file its path."""
    scheme, _, rest = str(path).replace("\\", "/").partition(":/")
    return f"{scheme}://{rest.lstrip('/')}" if is_web(path) else str(path)


@contextlib.contextmanager
def named_by_address(path: Path) -> Iterator[None]:
    """Errors about an image name its address, not the path that stands for it."""
    try:
        yield
    except DensekitError as error:
        raise (DensekitError(str(error).replace(str(path), address(path))) if is_web(path) else error) from None


@functools.lru_cache(_KEPT)
def fetch(url: str) -> bytes:
    """What is at an address.

    Raises:
        DensekitError: there is no such server or image, it is too large or too slow, or the connection broke.
    """
    began, pieces, length = time.monotonic(), [], 0
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "densekit"})
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
            while piece := answer.read(_PIECE):
                pieces.append(piece)
                length += len(piece)
                if length > MOST_BYTES:
                    raise DensekitError(f"{url}: more than {MOST_BYTES >> 20} MiB; download it, and give the file")
                if time.monotonic() - began > MOST_SECONDS:
                    raise DensekitError(f"{url}: not there after {MOST_SECONDS:.0f} s; download it, and give the file")
            due = answer.headers.get("Content-Length")
    except urllib.error.HTTPError as error:
        raise DensekitError(f"{url}: the server says {error.code} {error.reason}; correct the address") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise DensekitError(f"{url}: can't be fetched ({reason}); correct the address, or try again later") from None
    if not length or (due is not None and due.isdecimal() and int(due) != length):
        raise DensekitError(f"{url}: the image is cut off after {length} bytes; try again later")
    return b"".join(pieces)
