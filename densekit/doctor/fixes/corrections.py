"""What ``--fix`` does about each code: one small function each, on a copy of the file's content.

What can be repaired is; a row goes where nothing of it can be told.
"""

from __future__ import annotations

from collections.abc import Callable

from densekit.doctor.defects import Defect
from densekit.doctor.fixes.correction import Correction
from densekit.doctor.fixes.ids import (
    annotation_id_twice,
    category_id_twice,
    category_name_twice,
    file_name_twice,
    id_kind,
    image_id_twice,
    unknown_image,
)
from densekit.doctor.fixes.images import correct_size, drop_image, rename, write_size
from densekit.doctor.fixes.masks import (
    as_runs,
    box_as_mask,
    box_from_mask,
    count_area,
    crowd_flag,
    cut_box,
    mended_mask,
    polygon_too_short,
    swap_corners,
)
from densekit.doctor.fixes.rows import as_read, malformed
from densekit.doctor.fixes.sets import write_areas, write_as_coco, write_polygons


def drop_annotation(c: Correction, defect: Defect) -> None:
    """The annotation goes."""
    c.drop("annotations", defect.row, defect)


CORRECTIONS: dict[str, Callable[[Correction, Defect], None]] = {
    "box_layout": write_as_coco,
    "area_of_set": write_areas,
    "segmentations_in_parts": write_polygons,
    "row_malformed": malformed,
    "number_as_text": as_read,
    "box_missing": as_read,
    "name_missing": as_read,
    "id_kind": id_kind,
    "image_id_twice": image_id_twice,
    "annotation_id_twice": annotation_id_twice,
    "category_id_twice": category_id_twice,
    "category_name_twice": category_name_twice,
    "file_name_twice": file_name_twice,
    "unknown_image": unknown_image,
    "unknown_category": drop_annotation,
    "name_leaves_folder": rename,
    "box_not_finite": box_from_mask,
    "box_negative": swap_corners,
    "box_without_area": box_from_mask,
    "box_outside": box_from_mask,
    "box_partly_outside": cut_box,
    "box_off_by_one": cut_box,
    "box_against_mask": box_from_mask,
    "near_duplicate": drop_annotation,
    "area_against_mask": count_area,
    "polygon_too_short": polygon_too_short,
    "segmentation_invalid": mended_mask,
    "rle_size": mended_mask,
    "segmentation_missing": box_as_mask,
    "crowd_without_rle": as_runs,
    "crowd_flag": crowd_flag,
    "image_missing": drop_image,
    "image_name_differs": rename,
    "image_unreadable": drop_image,
    "image_truncated": drop_image,
    "image_too_large": drop_image,
    "image_size": correct_size,
    "size_missing": write_size,
}
"""By code; what is not here is for people to decide."""
