"""COCO's jsons: parsed in one pass, checked, cached as columns, and the data sets of boxes and masks over them."""
