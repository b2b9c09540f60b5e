"""What a folder contains whose layout is not read, and what to do."""

import json
from collections import Counter
from pathlib import Path

from pvt_mm.datasets.own_data.pairs import BRUSH
from pvt_mm.datasets.own_data.tree import Tree, read_lines
from pvt_mm.utils.text import shorten

_EXPORT = 'Roboflow (COCO JSON), CVAT (COCO 1.0) and Label Studio (COCO) export it'


def describe_other(tree: Tree) -> str:
    """Returns what a folder contains whose layout is not known, and what to do, in one line."""
    root = tree.root
    count = Counter(path.suffix.lower() for path in tree.files)
    archives = tree.ending('.zip', '.tar', '.tar.gz', '.tgz', '.7z', '.rar')
    yolo = [path for path in tree.ending('.txt') if _is_yolo(root / path)] or tree.ending('data.yaml')
    classes = tree.ending('_classes.csv')
    jsons = tree.ending('.json')[:20]
    tools = {path: tool for path in jsons if (tool := describe_json(read_other(root / path))) and 'else' not in tool}
    if tools:
        path, tool = next(iter(tools.items()))
        return f'{root} contains annotations of {tool} ({path}): COCO json is needed; {_EXPORT}'
    if yolo:
        return f'{root} contains YOLO annotations ({shorten(yolo, 1)}): COCO json is needed; {_EXPORT}'
    if tree.ending('annotations.xml'):
        return f'{root} contains an export "CVAT for images" (annotations.xml): export it as COCO 1.0 from CVAT'
    if count['.xml']:
        return f'{root} contains Pascal VOC annotations ({count[".xml"]} xml files): COCO json is needed; {_EXPORT}'
    if any(BRUSH.search(path.name) for path in tree.images):
        return (
            f'{root} contains Label Studio\'s "Brush labels to PNG", which do not name their images: export COCO, or '
            'write a label map for each image'
        )
    if classes and 'filename' in (read_lines(root / classes[0]) or [''])[0].lower():
        return (
            f'{root} contains classes in {classes[0]}, several to an image (multi-label): a classifier needs a folder '
            'for each class'
        )
    if tree.ending('.tfrecord', '.tfrecords', '.parquet', '.csv'):
        found = shorten(tree.ending('.tfrecord', '.tfrecords', '.parquet', '.csv'), 2)
        return f'{root} contains {found}, which is not read: COCO json is needed; {_EXPORT}'
    if archives and not tree.images:
        return f'{root} contains {shorten(archives, 2)}: unpack it, and give the folder that this creates'
    if tree.images:
        return (
            f'{root} contains {len(tree.images)} images ({shorten(tree.images, 2)}) and no annotations: put the COCO '
            f'json, the label maps or a folder for each class there; {_EXPORT}'
        )
    if not tree.files:
        return f'{root} is empty'
    tops = sorted({path.parts[0] + '/' * (len(path.parts) > 1) for path in tree.files})
    return f'{root} contains no images; it contains {shorten(tops)}'


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
    return 'something else than COCO'
