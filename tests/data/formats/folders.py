"""Folders as the tools of annotation write them, made on the spot."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image


def image(path: Path, width: int = 40, height: int = 30, orientation: int = 1) -> Path:
    """An image file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    exif = Image.Exif()
    if orientation != 1:
        exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif.tobytes() if orientation != 1 else b"")
    return path


def text(path: Path, content: str) -> Path:
    """A text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def xml_object(name: str, corners, difficult: int | None = None) -> str:
    """An object of a Pascal VOC xml."""
    sides = "".join(f"<{s}>{v}</{s}>" for s, v in zip(("xmin", "ymin", "xmax", "ymax"), corners))
    flag = "" if difficult is None else f"<difficult>{difficult}</difficult>"
    return f"\t<object>\n\t\t<name>{name}</name>\n\t\t{flag}\n\t\t<bndbox>{sides}</bndbox>\n\t</object>\n"


def xml(path: Path, file_name: str, objects, size=(40, 30)) -> Path:
    """A Pascal VOC xml; ``size`` is (width, height)."""
    body = "".join(objects)
    return text(
        path,
        f"<annotation>\n\t<folder>x</folder>\n\t<filename>{file_name}</filename>\n\t<size><width>{size[0]}</width>"
        f"<height>{size[1]}</height><depth>3</depth></size>\n{body}</annotation>\n",
    )


def labelme(path: Path, image_path: str, shapes, size=(40, 30)) -> Path:
    """A json of LabelMe; a shape is (label, kind, points) or with more keys behind."""
    entries = [
        {"label": label, "shape_type": kind, "points": points, "flags": {}, "group_id": None, **dict(*more)}
        for label, kind, points, *more in shapes
    ]
    content = {"version": "5.0", "flags": {}, "shapes": entries, "imagePath": image_path, "imageData": None,
               "imageHeight": size[1], "imageWidth": size[0]}  # fmt: skip
    return text(path, json.dumps(content))


def objects(data) -> list[tuple]:
    """(image, class, x, y, width, height, crowd) of each object of a data set, sorted."""
    file = data.file
    names = list(file.file_names)
    rows = zip(file.owners.tolist(), file.labels.tolist(), file.boxes.tolist(), file.crowd.tolist())
    return sorted((names[o], file.classes.names[label], *box, crowd) for o, label, box, crowd in rows)


def close(found, wanted) -> bool:
    """Whether two lists of objects are the same to 1e-6 pixels."""
    return len(found) == len(wanted) and all(
        f[:2] == w[:2] and np.allclose(f[2:6], w[2:6], atol=1e-6) and bool(f[6]) == bool(w[6])
        for f, w in zip(sorted(found), sorted(wanted))
    )
