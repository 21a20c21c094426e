"""YOLO's text files: where images, labels and names of classes are, and the data set over them."""
