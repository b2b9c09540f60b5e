"""What a folder contains whose layout is not read, and what to do."""

import json
from pathlib import Path

from pvt_mm.datasets.own_data.tree import Tree
from pvt_mm.utils.text import shorten

# What a kind of data is exported as.
_EXPORTS = {
    'coco': 'COCO json is needed; Roboflow (COCO JSON), CVAT (COCO 1.0) and Label Studio (COCO) export it',
    'label_maps': (
        'label maps are needed; Roboflow (Semantic Segmentation Masks) and CVAT (Segmentation mask 1.1) export them'
    ),
    'folders': 'a folder for each class is needed; Roboflow (Folder Structure) and CVAT (ImageNet 1.0) export them',
}
_FILES = {  # what the names of files say, the most telling first
    'data.yaml': 'YOLO annotations',
    'annotations.xml': 'an export "CVAT for images"',
    '.xml': 'Pascal VOC annotations',
    '.json': 'annotations that are not COCO json',
    '.tfrecord': 'records of TensorFlow',
    '.parquet': 'tables of Parquet',
    '_classes.csv': 'several classes for each image, which no config trains,',
    '.csv': 'a table',
    '.txt': 'text files, as of YOLO',
    '.zip': 'archives to unpack first',
    '.tar': 'archives to unpack first',
    '.tar.gz': 'archives to unpack first',
}


def describe_other(tree: Tree, kind: str) -> str:
    """Returns what a folder contains whose layout is not that of a kind of data, and what to do, in one line."""
    found = f'{len(tree.images)} images ({shorten(tree.images, 2)}) and ' if tree.images else ''
    for ending, what in _FILES.items():
        if paths := tree.ending(ending):
            return f'{tree.root} contains {found}{what} ({shorten(paths, 2)}): {_EXPORTS[kind]}'
    if found:
        return f'{tree.root} contains {found}no annotations: {_EXPORTS[kind]}'
    tops = sorted({path.parts[0] + '/' * (len(path.parts) > 1) for path in tree.files})
    return f'{tree.root} contains no images; it contains {shorten(tops)}' if tops else f'{tree.root} is empty'


def read_other(path: Path) -> object:
    """Returns what a json file contains, None if it cannot be read."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
