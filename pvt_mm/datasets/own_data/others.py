"""What a folder contains whose layout is not read, and what to do."""

import json
from pathlib import Path

from pvt_mm.datasets.own_data.pairs import BRUSH
from pvt_mm.datasets.own_data.tree import Tree, read_lines
from pvt_mm.utils.text import shorten

# What a kind of data is exported as.
_EXPORTS = {
    'coco': 'COCO json is needed; Roboflow (COCO JSON), CVAT (COCO 1.0) and Label Studio (COCO) export it',
    'label_maps': (
        'label maps are needed; Roboflow (Semantic Segmentation Masks) and CVAT (Segmentation mask 1.1) export them'
    ),
    'folders': 'a folder for each class is needed; Roboflow (Folder Structure) and CVAT (ImageNet 1.0) export them',
}
_OTHER = 'something else than COCO'
_MANY = 100  # files of a kind, of which only the first are read


def describe_other(tree: Tree, kind: str) -> str:
    """Returns what a folder contains whose layout is not that of a kind of data, and what to do, in one line."""
    root = tree.root
    return (
        f'{root} contains {found}: {_EXPORTS[kind]}' if (found := _annotations(tree)) else _describe_files(tree, kind)
    )


def _annotations(tree: Tree) -> str:
    """Returns the tool or format whose annotations a folder has, and a file of it, or ''."""
    for path in tree.ending('.json')[:_MANY]:
        tool = describe_json(read_other(tree.root / path))
        if tool not in ('', _OTHER):
            return f'annotations of {tool} ({path})'
    for path in [*tree.ending('.txt')[:_MANY], *tree.ending('data.yaml')]:
        if path.name == 'data.yaml' or _is_yolo(tree.root / path):
            return f'YOLO annotations ({path})'
    if tree.ending('annotations.xml'):
        return 'an export "CVAT for images" (annotations.xml)'
    if xml := tree.ending('.xml'):
        return f'Pascal VOC annotations ({len(xml)} xml files)'
    if any(BRUSH.search(path.name) for path in tree.images):
        return 'Label Studio\'s "Brush labels to PNG", which do not name their images'
    if (csv := tree.ending('_classes.csv')) and 'filename' in (read_lines(tree.root / csv[0]) or [''])[0].lower():
        return f'several classes for each image ({csv[0]}), which no config trains'
    if tables := tree.ending('.tfrecord', '.tfrecords', '.parquet', '.csv'):
        return f'{shorten(tables, 2)}, which is not read'
    return ''


def _describe_files(tree: Tree, kind: str) -> str:
    root, archives = tree.root, tree.ending('.zip', '.tar', '.tar.gz', '.tgz', '.7z', '.rar')
    if archives and not tree.images:
        return f'{root} contains {shorten(archives, 2)}: unpack it, and give the folder that this creates'
    if tree.images:
        found = f'{len(tree.images)} images ({shorten(tree.images, 2)})'
        return f'{root} contains {found} and no annotations: {_EXPORTS[kind]}'
    tops = sorted({path.parts[0] + '/' * (len(path.parts) > 1) for path in tree.files})
    return f'{root} contains no images; it contains {shorten(tops)}' if tops else f'{root} is empty'


def _is_yolo(path: Path) -> bool:
    """Returns whether a text file has lines of a class and four or more coordinates within 0 to 1."""
    try:
        with open(path, encoding='utf-8', errors='replace') as file:
            parts = file.readline().split()
        return len(parts) >= 5 and parts[0].isdigit() and all(0 <= float(part) <= 1 for part in parts[1:])
    except (OSError, ValueError):
        return False


def read_other(path: Path) -> object:
    """Returns what a json file contains, None if it cannot be read."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def describe_json(content: object) -> str:
    """Returns the tool whose json this is, or '' if it may be COCO's."""
    first = content[0] if isinstance(content, list) and content and isinstance(content[0], dict) else {}
    if isinstance(content, dict):
        if 'images' in content:
            return ''
        if 'shapes' in content and 'imagePath' in content:
            return 'LabelMe'
        if '_via_img_metadata' in content or any(isinstance(v, dict) and 'regions' in v for v in content.values()):
            return 'VGG Image Annotator'
        if 'items' in content and 'categories' in content:
            return 'Datumaro'
        if 'objects' in content and 'size' in content:
            return 'Supervisely'
    elif {'data', 'annotations'} <= first.keys():
        return 'Label Studio (its own format)'
    elif {'image', 'annotations'} <= first.keys():
        return 'CreateML'
    elif {'image_id', 'score'} <= first.keys():
        return "a detector's predictions"
    return _OTHER
