from __future__ import annotations

from typing import Any

import pytest
from mmengine.config import Config, DictAction

from cvt_dense.datasets.heads import check_heads, heads_with_classes, wrong_heads
from cvt_dense.errors import UserError

THREE = dict(classes=('a', 'b', 'c'))
PANOPTIC = dict(classes=('a', 'b', 'c'), thing_classes=['a', 'b'], stuff_classes=['c'])

RIGHT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    'boxes': (dict(bbox_head=dict(num_classes=3)), THREE),
    'cascade': (dict(roi_head=dict(bbox_head=[dict(num_classes=3), dict(num_classes=3)])), THREE),
    'foreground': (dict(rpn_head=dict(num_classes=1), roi_head=dict(bbox_head=dict(num_classes=3))), THREE),
    'stuff beside boxes': (dict(roi_head=dict(semantic_head=dict(num_classes=183))), THREE),
    'one mask for all': (dict(mask_head=dict(num_classes=80, class_agnostic=True)), THREE),
    'texts': (dict(language_model=dict(type='BertModel'), bbox_head=dict(num_classes=256)), THREE),
    'texts of CLIP': (dict(text_encoder=dict(), decode_head=dict(num_classes=2)), THREE),
    'boundary': (dict(auxiliary_head=[dict(type='STDCHead', num_classes=2)]), THREE),
    'identities': (dict(detector=dict(bbox_head=dict(num_classes=3)), reid=dict(head=dict(num_classes=380))), THREE),
    'of a backbone': (dict(backbone=dict(num_classes=1000)), THREE),
    'loss': (dict(bbox_head=dict(num_classes=3, loss_cls=dict(type='SeesawLoss', num_classes=3))), THREE),
    'one channel': (dict(decode_head=dict(num_classes=2, out_channels=1)), dict(classes=('no', 'yes'))),
    'things alone': (dict(panoptic_head=dict(num_things_classes=3, num_stuff_classes=0, out_channels=9)), THREE),
    'things and stuff': (
        dict(
            roi_head=dict(bbox_head=dict(num_classes=2)),
            semantic_head=dict(num_things_classes=2, num_stuff_classes=1),
        ),
        PANOPTIC,
    ),
    'weights and one of none': (
        dict(head=dict(num_classes=3, loss_cls=dict(class_weight=[1.0, 1.0, 1.0, 0.1]))),
        THREE,
    ),
    'tracking, whose data sets list more classes than they load': (
        dict(detector=dict(bbox_head=dict(num_classes=1)), tracker=dict(type='ByteTracker')),
        THREE,
    ),
    'no classes known': (dict(bbox_head=dict(num_classes=80)), {}),
}

WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    'boxes': (dict(bbox_head=dict(num_classes=80)), THREE, 'model.bbox_head.num_classes=3'),
    'loss': (
        dict(bbox_head=dict(num_classes=3, loss_cls=dict(num_classes=1203))),
        THREE,
        'model.bbox_head.loss_cls.num_classes=3',
    ),
    'in a list': (dict(auxiliary_head=[dict(), dict(num_classes=19)]), THREE, 'model.auxiliary_head.1.num_classes=3'),
    'one channel': (dict(decode_head=dict(num_classes=2, out_channels=1)), THREE, 'model.decode_head.out_channels=3'),
    'things': (
        dict(panoptic_head=dict(num_things_classes=80, num_stuff_classes=53)),
        PANOPTIC,
        'model.panoptic_head.num_things_classes=2 model.panoptic_head.num_stuff_classes=1',
    ),
    'boxes of things': (
        dict(bbox_head=dict(num_classes=3), semantic_head=dict(num_things_classes=2, num_stuff_classes=1)),
        PANOPTIC,
        'model.bbox_head.num_classes=2',
    ),
    'weights': (
        dict(head=dict(num_classes=5, out_channels=256, loss_cls=dict(class_weight=[1.0] * 5 + [0.1]))),
        THREE,
        'model.head.num_classes=3 model.head.loss_cls.class_weight=[1.0,1.0,1.0,0.1]',
    ),
    'weights of each': (
        dict(head=dict(num_classes=3, loss_decode=dict(class_weight=[0.8, 0.9, 1.0, 1.1, 1.2]))),
        THREE,
        'model.head.loss_decode.class_weight=None',
    ),
}


@pytest.mark.parametrize('case', RIGHT)
def test_what_does_not_count_the_classes_of_the_data_is_left_alone(case: str) -> None:
    model, metainfo = RIGHT[case]
    check_heads(Config(dict(model=model)), metainfo)
    for number in heads_with_classes(Config(dict(model=model))).values():
        assert 'tracker' in model or number == len(metainfo.get('classes', range(number)))


@pytest.mark.parametrize('case', WRONG)
def test_the_options_in_the_message_set_it_right(case: str) -> None:
    model, metainfo, told = WRONG[case]
    cfg = Config(dict(model=model))
    with pytest.raises(UserError, match='the data have 3 classes, and the config has') as error:
        check_heads(cfg, metainfo)
    options = str(error.value).partition('--cfg-options ')[2]
    assert told in options
    pairs = (option.partition('=') for option in options.split())
    cfg.merge_from_dict({key: DictAction._parse_iterable(value) for key, _, value in pairs})
    assert wrong_heads(cfg, metainfo) == {}
