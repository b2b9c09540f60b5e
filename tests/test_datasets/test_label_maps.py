"""Index maps in place of other label maps: classes, labels pixel by pixel, and what cannot be known."""

import numpy as np
import pytest
from PIL import Image

from pvt_mm.datasets.label_maps import repair_maps
from pvt_mm.utils.errors import InputError

NAMES = ('background', 'circle', 'square', 'triangle')
COLORS = np.array([[0, 0, 0], [200, 0, 0], [0, 200, 0], [0, 0, 200]], np.uint8)
LISTED = {tuple(color): name for color, name in zip(COLORS.tolist(), NAMES, strict=True)}
GREYS = {(value,) * 3: name for value, name in enumerate(NAMES)}
LABELS = [np.kron(np.random.default_rng(i).integers(0, 4, (5, 6)), np.ones((8, 8), int)) for i in range(3)]


@pytest.fixture
def repair(tmp_path):
    """Writes what is made of LABELS and repairs it; returns the classes, the new labels, the notes and the paths."""

    def run(write, classes=None, colors=None, suffix='.png'):
        paths = [tmp_path / f'maps/{("train", "val")[i > 1]}/{i}{suffix}' for i in range(len(LABELS))]
        for path, labels in zip(paths, LABELS, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            write(labels).save(path)
        names, used, notes = repair_maps(paths, tmp_path / 'out', classes, colors)
        expected = [tmp_path / 'out' / path.relative_to(tmp_path / 'maps').with_suffix('.png') for path in paths]
        assert used in (paths, expected)
        assert all('\n' not in note for note in notes)
        return names, [np.array(Image.open(path)) for path in used], notes, used == paths

    return run


def grey(table) -> object:
    """Returns what writes ``table[label]``."""
    return lambda labels: Image.fromarray(np.array(table, np.uint8)[labels])


def palette(order) -> object:
    def write(labels):
        image = grey(np.argsort(order))(labels).convert('P')
        image.putpalette(COLORS[list(order)].ravel().tolist())
        return image

    return write


@pytest.mark.parametrize(
    ('table', 'given', 'names', 'labels'),
    [
        ([0, 1, 2, 3], NAMES, NAMES, None),
        ([0, 1, 2, 3], None, ('class_0', 'class_1', 'class_2', 'class_3'), None),
        ([0, 1, 2, 3], NAMES[1:], NAMES, None),
        ([0, 1, 2, 255], NAMES, NAMES, None),
        ([0, 1, 1, 255], ('no', 'yes'), ('no', 'yes'), None),
        ([0, 1, 1, 1], None, ('background', 'foreground'), None),
        ([0, 1, 1, 1], ('road',), ('background', 'road'), None),
        ([0, 255, 255, 255], None, ('background', 'foreground'), [0, 1, 1, 1]),
        ([0, 255, 255, 255], ('road',), ('background', 'road'), [0, 1, 1, 1]),
        ([0, 255, 255, 255], ('no', 'yes'), ('no', 'yes'), [0, 1, 1, 1]),
        ([1, 2, 3, 4], NAMES, NAMES, [0, 1, 2, 3]),
        ([1, 2, 3, 255], None, ('class_1', 'class_2', 'class_3'), [0, 1, 2, 255]),
        ([0, 128, 255, 255], None, ('class_0', 'class_128', 'class_255'), [0, 1, 2, 2]),
        ([0, 128, 255, 255], NAMES[:2], NAMES[:2], [0, 1, 255, 255]),
        ([0, 85, 170, 255], NAMES, NAMES, [0, 1, 2, 3]),
        ([0, 1, 5, 7], None, ('class_0', 'class_1', 'class_5', 'class_7'), [0, 1, 2, 3]),
    ],
)
def test_labels_and_grey_levels(table, given, names, labels, repair):
    classes, written, notes, as_they_are = repair(grey(table), given)
    assert (tuple(classes), as_they_are) == (names, labels is None)
    assert bool(notes) == (labels is not None or len(classes) > len(given or classes))
    for new, old in zip(written, LABELS, strict=True):
        np.testing.assert_array_equal(new, np.array(labels or table)[old])


def test_maps_that_are_not_all_of_one_kind(repair):
    kinds = iter([grey(range(4)), palette((3, 1, 0, 2)), lambda labels: Image.fromarray(COLORS[labels])])
    classes, written, _, _ = repair(lambda labels: next(kinds)(labels), NAMES, LISTED | GREYS)
    assert classes == list(NAMES)
    np.testing.assert_array_equal(written, LABELS)


@pytest.mark.parametrize(
    ('change', 'classes', 'names', 'labels', 'note'),
    [
        ({}, None, NAMES, [0, 1, 2, 3], 'written to'),
        ({}, NAMES[::-1], NAMES[::-1], [3, 2, 1, 0], 'written to'),
        (
            {(0, 0, 0): None},
            None,
            NAMES,
            [0, 1, 2, 3],
            'black is not in the list of colours: it is background, the first',
        ),
        ({}, NAMES[1:], NAMES, [0, 1, 2, 3], 'written to'),
        ({(200, 0, 0): 'void'}, None, ('background', 'square', 'triangle'), [0, 255, 1, 2], 'written to'),
        ({(200, 0, 0): 'square'}, None, ('background', 'square', 'triangle'), [0, 1, 1, 2], 'written to'),
        ({(9, 9, 9): 'star'}, None, (*NAMES, 'star'), [0, 1, 2, 3], 'written to'),
    ],
)
def test_colours_of_a_list(change, classes, names, labels, note, repair):
    listed = {color: name for color, name in {**LISTED, **change}.items() if name}
    found, written, notes, _ = repair(lambda one: Image.fromarray(COLORS[one]), classes, listed)
    assert tuple(found) == names
    assert any(note in line for line in notes)
    for new, old in zip(written, LABELS, strict=True):
        np.testing.assert_array_equal(new, np.array(labels)[old])


def test_borders_in_other_colours_are_ignored(repair):
    def with_border(labels):
        image = COLORS[labels]
        image[0, :20] = (224, 224, 192)
        return Image.fromarray(image)

    _, written, notes, _ = repair(with_border, None, LISTED)
    text = 'colours that are not in the list of colours are ignored in training: (224, 224, 192) (1.0%), as in '
    assert any(note.startswith(text) and note.endswith('maps/train/0.png') for note in notes)
    for new, old in zip(written, LABELS, strict=True):
        assert (new[0, :20] == 255).all()
        np.testing.assert_array_equal(new[1:], old[1:])


@pytest.mark.parametrize(('size', 'is_area'), [((6, 16), False), ((8, 8), True)])
def test_an_area_in_another_colour_is_a_class_that_the_list_lacks(size, is_area, repair, tmp_path):
    def with_area(labels):
        image = COLORS[labels]
        if labels is LABELS[1]:
            image[: size[0], : size[1]] = (9, 9, 9)
        return Image.fromarray(image)

    if not is_area:
        _, written, _, _ = repair(with_area, None, LISTED)
        assert (written[1][: size[0], : size[1]] == 255).all()
        return
    message = (
        r'train/1.png has the colour \(9, 9, 9\) \(3.3% of its pixels\), which is not in the list of colours: add it'
    )
    with pytest.raises(InputError, match=message):
        repair(with_area, None, LISTED)
    _, written, _, _ = repair(with_area, None, {**LISTED, (9, 9, 9): 'ignore'})
    assert (written[1][:8, :8] == 255).all()


def test_colours_without_a_list_are_named_by_themselves(repair):
    classes, written, notes, _ = repair(lambda labels: Image.fromarray(COLORS[labels]))
    assert classes == ['background', 'color_0_0_200', 'color_0_200_0', 'color_200_0_0']
    assert notes[0].startswith(
        'there is no list of the colours of the classes: (0, 0, 0) is background, (0, 0, 200) is'
    )
    np.testing.assert_array_equal(written, np.array([0, 3, 2, 1])[np.array(LABELS)])
    two = np.array([[0, 0, 0], [255, 0, 0], [255, 0, 0], [255, 0, 0]], np.uint8)
    classes, written, _, _ = repair(lambda labels: Image.fromarray(two[labels]), ('road',))
    assert classes == ['background', 'road']
    np.testing.assert_array_equal(written, np.array(LABELS) > 0)


@pytest.mark.parametrize('order', [(0, 1, 2, 3), (3, 1, 0, 2)])
def test_palettes_mean_their_index_or_the_colours_of_a_list(order, repair):
    classes, written, notes, as_they_are = repair(palette(order), None, LISTED)
    assert (classes, as_they_are, notes == []) == (list(NAMES), order == (0, 1, 2, 3), order == (0, 1, 2, 3))
    np.testing.assert_array_equal(written, LABELS)
    _, written, _, as_they_are = repair(palette(order), NAMES)
    assert as_they_are
    np.testing.assert_array_equal(written, np.argsort(order)[np.array(LABELS)])


@pytest.mark.parametrize(('suffix', 'enlarged'), [('.jpg', 1), ('.png', 3)])
def test_black_and_white_with_greys_between_is_split_at_the_middle(suffix, enlarged, repair):
    def write(labels):
        image = Image.fromarray(((labels > 0) * 255).astype(np.uint8))
        size = image.size
        return image.resize((size[0] * enlarged, size[1] * enlarged), 1).resize(size, 2)

    classes, written, notes, _ = repair(write, NAMES[:2], suffix=suffix)
    assert (classes, notes[0]) == (
        list(NAMES[:2]),
        'the label maps are black and white with greys between: above 127 is circle',
    )
    np.testing.assert_array_equal(written, np.array(LABELS) > 0)


def test_many_labels_that_are_mostly_background_stay_labels(tmp_path):
    rng, paths = np.random.default_rng(0), []
    for i in range(6):
        blocks = np.kron(rng.permutation(183)[:168].reshape(12, 14), np.ones((4, 8), int))
        labels = np.pad(np.where(blocks == 182, 255, blocks), ((0, 400), (0, 0))).astype(np.uint8)
        paths.append(tmp_path / f'{i}.png')
        Image.fromarray(labels).save(paths[-1])
    classes, used, notes = repair_maps(paths, tmp_path / 'out')
    assert (classes, used, notes) == ([f'class_{i}' for i in range(182)], paths, [])
    message = r'have the labels 0, 1, 2, .*, and there are 2 classes: background, circle'
    with pytest.raises(InputError, match=message):
        repair_maps(paths, tmp_path / 'out', NAMES[:2])


def test_greys_that_fade_out_are_no_edges(repair):
    def fading(labels):
        row = np.concatenate([np.zeros(200), np.arange(0, 256), np.full(200, 255), np.full(300, 0)])
        return Image.fromarray(np.tile(row, (8, 1)).astype(np.uint8))

    with pytest.raises(InputError, match=r'have the labels 0, 1, 2, .* and 236 more, too many for classes'):
        repair(fading)


def test_65535_is_ignored_as_mmsegmentation_reads_it(repair):
    table = np.array([0, 1, 2, 65535], np.uint16)
    names, written, _, as_they_are = repair(lambda labels: Image.fromarray(table[labels]), NAMES[:3])
    assert (tuple(names), as_they_are) == (NAMES[:3], True)
    names, written, _, _ = repair(lambda labels: Image.fromarray(table[labels] + (table[labels] < 3)), NAMES[:3])
    assert tuple(names) == NAMES[:3]
    for new, old in zip(written, LABELS, strict=True):
        np.testing.assert_array_equal(new, np.array([0, 1, 2, 255])[old])


@pytest.mark.parametrize(
    ('write', 'classes', 'colors', 'message'),
    [
        (grey([0, 0, 0, 0]), None, None, 'the label maps have one label, 0: there is nothing to learn'),
        (grey([0, 255, 255, 255]), NAMES, None, 'have the labels 0, 255, 255 is ignored, and there are 4 classes'),
        (
            grey([0, 1, 7, 9]),
            NAMES[:3],
            None,
            'have the labels 0, 1, 7, 9, and there are 3 classes: background, circle',
        ),
        (lambda one: Image.fromarray(COLORS[one]), NAMES, None, 'have 4 colours, and no list says which class each is'),
        (
            lambda one: Image.fromarray(COLORS[one]),
            None,
            {color: name for color, name in LISTED.items() if name != 'circle'},
            r'the colours \(200, 0, 0\) \([\d.]+%\) of the label maps are not in the list of colours: add them to it',
        ),
        (
            lambda one: Image.fromarray(COLORS[one]),
            NAMES[:3],
            LISTED,
            'the list of colours has triangle, and the classes are background, circle, square',
        ),
        (
            lambda one: Image.fromarray(np.random.default_rng(0).integers(0, 255, (*one.shape, 3), np.uint8)),
            None,
            LISTED,
            'of the label maps are not in the list of colours: add them to it',
        ),
        (
            lambda one: Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 96, 3), np.uint8)),
            None,
            LISTED,
            'has colours between those of the classes: it was compressed with loss, resampled, or is a photograph',
        ),
    ],
)
def test_what_cannot_be_known_is_an_error(write, classes, colors, message, repair, tmp_path):
    with pytest.raises(InputError, match=message):
        repair(write, classes, colors)
    assert not (tmp_path / 'out').exists()


def test_files_that_are_no_label_maps(repair, tmp_path):
    with pytest.raises(
        InputError, match=r'0.jpg is a JPEG, whose compression changes labels: export the label maps as'
    ):
        repair(grey([0, 1, 2, 3]), suffix='.jpg')
    with pytest.raises(
        InputError, match=r'0.jpg has colours between those of the classes: it was compressed with loss'
    ):
        repair(lambda labels: Image.fromarray(COLORS[labels]), None, LISTED, '.jpg')
    with pytest.raises(InputError, match=r'the label map .*/0.tif cannot be read: its values are not whole numbers'):
        repair(lambda labels: Image.fromarray((labels / 2).astype(np.float32)), suffix='.tif')
    path = tmp_path / 'a.png'
    for content, reason in ((None, 'No such file'), (b'text', 'cannot identify image file')):
        if content:
            path.write_bytes(content)
        with pytest.raises(InputError, match=f'the label map {path} cannot be read: .*{reason}'):
            repair_maps([path], tmp_path / 'out')
    with pytest.raises(InputError, match='there are no label maps'):
        repair_maps([], tmp_path / 'out')
    for name in ('a.png', 'a.bmp'):
        grey([1, 2, 3, 4])(LABELS[0]).save(tmp_path / name)
    with pytest.raises(
        InputError, match=r'two label maps would be written to .*out/a.png: they differ in their suffix'
    ):
        repair_maps([path, path.with_suffix('.bmp')], tmp_path / 'out')
