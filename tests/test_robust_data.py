"""Data sets as they come in real life: each ends in a run that went through, or in one line that names the file."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import doctor
import mmcv
import numpy as np
import pytest
from advice import obey, set_at_the_top
from doctor_machine import Result
from mmengine.config import Config
from paths import ROOT
from PIL import Image
from pycocotools import mask as run_length
from robust import (
    CLASSES,
    DETECTION,
    QUICK_DETECTION,
    QUICK_SEGMENTATION,
    SEGMENTATION,
    SIDE,
    Instances,
    LabelMaps,
    Outcome,
    Run,
    annotation,
    picture,
    run,  # noqa: F401  the fixture
)

from cvt_dense.datasets.check import build_dataset, inspect_dataset
from cvt_dense.engine.config import load_config
from cvt_dense.errors import UserError

Train = Callable[..., Outcome]


@pytest.fixture
def instances(tmp_path: Path) -> Instances:
    return Instances(tmp_path / 'data')


@pytest.fixture
def label_maps(tmp_path: Path) -> LabelMaps:
    return LabelMaps(tmp_path / 'data')


@pytest.fixture
def detect(run: Run, instances: Instances) -> Train:  # noqa: F811
    """Trains a detector on the instances, as they are by then."""

    def train(**options: object) -> Outcome:
        instances.save()
        return run('train', DETECTION, **(QUICK_DETECTION | options))

    return train


@pytest.fixture
def refused(run: Run, tmp_path: Path) -> Callable[[str], str]:  # noqa: F811
    """What is said of the training and validation data of a config, without a model: as training and doctor do."""

    def inspect(config: str) -> str:
        cfg = Config.fromfile(config)
        with pytest.raises(UserError) as error:  # noqa: PT012  either of the two
            for split in ('train', 'val'):
                inspect_dataset(build_dataset(cfg[f'{split}_dataloader'].dataset, cfg.default_scope))
        assert '\n' not in str(error.value)
        return str(error.value)

    return inspect


@pytest.fixture
def segment(run: Run, label_maps: LabelMaps) -> Train:  # noqa: F811
    """Trains a segmentor on the label maps."""
    return lambda **options: run('train', SEGMENTATION, **(QUICK_SEGMENTATION | options))


def square(**changes: object) -> dict:
    return annotation(9, 0, **changes)


def rle(size: int = SIDE) -> dict:
    mask = np.zeros((size, size), np.uint8, order='F')
    mask[16:48, 16:48] = 1
    encoded = run_length.encode(mask)
    return encoded | dict(counts=encoded['counts'].decode())


LEFT_OUT = {
    'zero area': (
        square(area=0),
        'annotations skipped because their area is 0 or a side of their box is below a pixel: 1',
    ),
    'zero width': (square(bbox=[1, 1, 0, 9]), 'or a side of their box is below a pixel: 1'),
    'outside': (square(bbox=[SIDE, 0, 9, 9]), 'annotations skipped because their box is outside of the image: 1'),
    'partly outside': (square(bbox=[SIDE - 9, SIDE - 9, 20, 20]), ''),
    'no such image': (square(image_id=99), 'annotations skipped because their image is not listed: 1'),
    'no such category': (square(category_id=99), 'annotations skipped because their category is not listed: 1'),
    'ignored': (square(ignore=1), 'annotations skipped because they are marked "ignore": 1'),
    'two points': (
        square(segmentation=[[1, 1, 9, 9]]),
        'regions ignored because none of their polygons has three points: 1',
    ),
    'a polygon with two points beside a whole one': (square(segmentation=[[1, 1, 9, 9], [1, 1, 9, 1, 9, 9]]), ''),
    'run-length encoded': (square(segmentation=rle()), ''),
    'run lengths as numbers': (square(segmentation=dict(size=[SIDE, SIDE], counts=[99, 9, SIDE * SIDE - 108])), ''),
}


def test_annotations_that_mmdet_leaves_out_are_counted(detect: Train, instances: Instances) -> None:
    """All kinds at once: categories with gaps in their ids, masks of polygons and of run lengths, an image without."""
    others = [entry | dict(id=100 + number) for number, (entry, _) in enumerate(LEFT_OUT.values())]
    instances.train['annotations'] += others
    instances.train['annotations'][1]['iscrowd'] = 1  # all that image 1 has
    del instances.train['annotations'][2]  # all that image 2 has
    outcome = detect()
    outcome.assert_works('train data: ', 'images skipped because they have no annotation of the classes: 1')
    for what, told in (('no such image', 1), ('outside', 1), ('ignored', 1), ('two points', 1), ('zero area', 2)):
        assert f'{LEFT_OUT[what][1][:-1]}{told}\n' in outcome.log.replace('\x1b[0m', ''), what
    assert '[2/2]' in outcome.log, 'three images are left, in two batches'


@pytest.mark.parametrize('case', LEFT_OUT)
def test_each_kind_is_counted_on_its_own(case: str, instances: Instances) -> None:
    from cvt_dense.datasets.coco_file import Use, check_annotations

    entry, told = LEFT_OUT[case]
    instances.train['annotations'].append(entry)
    found = check_annotations(Path('a.json'), instances.train, CLASSES, Use(masks=True))
    assert found.annotations == (4 if told else 5)
    assert [note.endswith(told) for note in found.notes] == [True] * bool(told)


BROKEN: dict[str, tuple[Callable[[Instances], object], str]] = {
    'a field is missing': (lambda data: data.train['annotations'][1].pop('bbox'), 'annotations[1].bbox is missing'),
    'a box of three': (
        lambda data: data.train['annotations'][1].update(bbox=[1, 2, 3]),
        'annotations[1].bbox is [1, 2, 3]',
    ),
    'a box of words': (lambda data: data.train['annotations'][1].update(bbox='1 2 3 4'), "[1].bbox is '1 2 3 4'"),
    'not finite': (lambda data: data.train['annotations'][1].update(area=float('nan')), 'annotations[1].area is nan'),
    'no object': (lambda data: data.train['annotations'].append(7), 'annotations[4].id is missing'),
    'annotation ids': (lambda data: data.train['annotations'][1].update(id=1), 'annotations[1].id is 1, which another'),
    'image ids': (lambda data: data.train['images'][1].update(id=0), 'images[1].id is 0, which another one has'),
    'no width': (lambda data: data.train['images'][1].update(width=None), 'images[1].width is None'),
    'category ids': (lambda data: data.train['categories'][1].update(id=3), 'categories[1].id is 3, which another'),
    'category names': (lambda data: data.train['categories'][1].update(name='Rectangle'), "no category 'rectangle'"),
    'one name twice': (
        lambda data: data.train['categories'].append(dict(id=99, name='star')),
        "has two categories 'star'",
    ),
    'other order': (
        lambda data: data.train['categories'].reverse(),
        'has its categories in another order, in which mmdet numbers them',
    ),
    'nothing to train on': (
        lambda data: [entry.update(image_id=str(entry['image_id'])) for entry in data.train['annotations']],
        'to train on (annotations skipped because their image is not listed: 4; images skipped',
    ),
    'no mask': (lambda data: data.train['annotations'][1].pop('segmentation'), "annotation 2 has no 'segmentation'"),
    'empty mask': (
        lambda data: data.train['annotations'][1].update(segmentation=[]),
        "annotation 2 has no 'segmentation'",
    ),
    'a mask of words': (
        lambda data: data.train['annotations'][1].update(segmentation='x'),
        'neither a list of polygons',
    ),
    'a mask of other size': (
        lambda data: data.train['annotations'][1].update(segmentation=rle(32)),
        'annotation 2 has a segmentation of size [32, 32], and its image is [64, 64]',
    ),
    'no iscrowd for evaluation': (
        lambda data: data.content['validation']['annotations'][0].pop('iscrowd'),
        'instances_val.json: annotations[0].iscrowd is missing; it has to be 0 or 1',
    ),
    'two points for evaluation': (
        lambda data: data.content['validation']['annotations'][0].update(segmentation=[[1, 1, 9, 9]]),
        'instances_val.json: annotation 1 has a polygon with fewer than three points',
    ),
    'missing image': (lambda data: data.image(1).unlink(), 'images/training/1.png does not exist'),
    'missing image for evaluation': (
        lambda data: data.image(0, 'validation').rename(data.image(7, 'validation')),
        'images/validation/0.png does not exist',
    ),
    'other width': (
        lambda data: data.train['images'][1].update(width=60),
        '1.png is 64x64; in the annotation file its width is 60, its height 64',
    ),
    'cut image': (
        lambda data: cut(data.image(1)),
        'images/training/1.png is damaged: AssertionError: failed to load',
    ),
    'empty image': (lambda data: data.image(1).write_bytes(b''), 'images/training/1.png is damaged'),
    'no image': (lambda data: data.image(1).write_text('hello'), 'images/training/1.png is damaged'),
}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize('case', BROKEN)
def test_broken_annotations_are_named(case: str, refused: Callable[[str], str], instances: Instances) -> None:
    break_it, told = BROKEN[case]
    break_it(instances)
    instances.save()
    assert told in refused(DETECTION)


#: What only its author can correct in a file, and what the advice says of that; all else is done as it says.
BY_HAND = {
    'image ids': 'it has to be a number of its own',
    'no width': 'it has to be a number of pixels above 0',
    'category ids': 'it has to be a number of its own',
    'category names': 'instances_train.json be ellipse, rectangle, triangle, star, ring, in this order',
    'other order': 'instances_train.json be ellipse, rectangle, triangle, star, ring, in this order',
    'one name twice': 'rename one of them',
    'nothing to train on': "let each image_id be the id of one of the file's images",
    'no iscrowd for evaluation': 'it has to be 0 or 1',
    'two points for evaluation': 'correct its segmentation',
    'missing image': 'put it there, or remove its entry from the annotation file',
    'missing image for evaluation': 'put them there, or ',
}
BREAK_BOTH: dict[str, tuple[Callable[[Instances], object], str]] = {
    'no masks': (
        lambda data: [entry.pop('segmentation') for part in data.content.values() for entry in part['annotations']],
        'and the config reads masks; nor has any other',
    ),
    'other names': (
        lambda data: [part['categories'][1].update(name='oblong') for part in data.content.values()],
        "no category 'rectangle'",
    ),
    'another order': (
        lambda data: [part['categories'].reverse() for part in data.content.values()],
        'in another order',
    ),
    'small images': (lambda data: None, 'min_size'),
}


class Looked:
    """A config, what the doctor says of its data, and doing as it says.

    Args:
        config: The file.
        root: Of the data.
    """

    def __init__(self, config: str, root: Path) -> None:
        self.config = config
        self.root = root
        self.options: list[str] = []

    def failures(self) -> dict[str, Result]:
        """What fails, by split."""
        cfg = load_config(self.config, doctor.parsed(tuple(self.options)))
        given = doctor.Given(self.config, tuple(self.options))
        found = {split: [*doctor.check_data(cfg, given, split)] for split in doctor.splits_of(cfg)}
        return {split: result for split, (result,) in found.items() if result.status == doctor.FAIL}

    def obey(self, failures: dict[str, Result], **places: str) -> None:
        """Do what is said to fix them."""
        for split, result in failures.items():
            name = 'train' if split == 'train' else 'val'
            assert 'CUSTOM_ROOT' not in result.fix, 'the folder is there'
            assert 'SHAPES_ROOT' not in result.fix or places
            self.options += obey(result.fix, self.root / f'annotations/instances_{name}.json', places)


def own(config: str, tmp_path: Path, **settings: object) -> str:
    """A copy of a config for own data, beside the others, with other settings at its top."""
    shutil.copytree(ROOT / 'configs', tmp_path / 'configs')
    copy = tmp_path / 'configs/mine.py'
    shutil.copy(tmp_path / 'configs' / config, copy)
    for name, value in settings.items():
        set_at_the_top(copy, name, repr(value))
    return str(copy)


@pytest.fixture
def looked(request: pytest.FixtureRequest, instances: Instances, tmp_path: Path, run: Run) -> Looked:  # noqa: F811
    """Of a copied config for own data, with settings at its top, and of another, which options change."""
    if getattr(request, 'param', 'own') == 'example':
        return Looked(DETECTION, instances.root)
    config = own(
        'maskrcnn_cvt13_fpn_custom.py',
        tmp_path,
        data_root=str(instances.root),
        train_annotations='annotations/instances_train.json',
        train_images='images/training/',
        val_annotations='annotations/instances_val.json',
        val_images='images/validation/',
        classes=CLASSES,
    )
    return Looked(config, instances.root)


@pytest.mark.parametrize(
    ('case', 'looked'),
    [
        *((case, 'own') for case in [*BROKEN, *BREAK_BOTH]),
        *((case, 'example') for case in ['other order', *BREAK_BOTH]),
    ],
    indirect=['looked'],
)
def test_what_the_doctor_says_of_annotations_cures_them(case: str, looked: Looked, instances: Instances) -> None:
    break_it, told = (BROKEN | BREAK_BOTH)[case]
    pristine = json.loads(json.dumps(instances.content))
    break_it(instances)
    instances.save()
    if case == 'small images':
        looked.options.append('train_dataloader.dataset.filter_cfg.min_size=99')
    failures = looked.failures()
    assert told in ' '.join(f'{result.text}; {result.fix}' for result in failures.values())
    if case in BY_HAND:
        (failure,) = failures.values()
        assert BY_HAND[case] in failure.fix
        instances.content = pristine
        for split, part in pristine.items():
            for image in part['images']:
                picture().save(instances.image(image['id'], split))
        instances.save()
    else:
        looked.obey(failures)
    assert looked.failures() == {}


#: A setting that is wrong, at the top of a config for own data or among the options of another; what is told; what
#: the reader puts where the advice says FILE or FOLDER.
WRONG_SETTINGS: dict[str, tuple[str, str, str, dict[str, str]]] = {
    'a string': ('classes', "('rectangle')", "classes is the string 'rectangle'", {}),
    'the example': ('classes', "('object',)", "no category 'object', one of the classes", {}),
    'another case': ('classes', "('ellipse', 'Rectangle')", "no category 'Rectangle'", {}),
    'a class that nothing is annotated as': ('classes', "('star',)", 'no annotation of the classes star', {}),
    'annotations': (
        'train_annotations',
        "'nowhere.json'",
        'nowhere.json does not exist',
        {'FILE': 'annotations/instances_train.json'},
    ),
    'images': ('val_images', "'nowhere/'", 'nowhere does not exist', {'FOLDER': 'images/validation/'}),
    'other images': ('train_images', "'annotations/'", '0.png does not exist', {'FOLDER': 'images/training/'}),
    'test annotations': (
        'test_annotations',
        "'nowhere.json'",
        'nowhere.json does not exist',
        {'FILE': 'annotations/instances_val.json'},
    ),
}
AS_OPTIONS = {
    'a string': '{split}_dataloader.dataset.metainfo.classes=rectangle',
    'another case': '{split}_dataloader.dataset.metainfo.classes=[ellipse,Rectangle]',
    'annotations': 'train_dataloader.dataset.ann_file=nowhere.json',
    'images': 'val_dataloader.dataset.data_prefix.img=nowhere/',
    'test annotations': 'test_dataloader.dataset.ann_file=nowhere.json',
}


@pytest.mark.parametrize(
    ('case', 'looked'),
    [(case, 'own') for case in WRONG_SETTINGS] + [(case, 'example') for case in AS_OPTIONS],
    indirect=['looked'],
)
def test_what_the_doctor_says_of_settings_cures_them(case: str, looked: Looked) -> None:
    name, value, told, places = WRONG_SETTINGS[case]
    if looked.config == DETECTION:
        looked.options += dict.fromkeys(AS_OPTIONS[case].format(split=split) for split in ('train', 'val', 'test'))
    else:
        set_at_the_top(Path(looked.config), name, value)
    failures = looked.failures()
    for failure in failures.values():
        assert told in failure.text
    assert failures
    looked.obey(failures, **places)
    assert looked.failures() == {}


def test_the_folder_of_the_data_can_be_said_as_the_doctor_has_it(
    instances: Instances, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv('CUSTOM_ROOT', raising=False)
    for name in ('train', 'val'):
        (instances.root / f'annotations/instances_{name}.json').rename(instances.root / f'annotations/{name}.json')
    folders = dict(train_images='images/training/', val_images='images/validation/', classes=CLASSES)
    looked = Looked(own('maskrcnn_cvt13_fpn_custom.py', tmp_path, **folders), instances.root)
    failures = looked.failures()
    assert set(failures) == {'train', 'val'}
    (fix,) = {failure.fix for failure in failures.values()}
    assert fix == 'set data_root in the config, or CUSTOM_ROOT=DIR'
    monkeypatch.setenv('CUSTOM_ROOT', str(instances.root))
    assert looked.failures() == {}


def test_training_says_the_same_as_the_doctor(looked: Looked, instances: Instances, run: Run) -> None:  # noqa: F811
    break_it, _ = BREAK_BOTH['another order']
    break_it(instances)
    instances.save()
    (fix,) = {result.fix for result in looked.failures().values()}
    outcome = run('train', looked.config, **{'model.backbone.init_cfg': None})
    outcome.assert_fails('in another order', fix)


@pytest.mark.parametrize('case', ['other order', 'two points for evaluation', 'missing image', 'other width'])
def test_broken_annotations_stop_a_run_before_its_first_iteration(
    case: str, detect: Train, instances: Instances
) -> None:
    break_it, told = BROKEN[case]
    break_it(instances)
    outcome = detect()
    outcome.assert_fails(told)
    assert 'Epoch(train)' not in outcome.log


@pytest.mark.parametrize(
    ('text', 'told'),
    [
        ('{"images": [{"id"', 'instances_train.json is not valid JSON: Expecting'),
        ('', 'instances_train.json is not valid JSON'),
        ('\0', 'instances_train.json is not valid JSON'),
        ('[' * 100_000, 'instances_train.json cannot be read: RecursionError'),
        ('[]', "instances_train.json is not in COCO's format: it has no list 'images'"),
        ('{"shapes": [], "imagePath": "a.jpg"}', "it has no list 'images'"),
        ('{"images": [], "annotations": {}, "categories": []}', "it has no list 'annotations'"),
    ],
    ids=['cut', 'empty', 'zeros', 'deep', 'a list', 'of labelme', 'annotations by name'],
)
def test_a_file_that_is_not_in_cocos_format(
    text: str, told: str, refused: Callable[[str], str], instances: Instances
) -> None:
    (instances.root / 'annotations/instances_train.json').write_text(text)
    assert told in refused(DETECTION)


def test_predictions_are_written_for_images_without_annotations(
    run: Run,  # noqa: F811
    instances: Instances,
    detect: Train,
    tmp_path: Path,
) -> None:
    """As for COCO's test-dev: the line says how, and it works."""
    detect(**{'train_cfg.val_interval': 9}).assert_works()
    del instances.content['validation']['annotations']
    instances.save()

    def test(**options: object) -> Outcome:
        return run('test', DETECTION, tmp_path / 'run/epoch_1.pth', **(QUICK_DETECTION | options))

    test().assert_fails(
        "has no list 'annotations'",
        'to write predictions alone: --cfg-options test_evaluator.format_only=True test_evaluator.outfile_prefix=PATH',
    )
    prefix = tmp_path / 'out/predictions'
    prefix.parent.mkdir()
    outcome = test(**{'test_evaluator.format_only': True, 'test_evaluator.outfile_prefix': prefix})
    assert outcome.code == 0, outcome.log
    assert isinstance(json.loads((tmp_path / 'out/predictions.bbox.json').read_text()), list)


def test_an_evaluator_that_compares_with_another_file(detect: Train, instances: Instances) -> None:
    other = instances.root / 'other.json'
    content = json.loads(json.dumps(instances.content['validation']))
    other.write_text(json.dumps(content))
    detect(**{'val_evaluator.ann_file': other}).assert_works()
    content['images'].append(content['images'][0] | dict(id=99))
    other.write_text(json.dumps(content))
    detect(**{'val_evaluator.ann_file': other}).assert_fails(f"{other}, the evaluator's ann_file, lists 1 images that")


def test_classes_that_the_file_does_not_have(detect: Train) -> None:
    classes = "('ellipse','rectangle','triangle','star','circle')"
    outcome = detect(**{'train_dataloader.dataset.metainfo.classes': classes})
    outcome.assert_fails(
        "instances_train.json has no category 'circle'", 'it has ellipse, rectangle, triangle, star, ring'
    )


def test_one_class_without_its_comma(detect: Train) -> None:
    outcome = detect(**{'train_dataloader.dataset.metainfo.classes': 'ring'})
    outcome.assert_fails(
        "classes is the string 'ring', and not a tuple", 'train_dataloader.dataset.metainfo.classes="[ring]"'
    )


def test_heads_for_another_number_of_classes(detect: Train) -> None:
    outcome = detect(**{'model.roi_head.bbox_head.num_classes': 80})
    outcome.assert_fails('the data have 5 classes', '--cfg-options model.roi_head.bbox_head.num_classes=5')


def test_an_image_that_is_damaged_later_stops_the_run_in_a_worker_too(
    detect: Train, instances: Instances, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('cvt_dense.datasets.check.SAMPLE', 1)  # image 0 alone is opened beforehand
    cut(instances.image(1))
    outcome = detect(**{'train_dataloader.num_workers': 1})
    outcome.assert_fails('images/training/1.png is damaged: AssertionError: failed to load image')


def test_where_the_config_allows_it_another_image_is_drawn(detect: Train, instances: Instances) -> None:
    cut(instances.image(1))
    instances.image(2).unlink()
    outcome = detect(**{'train_dataloader.dataset.pipeline.0.ignore_empty': True})
    outcome.assert_works('images that do not exist, others are drawn instead: 1')
    assert f'another image is drawn: image {instances.image(1)} is damaged' in outcome.log
    assert '[2/2]' in outcome.log


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_the_network_sees_the_same_picture_whatever_its_file_is_like(tmp_path: Path) -> None:
    """As far as mmcv's decoder goes: grey becomes three channels, alpha is dropped, 16 bits are divided by 256."""
    smooth = picture(size=(8, 8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    rgb = np.asarray(smooth)[:, :, ::-1]

    def read(image: Image.Image, kind: str = 'PNG', **options: object) -> np.ndarray:
        return mmcv.imfrombytes(saved(image, kind, **options))

    assert np.array_equal(read(smooth), rgb)
    assert np.array_equal(read(smooth.convert('RGBA')), rgb)
    cmyk = read(smooth.convert('CMYK'), 'JPEG', quality=100).astype(int)
    assert np.abs(cmyk - rgb).max() < 12
    grey = np.asarray(smooth.convert('L'))
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    for image in (smooth.convert('L'), deep):
        assert np.array_equal(read(image), np.repeat(grey[:, :, None], 3, axis=2))


def test_images_of_all_kinds_are_trained_on_side_by_side(detect: Train, instances: Instances) -> None:
    deep = Image.fromarray(np.asarray(picture('L')).astype(np.uint16) * 257)
    images = [(picture('L'), 'PNG'), (picture('RGBA'), 'PNG'), (picture('CMYK'), 'JPEG'), (deep, 'PNG')]
    for number, (image, kind) in enumerate(images):
        instances.image(number).write_bytes(saved(image, kind))
    detect(**{'train_cfg.val_interval': 9}).assert_works()


def turned(path: Path, width: int, height: int) -> None:
    exif = Image.Exif()
    exif[0x112] = 6  # turn by a quarter
    path.write_bytes(saved(picture(size=(width, height)), 'JPEG', exif=exif))


def test_an_image_that_is_turned_has_to_be_turned_in_its_annotations_too(detect: Train, instances: Instances) -> None:
    turned(instances.image(1), 48, 64)
    instances.train['images'][1].update(width=64, height=48)
    detect(**{'train_cfg.val_interval': 9}).assert_works()
    instances.train['images'][1].update(width=48, height=64)
    detect().assert_fails('1.png is 64x48, turned as its EXIF orientation says; in the annotation file its width is 48')


def test_a_jpeg_that_is_cut_off_is_seen_whatever_the_decoder_says() -> None:
    from cvt_dense.datasets.decoding import is_cut_jpeg

    whole = saved(picture(), 'JPEG')
    assert not is_cut_jpeg(whole)
    assert not is_cut_jpeg(whole + b'video \xff\xda')
    assert not is_cut_jpeg(saved(picture(), 'PNG'))
    for part in (0.3, 0.5, 0.9, 0.99):
        assert is_cut_jpeg(whole[: int(len(whole) * part)]), part


def test_label_maps_and_turned_images_and_files_of_other_kinds(segment: Train, label_maps: LabelMaps) -> None:
    picture('L').save(label_maps.image(0))
    picture('CMYK').save(label_maps.image(1))
    label_maps.image(3).rename(label_maps.image(3).with_suffix('.jpeg'))
    Image.open(label_maps.labels(2)).convert('P').save(label_maps.labels(2))
    segment().assert_works('train data: ', 'files skipped because they do not end in .jpg: 1')


def colours(data: LabelMaps) -> None:
    data.write(np.zeros((SIDE, SIDE, 3), np.uint8), 1)


BROKEN_MAPS: dict[str, tuple[Callable[[LabelMaps], object], str]] = {
    'size': (lambda data: data.write(np.zeros((SIDE, 60), np.uint8), 1), 'training/1.png is 60x64, its image 64x64'),
    'colours': (colours, 'training/1.png is a colour picture; it has to have one channel'),
    'value': (
        lambda data: data.write(np.full((SIDE, SIDE), 6, np.uint8), 1),
        'training/1.png has the value 6, and the labels of 6 classes are 0 to 5 (255 is "unlabelled")',
    ),
    'value that 8 bits would make a class': (
        lambda data: data.write(np.full((SIDE, SIDE), 257, np.uint16), 1),
        'training/1.png has the value 257; labels go up to 255',
    ),
    'value for evaluation': (
        lambda data: data.write(np.full((SIDE, SIDE), 6, np.uint8), 0, 'validation'),
        'validation/0.png has the value 6',
    ),
    'missing': (lambda data: data.labels(1).unlink(), 'training/1.png does not exist'),
    'cut': (lambda data: cut(data.labels(1)), 'training/1.png is damaged'),
    'cut image': (lambda data: cut(data.image(1)), 'training/1.jpg '),
    'turned image': (lambda data: turned(data.image(1), 48, 64), 'training/1.png is 64x64, its image 64x48'),
    'other suffix': (
        lambda data: [data.image(number).rename(data.image(number).with_suffix('.tif')) for number in range(4)],
        'images/training holds no file *.jpg',
    ),
}


@pytest.mark.parametrize('case', BROKEN_MAPS)
def test_broken_label_maps_are_named(case: str, refused: Callable[[str], str], label_maps: LabelMaps) -> None:
    break_it, told = BROKEN_MAPS[case]
    break_it(label_maps)
    assert told in refused(SEGMENTATION)


#: What the advice says of maps that only their author can correct.
MAPS_BY_HAND = {
    'size': "write it in its image's size",
    'colours': 'it has to have one channel, of class numbers',
    'value that 8 bits would make a class': 'number classes from 0',
    'missing': 'put it there, or remove its image',
    'cut': 'replace it',
    'cut image': 'replace it',
    'turned image': "write it in its image's size",
    'other suffix': 'rename its files to *.jpg, as those of the other splits end',
}
BREAK_ALL_MAPS: dict[str, tuple[Callable[[LabelMaps], object], str]] = {
    'from 1': (
        lambda data: [
            data.write(np.resize(np.arange(1, 7, dtype=np.uint8), (SIDE, SIDE)), number, split)
            for split, count in (('training', 4), ('validation', 1))
            for number in range(count)
        ],
        'has the value 6, and the labels of 6 classes are 0 to 5',
    ),
    'another suffix': (
        lambda data: [path.rename(path.with_suffix('.tif')) for path in (data.root / 'images').rglob('*.jpg')],
        'holds no file *.jpg',
    ),
}


@pytest.mark.parametrize(
    ('case', 'is_own'),
    [(case, True) for case in [*MAPS_BY_HAND, *BREAK_ALL_MAPS]] + [(case, False) for case in BREAK_ALL_MAPS],
)
def test_what_the_doctor_says_of_label_maps_cures_them(
    case: str,
    is_own: bool,
    label_maps: LabelMaps,
    tmp_path: Path,
    run: Run,  # noqa: F811
) -> None:
    break_it, told = (BROKEN_MAPS | BREAK_ALL_MAPS)[case]
    break_it(label_maps)
    config = SEGMENTATION
    if is_own:
        names = ('background', *CLASSES)
        config = own('upernet_cvt13_custom.py', tmp_path, data_root=str(label_maps.root), classes=names)
    looked = Looked(config, label_maps.root)
    failures = looked.failures()
    for failure in failures.values():
        assert told in f'{failure.text}; {failure.fix}'
    assert failures
    if case in MAPS_BY_HAND:
        (failure,) = failures.values()
        assert MAPS_BY_HAND[case] in failure.fix
    else:
        looked.obey(failures)
        assert looked.failures() == {}


@pytest.mark.parametrize('case', ['missing', 'value for evaluation'])
def test_broken_label_maps_stop_a_run_before_its_first_iteration(
    case: str, segment: Train, label_maps: LabelMaps
) -> None:
    break_it, told = BROKEN_MAPS[case]
    break_it(label_maps)
    outcome = segment()
    outcome.assert_fails(told)
    assert 'Iter(train)' not in outcome.log


def test_a_mask_of_0_and_255_is_worth_a_line(segment: Train, label_maps: LabelMaps) -> None:
    for number in range(4):
        label_maps.write(np.resize(np.array([0, 255], np.uint8), (SIDE, SIDE)), number)
    segment().assert_works('label maps that were opened hold nothing but [0, 255], and 255 is "unlabelled"')


def test_a_broken_label_map_that_is_no_sample_stops_the_run_where_it_is_read(
    segment: Train, label_maps: LabelMaps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('cvt_dense.datasets.check.SAMPLE', 1)
    colours(label_maps)
    segment(**{'train_dataloader.num_workers': 1}).assert_fails('training/1.png is a colour picture')


def test_what_is_watched_is_as_it_was_afterwards() -> None:
    from mmdet.datasets import CocoDataset
    from mmengine.dataset import BaseDataset

    from cvt_dense.datasets.check import watch_loading

    before = CocoDataset.COCOAPI, BaseDataset._serialize_data
    with watch_loading():
        assert CocoDataset.COCOAPI is not before[0]
    assert (CocoDataset.COCOAPI, BaseDataset._serialize_data) == before


def test_an_annotation_file_is_parsed_once(instances: Instances, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Parsing COCO's takes 20 seconds."""
    parsed = []
    for name in ('load', 'loads'):
        parse = getattr(json, name)

        def count(*args: object, parse: Callable = parse, **kwargs: object) -> object:
            content = parse(*args, **kwargs)
            parsed.append(isinstance(content, dict) and len(content.get('images', ())))
            return content

        monkeypatch.setattr(json, name, count)
    cfg = Config.fromfile(DETECTION)
    inspect_dataset(build_dataset(cfg.train_dataloader.dataset, 'mmdet'))
    assert parsed.count(4) == 1
