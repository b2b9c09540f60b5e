"""Faults of COCO exports, to plant in valid annotations."""

from collections.abc import Callable

NAN = float('nan')


def each(key: str, value: object) -> Callable[[dict], None]:
    """Sets a key of all annotations to a value, or to that of a function of the annotation."""

    def change(content: dict) -> None:
        for one in content['annotations']:
            one[key] = value(one) if callable(value) else value

    return change


def one(key: str, value: object, part: str = 'annotations', place: int = 3) -> Callable[[dict], None]:
    """Sets a key of one annotation, image or category."""
    return lambda content: content[part][place].update({key: value})


def without(key: str, part: str = 'annotations', places: slice = slice(None)) -> Callable[[dict], None]:
    """Removes a key of annotations, images or categories."""
    return lambda content: [entry.pop(key) for entry in content[part][places]]


def corners(annotation: dict) -> list[float]:
    x, y, w, h = annotation['bbox']
    return [x, y, x + w, y + h]


def add_project(content: dict, name: str = 'shapes') -> None:
    for category in content['categories']:
        category['supercategory'] = name
    content['categories'].insert(0, dict(id=0, name=name, supercategory='none'))


def rename_images(rename: Callable[[str], str]) -> Callable[[dict], None]:
    return lambda content: [image.update(file_name=rename(image['file_name'])) for image in content['images']]


def string_image_ids(content: dict) -> None:
    for image in content['images']:
        image['id'] = f'image {image["id"]}'
    each('image_id', lambda annotation: f'image {annotation["image_id"]}')(content)


def string_category_ids(content: dict) -> None:
    for category in content['categories']:
        category['id'] = str(category['id'])


def no_sizes(content: dict) -> None:
    for image in content['images']:
        del image['width'], image['height']


def add_category(name: str) -> Callable[[dict], None]:
    return lambda content: content['categories'].append(dict(id=9, name=name))


SECOND = slice(1, 2)
# By what is wrong: the kind that it is named, and the change of valid annotations.
FAULTS: dict[str, tuple[str, Callable[[dict], object]]] = {
    'ids from 0': ('id below 1', lambda content: [a.update(id=i) for i, a in enumerate(content['annotations'])]),
    'ids per image': ('invalid id', each('id', 1)),
    'no id': ('invalid id', without('id', places=SECOND)),
    'string ids': ('invalid id', each('id', lambda annotation: str(annotation['id']))),
    'no iscrowd': ('no iscrowd', without('iscrowd')),
    'iscrowd is None': ('no iscrowd', one('iscrowd', None)),
    'string iscrowd': ('invalid iscrowd', each('iscrowd', '0')),
    'iscrowd 2': ('invalid iscrowd', one('iscrowd', 2)),
    'no area': ('invalid area', without('area')),
    'area 0': ('zero area', each('area', 0)),
    'negative area': ('zero area', one('area', -1)),
    'string area': ('invalid area', each('area', lambda annotation: str(annotation['area']))),
    'area is NaN': ('invalid area', one('area', NAN)),
    'infinite area': ('invalid area', one('area', float('inf'))),
    'no bbox': ('invalid box', without('bbox', places=SECOND)),
    'bbox is None': ('invalid box', one('bbox', None)),
    'three numbers': ('invalid box', one('bbox', [1, 2, 3])),
    'string box': ('invalid box', each('bbox', lambda annotation: [str(value) for value in annotation['bbox']])),
    'box has NaN': ('invalid box', one('bbox', [1, NAN, 4, 4])),
    'huge box': ('invalid box', one('bbox', [1, 2, 10**400, 4])),
    'no width': ('empty box', one('bbox', [1, 2, 0, 4])),
    'negative height': ('empty box', one('bbox', [1, 20, 3, -4])),
    'thin box': ('empty box', one('bbox', [1, 2, 0.5, 4])),
    'corners': ('corners', each('bbox', corners)),
    'box outside': ('box outside', one('bbox', [90, 90, 5, 5])),
    'no image_id': ('unlisted image', without('image_id', places=SECOND)),
    'string image_id': ('unlisted image', each('image_id', lambda annotation: str(annotation['image_id']))),
    'other image_id': ('unlisted image', one('image_id', 99)),
    'no image id': ('invalid image', without('id', 'images', SECOND)),
    'no category_id': ('unknown category', without('category_id', places=SECOND)),
    'string category_id': ('unknown category', each('category_id', lambda annotation: str(annotation['category_id']))),
    'list category_id': ('unknown category', one('category_id', [1])),
    'no width and height': ('wrong size', no_sizes),
    'sizes of -1': ('wrong size', lambda content: [image.update(width=-1, height=-1) for image in content['images']]),
    'string width': ('wrong size', one('width', '64', 'images')),
    'other size': ('wrong size', one('width', 640, 'images', 0)),
    'backslashes': ('missing image', rename_images(lambda name: f'images\\{name}')),
    'absolute paths': ('missing image', rename_images(lambda name: f'/home/someone/images/{name}')),
    'URL quotes': ('missing image', rename_images(lambda name: f'a%20b/{name}'.replace('.', '%2E'))),
    'prefix twice': ('missing image', rename_images(lambda name: f'train2017/{name}')),
    'suffix case': ('missing image', rename_images(lambda name: name.upper())),
    'other suffix': ('missing image', rename_images(lambda name: name.replace('.jpg', '.png'))),
    'an image is gone': ('missing image', one('file_name', 'gone.jpg', 'images')),
    'two images of one file': ('repeated image', one('file_name', '000000000001.jpg', 'images')),
    'the project as category': ('project as category', add_project),
    'the project has the name of a class': ('project as category', lambda content: add_project(content, 'circle')),
    'two categories of one name': ('repeated category', add_category('square')),
    'string category ids': ('invalid category', string_category_ids),
}  # fmt: skip
# Those that only evaluation reads: training goes on.
EVALUATED = ('ids from 0', 'no iscrowd', 'iscrowd is None')
# Those that training passes, with the kind that it warns of, or None. A corrected copy lacks the last one.
ACCEPTED: dict[str, tuple[str | None, Callable[[dict], object]]] = {
    'string image ids': (None, string_image_ids),
    'names differ in case': (None, add_category('Square')),
    'names differ in spaces': (None, add_category('square ')),
    'a few are ignored': (None, one('ignore', 1)),
    'box beyond the border': ('box beyond the border', one('bbox', [-5, 0, 20, 20])),
    'other category_id': ('unlisted category', one('category_id', 99)),
}
# Those that cannot be repaired.
HOPELESS: dict[str, tuple[str, Callable[[dict], object]]] = {
    'fractions': ('other boxes', each('bbox', lambda annotation: [value / 64 for value in annotation['bbox']])),
    'all crowds': ('only crowds', each('iscrowd', 1)),
    'all ignored': ('only crowds', each('ignore', True)),
    'no objects': ('no objects', lambda content: content['annotations'].clear()),
    'no images': ('no images', lambda content: [content[key].clear() for key in ('images', 'annotations')]),
    'no list of images': ('invalid annotations', lambda content: content.pop('images')),
    'no annotations': ('invalid annotations', lambda content: content.pop('annotations')),
    'no categories': ('invalid annotations', lambda content: content.pop('categories')),
    'numbers for images': ('invalid annotations', lambda content: content.update(images=[1, 2])),
    'two images of one id': ('repeated image', one('id', 1, 'images', 1)),
    'two categories of one id': ('repeated category', one('id', 1, 'categories', 1)),
    'no category name': ('invalid category', without('name', 'categories', SECOND)),
}
# Those of the masks that a pipeline loads.
MASK_FAULTS: dict[str, Callable[[dict], object]] = {
    'no masks': without('segmentation'),
    'empty masks': each('segmentation', []),
    'a mask is empty': one('segmentation', []),
    'four numbers': one('segmentation', [[1, 2, 3, 4]]),
    'other size': one('segmentation', dict(size=[1, 1], counts=[1])),
    'text': one('segmentation', '[[1, 2, 3, 4, 5, 6]]'),
}
