"""A data set that densekit generates by itself: coloured shapes on textured grounds, for detection and segmentation.

    out/images/{train,val,test}/000000.jpg
    out/annotations/{train,val,test}.json     COCO: boxes, polygons, run lengths of crowds
    out/masks/{train,val,test}/000000.png     class indices, 0 background
    out/classes.txt                           names in the order of the masks' values

Everything is a pure function of the options and the seed. Images have several sizes; shapes overlap, differ in size,
colour and rotation; some images are empty, and some hold a crowd: many small discs annotated as one region. Category
ids have gaps and stand in another order in the file, as in real ones. Masks are the annotations painted in file order,
so that boxes, polygons and masks agree pixel for pixel.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from densekit.types import DensekitError

CLASSES = {"circle": 2, "square": 5, "triangle": 7, "star": 11}
"""Names and COCO category ids; in masks the classes are 1 to 4, in this order."""

SPLITS = ("train", "val", "test")

_MOST_COVERED = 0.4  # of an older shape, by newer ones
_EMPTY, _CROWDED = 0.05, 0.15  # parts of the images
_MANIFEST = "shapes.json"
_VERSION = 1

Image = npt.NDArray[np.uint8]
Random = np.random.Generator


@dataclasses.dataclass(slots=True)
class _Scene:
    """An image while it is painted; masks are [H, W]."""

    image: npt.NDArray[np.float32]
    mask: Image
    annotations: list[dict[str, Any]]
    regions: list[npt.NDArray[np.bool_]]


def generate_shapes(
    out: Path,
    *,
    train: int = 400,
    val: int = 80,
    test: int = 80,
    size: int = 160,
    objects: int = 6,
    seed: int = 0,
) -> bool:
    """Generate the data set, whole or not at all.

    Args:
        out: folder to make; a folder that already holds just this data set is left as it is.
        train: images for training.
        val: images to choose a checkpoint by.
        test: images for the last measurement.
        size: short side of the images in pixels; the long side is up to 1.4 times that.
        objects: the most shapes tried in an image.
        seed: another seed gives other images.

    Returns:
        Whether it was generated now; False where it was there.

    Raises:
        DensekitError: a number is out of range, or ``out`` holds something else.
    """
    counts = dict(zip(SPLITS, (train, val, test)))
    for name, value, low in (*((n, c, 1) for n, c in counts.items()), ("size", size, 32), ("objects", objects, 1)):
        if value < low:
            raise DensekitError(f"shapes: {name} must be at least {low}, not {value}")
    manifest = {"version": _VERSION, **counts, "size": size, "objects": objects, "seed": seed}
    if _is_there(out, manifest):
        return False
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        for number, split in enumerate(SPLITS):
            _write_split(temporary, split, counts[split], size, objects, (seed, number))
        (temporary / "classes.txt").write_text("\n".join(["background", *CLASSES]) + "\n", encoding="utf-8", newline="")
        (temporary / _MANIFEST).write_text(json.dumps(manifest) + "\n", encoding="utf-8", newline="")
        os.chmod(temporary, 0o755)
        if out.is_dir():
            out.rmdir()  # an empty folder may be taken
        temporary.rename(out)
    except OSError as error:
        raise DensekitError(f"{out}: cannot be written ({error.strerror or error}); choose another folder") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


def _is_there(out: Path, manifest: dict[str, Any]) -> bool:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        found = json.loads((out / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if found != manifest:
        what = "another generated data set" if isinstance(found, dict) else "something else"
        raise DensekitError(f"{out}: the folder holds {what}; remove it or choose another folder")
    return True


def _write_split(out: Path, split: str, count: int, size: int, objects: int, seed: tuple[int, int]) -> None:
    for kind in ("images", "masks"):
        (out / kind / split).mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i in range(count):
        random = np.random.default_rng(np.random.SeedSequence([*seed, i]))
        scene = _paint(random, size, objects)
        name, image_id = f"{split}/{i:06d}", 10 + 3 * i
        pixels = np.ascontiguousarray(_finished(scene, random)[:, :, ::-1])  # OpenCV writes BGR
        cv2.imwrite(str(out / "images" / f"{name}.jpg"), pixels, [cv2.IMWRITE_JPEG_QUALITY, 95])
        cv2.imwrite(str(out / "masks" / f"{name}.png"), scene.mask)
        height, width = scene.mask.shape
        images.append({"id": image_id, "file_name": f"{name}.jpg", "width": width, "height": height})
        annotations += [
            {"id": len(annotations) + k, "image_id": image_id, **a} for k, a in enumerate(scene.annotations, 1)
        ]
    content = {
        "info": {"description": f"densekit's generated shapes, {split}", "version": str(_VERSION)},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": CLASSES[n], "name": n} for n in ("triangle", "circle", "star", "square")],
    }
    (out / "annotations").mkdir(exist_ok=True)
    (out / "annotations" / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")


def _paint(random: Random, size: int, objects: int) -> _Scene:
    long = int(size * random.choice([1.0, 1.2, 1.4]))
    height, width = (size, long) if random.random() < 0.6 else (long, size)
    scene = _Scene(_ground(random, height, width), np.zeros((height, width), np.uint8), [], [])
    if random.random() < _EMPTY:
        return scene
    if random.random() < _CROWDED:
        _add_crowd(scene, random)
    for _ in range(int(random.integers(1, objects + 1))):
        _add_shape(scene, random)
    return scene


def _ground(random: Random, height: int, width: int) -> npt.NDArray[np.float32]:
    """[H, W, 3] dim ground with slow changes of colour."""
    coarse = random.uniform(20, 110, (4, 4, 3)).astype(np.float32)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)


def _add_shape(scene: _Scene, random: Random) -> None:
    """Add a shape, unless it would cover too much of one that is there."""
    height, width = scene.mask.shape
    radius = min(height, width) * float(random.choice([0.08, 0.13, 0.2])) * random.uniform(0.8, 1.2)
    label = int(random.integers(len(CLASSES)))
    centre = np.array([random.uniform(radius + 1, side - radius - 1) for side in (width, height)])
    polygon = np.round(centre + _outline(list(CLASSES)[label], random) * radius, 2)
    region = _rasterised(polygon, height, width)
    colour = random.uniform(130, 255, 3)
    if any((region & old).sum() > _MOST_COVERED * old.sum() for old in scene.regions):
        return
    corner, extent = polygon.min(0), np.ptp(polygon, axis=0)
    scene.annotations.append(
        {
            "category_id": list(CLASSES.values())[label],
            "bbox": np.round([*corner, *extent], 2).tolist(),
            "area": float(region.sum()),
            "iscrowd": 0,
            "segmentation": [polygon.ravel().tolist()],
        }
    )
    _cover(scene, region, label, colour)


def _outline(name: str, random: Random) -> npt.NDArray[np.float64]:
    """[n, 2] points of a shape within the unit circle, turned at random."""
    points, inner = {"circle": (24, 1.0), "square": (4, 1.0), "triangle": (3, 1.0), "star": (10, 0.45)}[name]
    angles = random.uniform(0, 2 * np.pi) + np.arange(points) * 2 * np.pi / points
    radii = np.where(np.arange(points) % 2, inner, 1.0)
    return np.asarray(radii[:, None] * np.stack((np.cos(angles), np.sin(angles)), 1))


def _add_crowd(scene: _Scene, random: Random) -> None:
    """Many small discs, annotated as one region by uncompressed run lengths."""
    height, width = scene.mask.shape
    side = min(height, width) // 3
    left, top = int(random.integers(1, width - side)), int(random.integers(1, height - side))
    region = np.zeros((height, width), np.uint8)
    for x, y in random.integers(3, side - 3, (30, 2)):
        cv2.circle(region, (left + int(x), top + int(y)), 2, 1, -1)
    filled = region.astype(bool)
    rows, columns = np.flatnonzero(filled.any(1)), np.flatnonzero(filled.any(0))
    box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
    scene.annotations.append(
        {
            "category_id": CLASSES["circle"],
            "bbox": [float(v) for v in box],
            "area": float(filled.sum()),
            "iscrowd": 1,
            "segmentation": {"size": [height, width], "counts": _run_lengths(filled)},
        }
    )
    _cover(scene, filled, 0, random.uniform(130, 255, 3))


def _cover(scene: _Scene, region: npt.NDArray[np.bool_], label: int, colour: npt.NDArray[np.float64]) -> None:
    scene.image[region] = colour
    scene.mask[region] = label + 1
    scene.regions.append(region)


def _rasterised(polygon: npt.NDArray[np.float64], height: int, width: int) -> npt.NDArray[np.bool_]:
    """The pixels of a polygon as COCO's own code draws them."""
    from pycocotools import mask

    return np.asarray(mask.decode(mask.frPyObjects([polygon.ravel().tolist()], height, width))[:, :, 0]).astype(bool)


def _run_lengths(mask: npt.NDArray[np.bool_]) -> list[int]:
    """COCO's uncompressed run lengths: column by column, the first run is of zeros."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    edges = np.concatenate(([0], changes, [flat.size]))
    runs: list[int] = np.diff(edges).tolist()
    return [0, *runs] if flat[0] else runs


def _finished(scene: _Scene, random: Random) -> Image:
    """Soft edges, light from one side, noise."""
    image = cv2.GaussianBlur(scene.image, (3, 3), 0.6)
    height, width = scene.mask.shape
    light = np.linspace(random.uniform(0.75, 1.0), random.uniform(0.75, 1.0), width, dtype=np.float32)
    noise = random.standard_normal((height, width, 3), dtype=np.float32) * np.float32(random.uniform(2, 14))
    return np.asarray(np.clip(image * light[None, :, None] + noise, 0, 255).astype(np.uint8))
