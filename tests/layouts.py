"""The shapes in the layouts that tools export and users have: ``LAYOUTS[name](shapes, to)`` writes one.

Each function writes the images and annotations of the fixture ``shapes`` to the folder ``to``, and returns what a user
gives to ``--data``. Images are copied byte for byte, so that :func:`key` recognizes them under any name.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from pvt_mm.datasets.shapes import CLASSES

MAP_CLASSES = ('background', *CLASSES)
# R, G, B of MAP_CLASSES in layouts with coloured maps.
COLORS = ((0, 0, 0), (250, 50, 83), (50, 183, 250), (36, 179, 83))


@dataclass(frozen=True)
class Shape:
    """An image of the shapes, its label map, its objects (COCO's annotations), and its crop and the crop's class."""

    split: str
    image: Path
    label_map: Path
    objects: list[dict]
    crop: Path
    crop_class: str

    @property
    def name(self) -> str:
        """A stem that no image of the other split has."""
        return f'{self.split}_{self.image.stem}'


def key(path: str | Path) -> str:
    """Returns what identifies an image whatever it is called."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def read_shapes(shapes: Path) -> list[Shape]:
    """Returns the images of train, then val."""
    found = []
    for split, maps in (('train', 'training'), ('val', 'validation')):
        content = json.loads((shapes / f'annotations/instances_{split}2017.json').read_text())
        for image in content['images']:
            path = shapes / f'{split}2017' / image['file_name']
            objects = [one for one in content['annotations'] if one['image_id'] == image['id']]
            crop = next((shapes / f'classification/{split}').glob(f'*/{path.name}'))
            label_map = shapes / f'annotations/{maps}/{path.stem}.png'
            found.append(Shape(split, path, label_map, objects, crop, crop.parent.name))
    return found


def copy(source: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, to)


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _of(shapes: Path, split: str) -> list[Shape]:
    return [shape for shape in read_shapes(shapes) if shape.split == split]


def to_coco(shapes: Sequence[Shape], names: Sequence[str], first: int = 1, drop: Sequence[str] = ()) -> dict:
    """Returns a COCO json: image i is called ``names[i]``; all ids count from ``first``, categories by name.

    ``drop`` are the keys of annotations to leave out.
    """
    height, width = cv2.imread(str(shapes[0].image)).shape[:2]
    content = dict(images=[], annotations=[], categories=[])
    content['categories'] = [dict(id=first + i, name=name, supercategory='') for i, name in enumerate(CLASSES)]
    for number, (shape, name) in enumerate(zip(shapes, names, strict=True), first):
        content['images'].append(dict(id=number, file_name=name, height=height, width=width))
        for annotation in shape.objects:
            kept = {key: value for key, value in annotation.items() if key not in drop}
            ids = dict(id=first + len(content['annotations']), image_id=number)
            content['annotations'].append(kept | ids | dict(category_id=annotation['category_id'] - 1 + first))
    return content


def _write_json(path: Path, content: object) -> None:
    write_text(path, json.dumps(content))


# ---- COCO


def coco(shapes: Path, to: Path) -> list[str]:
    """MMDetection's default: the shapes as they are."""
    return [str(shapes)]


def coco_in_images(shapes: Path, to: Path) -> list[str]:
    """``annotations/{train,valid}.json``, images in ``images/``, the json's order of categories differing."""
    for split, name in (('train', 'train'), ('val', 'valid')):
        of = _of(shapes, split)
        for shape in of:
            copy(shape.image, to / f'images/{shape.name}.jpg')
        content = to_coco(of, [f'{shape.name}.jpg' for shape in of])
        if split == 'val':
            content['categories'].reverse()
        _write_json(to / f'annotations/{name}.json', content)
    return [str(to)]


def roboflow(shapes: Path, to: Path) -> list[str]:
    """Roboflow's COCO JSON: a folder a split, an extra category of id 0 without objects."""
    for split, name in (('train', 'train'), ('val', 'valid'), ('val', 'test')):
        of = _of(shapes, split)
        names = [f'{shape.name}_jpg.rf.{key(shape.image)[:32]}.jpg' for shape in of]
        for shape, file in zip(of, names, strict=True):
            copy(shape.image, to / name / file)
        content = to_coco(of, names)
        for category in content['categories']:
            category['supercategory'] = 'shapes'
        content['categories'].insert(0, dict(id=0, name='shapes', supercategory='none'))
        for at, annotation in enumerate(content['annotations']):
            annotation['id'] = at
        _write_json(to / name / '_annotations.coco.json', content)
    write_text(to / 'README.roboflow.txt', 'shapes - v1\n')
    return [str(to)]


def cvat(shapes: Path, to: Path) -> list[str]:
    """CVAT's COCO 1.0 of a task without subsets: ``instances_default.json``, ``images/default/``."""
    every = read_shapes(shapes)
    for shape in every:
        copy(shape.image, to / f'images/default/{shape.name}.jpg')
    _write_json(to / 'annotations/instances_default.json', to_coco(every, [f'{shape.name}.jpg' for shape in every]))
    return [str(to)]


def cvat_subsets(shapes: Path, to: Path) -> list[str]:
    """CVAT's COCO 1.0 of a project with the subsets Train and Validation."""
    for split, subset in (('train', 'Train'), ('val', 'Validation')):
        of = _of(shapes, split)
        for shape in of:
            copy(shape.image, to / f'images/{subset}/{shape.image.name}')
        _write_json(to / f'annotations/instances_{subset}.json', to_coco(of, [shape.image.name for shape in of]))
    return [str(to)]


def label_studio(shapes: Path, to: Path) -> list[str]:
    """Label Studio's COCO: ids from 0, no iscrowd, names as on a Windows server."""
    every = read_shapes(shapes)
    for shape in every:
        copy(shape.image, to / f'images/{shape.name}.jpg')
    content = to_coco(every, [f'images\\{shape.name}.jpg' for shape in every], first=0, drop=('iscrowd',))
    _write_json(to / 'result.json', content)
    return [str(to)]


def label_studio_local(shapes: Path, to: Path) -> list[str]:
    """Label Studio's COCO of files on its server: paths of the server, quoted as in URLs."""
    every = read_shapes(shapes)
    for shape in every:
        copy(shape.image, to / f'images/8f3a-{shape.name} (1).jpg')
    upload = '../../label-studio/data/media/upload/1'
    names = [f'{upload}/8f3a-{shape.name}%20%281%29.jpg' for shape in every]
    _write_json(to / 'result.json', to_coco(every, names, first=0, drop=('iscrowd',)))
    return [str(to)]


def one_json(shapes: Path, to: Path) -> list[str]:
    """One json beside its images."""
    every = read_shapes(shapes)
    for shape in every:
        copy(shape.image, to / f'{shape.name}.jpg')
    _write_json(to / 'labels.json', to_coco(every, [f'{shape.name}.jpg' for shape in every]))
    return [str(to / 'labels.json')]


def json_and_folder(shapes: Path, to: Path) -> list[str]:
    """One json whose images lie elsewhere: ``--data JSON FOLDER``."""
    every = read_shapes(shapes)
    for shape in every:
        copy(shape.image, to / f'elsewhere/{shape.split}/{shape.name}.jpg')
    _write_json(to / 'here/labels.json', to_coco(every, [f'{shape.name}.jpg' for shape in every]))
    return [str(to / 'here/labels.json'), str(to / 'elsewhere')]


def two_jsons(shapes: Path, to: Path) -> list[str]:
    """``--data a.json b.json``, each beside its images."""
    paths = []
    for split, folder in (('train', 'first'), ('val', 'second')):
        of = _of(shapes, split)
        for shape in of:
            copy(shape.image, to / folder / shape.image.name)
        paths.append(to / folder / f'{folder}.json')
        _write_json(paths[-1], to_coco(of, [shape.image.name for shape in of]))
    return [str(path) for path in paths]


# ---- label maps


def _colored(label_map: Path) -> np.ndarray:
    """Returns a label map in COLORS, (H, W, 3) in BGR."""
    return np.array(COLORS, np.uint8)[cv2.imread(str(label_map), cv2.IMREAD_UNCHANGED)][..., ::-1]


def mmseg(shapes: Path, to: Path) -> list[str]:
    """MMSegmentation's ``{images,annotations}/{training,validation}``, with classes.txt."""
    for shape in read_shapes(shapes):
        split = {'train': 'training', 'val': 'validation'}[shape.split]
        copy(shape.image, to / f'images/{split}/{shape.image.name}')
        copy(shape.label_map, to / f'annotations/{split}/{shape.label_map.name}')
    write_text(to / 'classes.txt', '\n'.join(MAP_CLASSES) + '\n')
    return [str(to)]


def img_dir(shapes: Path, to: Path) -> list[str]:
    """``{img_dir,ann_dir}/{train,val}``, with classes.json."""
    for shape in read_shapes(shapes):
        copy(shape.image, to / f'img_dir/{shape.split}/{shape.image.name}')
        copy(shape.label_map, to / f'ann_dir/{shape.split}/{shape.label_map.name}')
    _write_json(to / 'classes.json', MAP_CLASSES)
    return [str(to)]


def splits_first(shapes: Path, to: Path) -> list[str]:
    """``{train,val}/{images,labels}``, with classes.txt; the maps' names end in _labelIds."""
    for shape in read_shapes(shapes):
        copy(shape.image, to / f'{shape.split}/images/{shape.image.name}')
        copy(shape.label_map, to / f'{shape.split}/labels/{shape.label_map.stem}_labelIds.png')
    write_text(to / 'classes.txt', '\n'.join(MAP_CLASSES))
    return [str(to)]


def flat_masks(shapes: Path, to: Path) -> list[str]:
    """``images/`` and ``masks/`` without splits or names; the suffixes of the images differ."""
    for at, shape in enumerate(read_shapes(shapes)):
        copy(shape.image, to / f'images/{shape.name}{(".jpg", ".JPG", ".jpeg")[at % 3]}')
        copy(shape.label_map, to / f'masks/{shape.name}_mask.png')
    return [str(to)]


def roboflow_masks(shapes: Path, to: Path) -> list[str]:
    """Roboflow's semantic segmentation masks: ``train/x.jpg``, ``train/x_mask.png``, ``train/_classes.csv``."""
    for shape in read_shapes(shapes):
        name = f'{shape.name}_jpg.rf.{key(shape.image)[:32]}'
        folder = to / {'train': 'train', 'val': 'valid'}[shape.split]
        copy(shape.image, folder / f'{name}.jpg')
        copy(shape.label_map, folder / f'{name}_mask.png')
        rows = ''.join(f'{value}, {name}\n' for value, name in enumerate(MAP_CLASSES))
        write_text(folder / '_classes.csv', f'Pixel Value, Class\n{rows}')
    return [str(to)]


def cvat_masks(shapes: Path, to: Path) -> list[str]:
    """CVAT's Segmentation mask 1.1, images included, of a project with the subsets train and val."""
    lists = {}
    for shape in read_shapes(shapes):
        copy(shape.image, to / f'JPEGImages/{shape.name}.jpg')
        for kind in ('Class', 'Object'):
            (to / f'Segmentation{kind}').mkdir(exist_ok=True)
            cv2.imwrite(str(to / f'Segmentation{kind}/{shape.name}.png'), _colored(shape.label_map))
        lists.setdefault(shape.split, []).append(shape.name)
    for split, names in lists.items():
        write_text(to / f'ImageSets/Segmentation/{split}.txt', '\n'.join(names) + '\n')
    rows = [f'{name}:{",".join(map(str, color))}::' for name, color in zip(MAP_CLASSES, COLORS, strict=True)]
    write_text(to / 'labelmap.txt', '\n'.join(['# label:color_rgb:parts:actions', *rows]) + '\n')
    return [str(to)]


def color_masks(shapes: Path, to: Path) -> list[str]:
    """``{train,train_labels,val,val_labels}/``, maps in colours whose names end in _L, with class_dict.csv."""
    for shape in read_shapes(shapes):
        copy(shape.image, to / f'{shape.split}/{shape.image.name}')
        (to / f'{shape.split}_labels').mkdir(exist_ok=True)
        cv2.imwrite(str(to / f'{shape.split}_labels/{shape.image.stem}_L.png'), _colored(shape.label_map))
    rows = [f'{name},{",".join(map(str, color))}' for name, color in zip(MAP_CLASSES, COLORS, strict=True)]
    write_text(to / 'class_dict.csv', '\n'.join(['name,r,g,b', *rows]) + '\n')
    return [str(to)]


# ---- folders of classes


def folders(shapes: Path, to: Path) -> list[str]:
    """``{train,val}/<class>/``."""
    return [str(shapes / 'classification')]


def roboflow_folders(shapes: Path, to: Path) -> list[str]:
    """Roboflow's folder structure: ``{train,valid,test}/<class>/``; valid and test lack a class."""
    for shape in read_shapes(shapes):
        splits = ('train',) if shape.split == 'train' else ('valid', 'test')
        for split in splits if shape.split == 'train' or shape.crop_class != CLASSES[0] else ():
            copy(shape.crop, to / f'{split}/{shape.crop_class}/{shape.name}_jpg.rf.{key(shape.crop)[:32]}.jpg')
    return [str(to)]


def one_folder(shapes: Path, to: Path) -> list[str]:
    """``<class>/`` without splits, as CVAT's ImageNet export; one name has a space."""
    for at, shape in enumerate(read_shapes(shapes)):
        copy(shape.crop, to / f'{shape.crop_class}/{shape.name}{" copy" if at == 0 else ""}.jpg')
    return [str(to)]


Layout = Callable[[Path, Path], list[str]]
COCO: tuple[Layout, ...] = (
    coco,
    coco_in_images,
    roboflow,
    cvat,
    cvat_subsets,
    label_studio,
    label_studio_local,
    one_json,
    json_and_folder,
    two_jsons,
)
LABEL_MAPS: tuple[Layout, ...] = (mmseg, img_dir, splits_first, flat_masks, roboflow_masks, cvat_masks, color_masks)
FOLDERS: tuple[Layout, ...] = (folders, roboflow_folders, one_folder)
LAYOUTS: dict[str, Layout] = {layout.__name__: layout for layout in (*COCO, *LABEL_MAPS, *FOLDERS)}
