"""What training and evaluation ask of an annotation file; what is evaluated is compared with CocoMetric's own word."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as run_length
from robust import CLASSES, SIDE, annotation

from cvt_dense.datasets.coco_file import GroundTruth, Use, check_annotations, for_evaluation, read_annotations
from cvt_dense.errors import UserError

pytest.importorskip('mmdet')

from mmdet.evaluation import CocoMetric

Content = dict[str, Any]


def content_of(count: int = 3) -> Content:
    images = [dict(id=number, file_name=f'{number}.png', width=SIDE, height=SIDE) for number in range(1, count + 1)]
    categories = [dict(id=10 * i + 3, name=name) for i, name in enumerate(CLASSES)]
    return dict(
        images=images, annotations=[annotation(image['id'], image['id']) for image in images], categories=categories
    )


def each(kind: str, **changes: Any) -> Callable[[Content], object]:
    """An edit of all entries of a kind; a function is applied to what is there."""

    def edit(content: Content) -> None:
        for entry in content[kind]:
            entry.update({key: change(entry[key]) if callable(change) else change for key, change in changes.items()})

    return edit


def without(kind: str, field: str) -> Callable[[Content], object]:
    return lambda content: [entry.pop(field) for entry in content[kind]]


def ids(change: Callable[[int], Any]) -> Callable[[Content], object]:
    """An edit of all ids, and of all that name them."""

    def edit(content: Content) -> None:
        each('images', id=change)(content)
        each('categories', id=change)(content)
        each('annotations', id=change, image_id=change, category_id=change)(content)

    return edit


def perfect_ap(path: Path) -> float:
    """What CocoMetric says of predictions that are the annotations."""
    content = json.loads(path.read_bytes())
    metric = CocoMetric(ann_file=str(path), metric='bbox', classwise=True)
    metric.dataset_meta = dict(classes=CLASSES)
    numbers = {category['id']: number for number, category in enumerate(content['categories'])}
    for image in content['images']:
        own = [entry for entry in content['annotations'] if entry['image_id'] == image['id']]
        boxes = torch.tensor([entry['bbox'] for entry in own]).reshape(-1, 4).float()
        boxes[:, 2:] += boxes[:, :2]
        labels = torch.tensor([numbers[entry['category_id']] for entry in own], dtype=torch.long)
        found = dict(bboxes=boxes, scores=torch.full((len(own),), 0.9), labels=labels)
        metric.process({}, [dict(img_id=image['id'], ori_shape=(SIDE, SIDE), pred_instances=found)])
    return metric.evaluate(len(content['images']))['coco/bbox_mAP']


def checked(content: Content, use: Use, path: Path) -> int:
    path.write_text(json.dumps(content))
    return check_annotations(path, read_annotations(path, use), CLASSES, use).annotations


#: Edits; what evaluation says of them; and if training takes them.
EVALUATION: dict[str, tuple[Callable[[Content], object], str, bool]] = {
    'id 0': (each('annotations', id=lambda value: value - 1), 'number annotations from 1', True),
    'ids of words': (ids(str), "id is '3'; evaluation needs a whole number", True),
    'ids with a point': (ids(float), 'id is 3.0; evaluation needs a whole number', True),
    'ids of fractions': (each('annotations', id=lambda value: value + 0.5), 'evaluation needs a whole number', True),
    'ids above 64 bits': (ids(lambda value: 2**1100 + value), 'evaluation needs a whole number of 64 bits', True),
    'ids of truth': (each('annotations', id=lambda value: value == 1), 'evaluation needs a whole number', False),
    'image ids of words': (each('annotations', image_id=str), "image_id is '1'; evaluation needs a whole", False),
    'category ids of words': (each('annotations', category_id=str), "category_id is '13'; evaluation needs", False),
    'iscrowd missing': (without('annotations', 'iscrowd'), 'iscrowd is missing; it has to be 0 or 1', True),
    'iscrowd null': (each('annotations', iscrowd=None), 'iscrowd is None; it has to be 0 or 1', True),
    'iscrowd "0"': (each('annotations', iscrowd='0'), "iscrowd is '0'; it has to be 0 or 1", False),
    'iscrowd 2': (each('annotations', iscrowd=2), 'iscrowd is 2; it has to be 0 or 1', False),
    'iscrowd a list': (each('annotations', iscrowd=[0]), 'iscrowd is [0]; it has to be 0 or 1', False),
    'ignore "0"': (each('annotations', ignore='0'), "ignore is '0'; it has to be 0 or 1", False),
    'crowds alone': (each('annotations', iscrowd=1), 'to compare predictions with (annotations are of crowds', False),
    'no annotations': (lambda content: content.update(annotations=[]), 'to compare predictions with', False),
    'other classes': (
        lambda content: [
            content['categories'].append(dict(id=99, name='x')),
            each('annotations', category_id=99)(content),
        ],
        'to compare predictions with (annotations are of other classes: 3',
        False,
    ),
    'other images': (each('annotations', image_id=99), 'because their image is not listed: 3', False),
    'huge areas': (each('annotations', area=1e11), 'annotations have an area below 0 or above 1e10: 3', True),
    'box far away': (each('annotations', bbox=[0, 0, 1e30, 9]), 'far outside of its image', False),
    'box of words': (each('annotations', bbox=['1', '2', '3', '4']), "bbox is ['1', '2', '3', '4']", False),
    'box of truth': (each('annotations', bbox=[True, 0, 9, 9]), 'bbox is [True, 0, 9, 9]', False),
    'area of words': (each('annotations', area='9'), "area is '9'", False),
    'size of truth': (each('images', width=True), 'width is True', False),
}


@pytest.mark.parametrize('case', EVALUATION)
def test_evaluation_asks_for_more_than_training(case: str, tmp_path: Path) -> None:
    edit, told, may_train = EVALUATION[case]
    content = content_of()
    edit(content)
    with pytest.raises(UserError) as error:
        checked(content, Use(evaluation=True), tmp_path / 'a.json')
    assert told in str(error.value)
    assert str(error.value).startswith(str(tmp_path / 'a.json'))
    if may_train:
        assert checked(content, Use(), tmp_path / 'a.json') == 3
    else:
        with pytest.raises(UserError):
            checked(content, Use(), tmp_path / 'a.json')


@pytest.mark.parametrize('case', ['id 0', 'crowds alone', 'huge areas'])
def test_what_is_refused_has_a_wrong_ap(case: str, tmp_path: Path) -> None:
    content = content_of()
    EVALUATION[case][0](content)
    (tmp_path / 'a.json').write_text(json.dumps(content))
    assert perfect_ap(tmp_path / 'a.json') < 1


@pytest.mark.parametrize('case', ['ids with a point', 'ids above 64 bits', 'iscrowd null'])
def test_what_is_refused_ends_evaluation(case: str, tmp_path: Path) -> None:
    content = content_of()
    EVALUATION[case][0](content)
    (tmp_path / 'a.json').write_text(json.dumps(content))
    with pytest.raises((OverflowError, TypeError)):
        perfect_ap(tmp_path / 'a.json')


RIGHT: dict[str, Callable[[Content], object]] = {
    'as it is': lambda content: None,
    'negative ids': ids(lambda value: -value),
    'large ids': ids(lambda value: 2**62 + value),
    'iscrowd of truth': each('annotations', iscrowd=False),
    'an image without': lambda content: content['annotations'].pop(),
    'other categories': lambda content: content['categories'].append(dict(id=99, name='x')),
}


@pytest.mark.parametrize('case', RIGHT)
def test_what_is_accepted_is_evaluated(case: str, tmp_path: Path) -> None:
    content = content_of()
    RIGHT[case](content)
    assert checked(content, Use(evaluation=True), tmp_path / 'a.json') == len(content['annotations'])
    assert perfect_ap(tmp_path / 'a.json') == 1


@pytest.mark.parametrize('flag', [0, 1, 0.0, True, None], ids=repr)
def test_flags_that_training_takes(flag: Any, tmp_path: Path) -> None:
    content = content_of()
    content['annotations'][0]['iscrowd'] = flag
    checked(content, Use(), tmp_path / 'a.json')


ENCODED: dict[str, tuple[Callable[[str], bytes], str]] = {
    'byte order mark': (lambda text: text.encode('utf-8-sig'), 'begins with a byte order mark'),
    'UTF-16': (lambda text: text.encode('utf-16'), 'is encoded in utf-16'),
    'UTF-32': (lambda text: text.encode('utf-32-le'), 'is encoded in utf-32-le'),
}


@pytest.mark.parametrize('case', ENCODED)
def test_what_training_reads_and_the_evaluator_does_not(case: str, tmp_path: Path) -> None:
    encode, told = ENCODED[case]
    path = tmp_path / 'a.json'
    path.write_bytes(encode(json.dumps(content_of())))
    assert read_annotations(path, Use()) == content_of()
    with pytest.raises(UserError, match=f'a.json {told}, which the evaluator cannot read; save it as UTF-8 without'):
        read_annotations(path, Use(evaluation=True))
    with pytest.raises(ValueError):
        CocoMetric(ann_file=str(path))
    path.write_text(json.dumps(read_annotations(path, Use())), 'utf-8')  # as advised
    assert read_annotations(path, Use(evaluation=True)) == content_of()
    CocoMetric(ann_file=str(path))


def test_an_encoding_that_nothing_reads_is_named_as_it_is(tmp_path: Path) -> None:
    (tmp_path / 'a.json').write_bytes('{"images": "é"}'.encode('latin-1'))
    with pytest.raises(UserError, match=r'a.json cannot be read: UnicodeDecodeError'):
        read_annotations(tmp_path / 'a.json')


def metric(file: object, **settings: Any) -> dict[str, Any]:
    return dict(type='CocoMetric', ann_file=None if file is None else str(file), **settings)


def test_what_is_asked_depends_on_the_evaluators(tmp_path: Path) -> None:
    path = str(tmp_path / 'a.json')

    def asked(*evaluators: dict[str, Any]) -> tuple[bool, bool, bool, bool]:
        use = for_evaluation(Use(), path, list(evaluators))
        assert use.evaluation
        return use.compared, use.by_file, use.as_text, use.masks

    assert asked(metric(path, metric=['bbox', 'segm'])) == (True, True, True, True)
    assert asked(metric(path, metric='bbox')) == (True, True, True, False)
    assert asked(metric(path) | dict(type=CocoMetric)) == (True, True, True, False)
    assert asked(metric(path, format_only=True, metric='segm')) == (False, False, True, False)
    assert asked(metric(None)) == (True, False, False, False)
    assert asked(metric(tmp_path / 'b.json')) == (False, False, False, False)
    assert asked(dict(type='DumpDetResults')) == (False, False, False, False)
    assert asked(dict(type='VOCMetric')) == (False, False, False, False)
    assert asked(metric(path, format_only=True), metric(path)) == (True, True, True, False)
    inside = dict(type='Evaluator', metrics=[metric(path)])
    assert for_evaluation(Use(), path, inside) == for_evaluation(Use(), path, metric(path))


@pytest.mark.parametrize('case', ['iscrowd null', 'id 0', 'ids of words', 'no annotations', 'huge areas'])
def test_other_evaluators_and_files_to_be_written_ask_for_less(case: str, tmp_path: Path) -> None:
    content, path = content_of(), tmp_path / 'a.json'
    EVALUATION[case][0](content)
    for evaluators in (
        dict(type='VOCMetric'),
        dict(type='LVISMetric', ann_file=str(path)),
        metric(path, format_only=True),
    ):
        checked(content, for_evaluation(Use(), str(path), evaluators), path)


def test_a_file_without_annotations_is_for_predictions_alone(tmp_path: Path) -> None:
    content, path = content_of(), tmp_path / 'a.json'
    del content['annotations']
    evaluator = metric(path)
    told = "has no list 'annotations', as files of test images, .* set format_only=True and outfile_prefix"
    with pytest.raises(UserError, match=told):
        checked(content, for_evaluation(Use(), str(path), evaluator), path)
    with pytest.raises(UserError, match="is not in COCO's format: it has no list 'annotations'"):
        checked(content, Use(), path)
    evaluator |= dict(format_only=True, outfile_prefix=str(tmp_path / 'out'))  # as advised
    assert checked(content, for_evaluation(Use(), str(path), evaluator), path) == 0


def masks_of(kind: str) -> Content:
    content = content_of()
    mask = np.zeros((SIDE, SIDE), np.uint8, order='F')
    mask[3:9, 4:30] = 1
    encoded = run_length.encode(mask)
    counts = encoded['counts'].decode() if kind == 'string' else [99, 9, SIDE * SIDE - 108]
    each('annotations', segmentation=lambda _: dict(size=[SIDE, SIDE], counts=counts))(content)
    return content


BROKEN_MASKS: dict[str, tuple[str, Callable[[Content], object], str]] = {
    'NaN': ('polygon', lambda mask: mask[0].__setitem__(3, float('nan')), 'a polygon with the coordinate nan'),
    'far': ('polygon', lambda mask: mask[0].__setitem__(3, 1e30), 'a polygon with the coordinate 1e+30'),
    'word': ('polygon', lambda mask: mask[0].__setitem__(3, '9'), "a polygon with the coordinate '9'"),
    'list': ('list', lambda mask: mask.update(counts=[1, 2]), 'run lengths sum up to 3'),
    'string': ('string', lambda mask: mask.update(counts=mask['counts'][:-1] + 'P'), 'run lengths are damaged'),
    'no counts': ('string', lambda mask: mask.update(counts=None), 'run lengths are None'),
    'size': ('string', lambda mask: mask.update(size=[SIDE, 9]), 'has a segmentation of size [64, 9]'),
    'size with a point': ('list', lambda mask: mask.update(size=[64.0, 64.0]), 'segmentation of size [64.0, 64.0]'),
    'no size': ('list', lambda mask: mask.pop('size'), 'has a segmentation of size None'),
}


@pytest.mark.parametrize('case', BROKEN_MASKS)
@pytest.mark.parametrize('evaluation', [False, True])
def test_masks_that_pycocotools_would_read_unseen(case: str, evaluation: bool, tmp_path: Path) -> None:
    kind, edit, told = BROKEN_MASKS[case]
    content = content_of() if kind == 'polygon' else masks_of(kind)
    use = Use(masks=True, evaluation=evaluation)
    assert checked(content, use, tmp_path / 'a.json') == 3
    edit(content['annotations'][1]['segmentation'])
    with pytest.raises(UserError) as error:
        checked(content, use, tmp_path / 'a.json')
    assert 'annotation 2 has' in str(error.value)
    assert told in str(error.value)
    checked(content, Use(evaluation=evaluation), tmp_path / 'a.json')  # where no masks are read


class TestTheFileOfAnEvaluator:
    """An ``ann_file`` that is another one than the data set's."""

    @pytest.fixture
    def other(self, tmp_path: Path) -> Path:
        path = tmp_path / 'other.json'
        path.write_text(json.dumps(content_of()))
        return path

    def check(self, other: Path, content: Content | None = None) -> GroundTruth:
        truth = GroundTruth(metric(other))
        truth.check('a.json', content or content_of(), CLASSES)
        return truth

    def edit(self, path: Path, edit: Callable[[Content], object]) -> None:
        content = content_of()
        edit(content)
        path.write_text(json.dumps(content))

    def test_one_of_the_same_images_will_do(self, other: Path) -> None:
        self.check(other).check_complete()

    def test_it_is_there_and_can_be_read(self, other: Path) -> None:
        other.write_text('{')
        with pytest.raises(UserError, match=r'other.json is not valid JSON'):
            self.check(other)
        other.unlink()
        with pytest.raises(UserError, match=r"evaluator's annotation file .*other.json does not exist; set ann_file"):
            self.check(other)

    def test_it_is_checked_as_for_evaluation(self, other: Path) -> None:
        self.edit(other, EVALUATION['id 0'][0])
        with pytest.raises(UserError, match=r'other.json has an annotation with the id 0'):
            self.check(other)

    def test_it_has_the_classes_in_their_order(self, other: Path) -> None:
        self.edit(other, lambda content: content['categories'].reverse())
        with pytest.raises(UserError, match=r'other.json has its categories in another order'):
            self.check(other)

    def test_it_lists_the_images_that_are_predicted(self, other: Path) -> None:
        with pytest.raises(UserError, match=r"other.json, the evaluator's ann_file, does not list image 4 of a.json"):
            self.check(other, content_of(4))

    def test_it_lists_no_others(self, other: Path) -> None:
        """Of which nothing is predicted, so that the AP is too low."""
        truth = self.check(other, content_of(2))
        with pytest.raises(UserError, match=r'lists 1 images that the data set does not have: the AP would be too low'):
            truth.check_complete()
        last = content_of()
        del last['images'][:2]
        truth.check('b.json', last, CLASSES)  # another one of the data sets that are joined
        truth.check_complete()

    def test_it_is_read_once(self, other: Path) -> None:
        truth = self.check(other)
        other.unlink()
        truth.check('b.json', content_of(), CLASSES)

    def test_that_of_the_data_set_is_not_read_again(self, tmp_path: Path) -> None:
        truth = GroundTruth([metric(tmp_path / 'a.json'), metric(None), dict(type='LVISMetric', ann_file='no.json')])
        assert truth.check(str(tmp_path / '..' / tmp_path.name / 'a.json'), content_of(), CLASSES) == []
        truth.check_complete()
