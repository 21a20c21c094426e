"""BigTIFF files (TIFF with places of 64 bits) as classic TIFF, for decoders of the first kind alone.

The directories are written anew behind the bytes of the file, which stay where they are.
"""

from __future__ import annotations

import struct

STARTS = (b"II+\0", b"MM\0+")

_LENGTHS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_LONG, _LONG8 = 4, (16, 17, 18)
_PAGES = 4096
_MOST = 2**32

_Entry = tuple[int, int, int, bytes]  # tag, type, count, four bytes


def as_classic(data: bytes) -> bytes:
    """The same images as a classic TIFF; other files as they are.

    Raises:
        ValueError: it is too large for one; also what ``struct`` raises of a damaged file.
    """
    if not data.startswith(STARTS):
        return data
    order = "<" if data[:2] == b"II" else ">"
    tail = bytearray(len(data) % 2)  # places are even
    directories: list[list[_Entry]] = []
    (at,) = struct.unpack_from(order + "Q", data, 8)
    while at and len(directories) < _PAGES:
        (count,) = struct.unpack_from(order + "Q", data, at)
        places = range(at + 8, at + 8 + 20 * count, 20)
        directories.append([e for place in places if (e := _entry(data, order, place, tail)) is not None])
        (at,) = struct.unpack_from(order + "Q", data, places.stop)
    first = place = len(data) + len(tail)
    for number, entries in enumerate(directories, 1):
        place += 6 + 12 * len(entries)
        tail += struct.pack(order + "H", len(entries))
        tail += b"".join(struct.pack(order + "HHI", *entry[:3]) + entry[3] for entry in entries)
        tail += struct.pack(order + "I", place if number < len(directories) else 0)
    if place >= _MOST:
        raise ValueError(f"{len(data)} bytes are too many for a classic TIFF")
    return data[:2] + struct.pack(order + "HI", 42, first) + data[8:] + bytes(tail)


def _entry(data: bytes, order: str, place: int, tail: bytearray) -> _Entry | None:
    """An entry of a directory; values that have no room in it go to the tail. None for types that nobody knows."""
    tag, kind, count = struct.unpack_from(order + "HHQ", data, place)
    if kind in _LONG8:
        length = 8 * count
    elif kind in _LENGTHS:
        length = _LENGTHS[kind] * count
    else:
        return None
    start = place + 12 if length <= 8 else struct.unpack_from(order + "Q", data, place + 12)[0]
    values = data[start : start + length]
    if len(values) < length:
        raise ValueError(f"tag {tag} lies outside the file")
    if kind in _LONG8:
        kind, values = _LONG, struct.pack(f"{order}{count}I", *struct.unpack(f"{order}{count}Q", values))
    if len(values) <= 4:
        return tag, kind, count, values.ljust(4, b"\0")
    away = struct.pack(order + "I", len(data) + len(tail))
    tail += values + bytes(len(values) % 2)
    return tag, kind, count, away
