"""COCO jsons read leniently: rows, ids, spellings, segmentations, and where their images are."""
