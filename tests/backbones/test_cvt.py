from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from golden import TINY, image, weights
from mmengine.logging import MMLogger
from mmengine.model import BaseModule
from torch import nn

from cvt_dense import CheckpointError, CvT


def tiny(**settings: object) -> CvT:
    return CvT(arch=TINY, **settings)


@pytest.mark.parametrize(
    ('init_cfg', 'message'),
    [
        (dict(type='Pretrained'), 'init_cfg names no checkpoint'),
        (dict(type='Pretrained', checkpoint=None), 'init_cfg names no checkpoint'),
        (dict(type='Pretrained', checkpoint='cvt-13-224x224-in1k', prefx='backbone'), "an unknown key 'prefx'"),
    ],
)
def test_an_init_cfg_that_nothing_would_read_is_refused(init_cfg: dict[str, object], message: str) -> None:
    model = tiny(init_cfg=init_cfg)
    with pytest.raises(CheckpointError, match=message):
        model.init_weights()
    assert model.init_cfg == init_cfg


def test_initialising_leaves_the_init_cfg_as_it_was() -> None:
    for init_cfg in (None, [], dict(type='TruncNormal', layer='Linear', std=0.5)):
        model = tiny(init_cfg=init_cfg)
        model.init_weights()
        assert model.init_cfg == init_cfg
    assert 0.4 < model.stage1.blocks[0].mlp.fc1.weight.std() < 0.6


def test_initialising_a_backbone_by_itself_is_one_line(tmp_path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.save(weights(tiny(out_norm=False)), tmp_path / 'tiny.pth')
    pretrained = dict(type='Pretrained', checkpoint=str(tmp_path / 'tiny.pth'))
    constant = dict(type='Constant', layer='LayerNorm', val=0.5)
    for init_cfg, expected in (
        (None, 'tensors are random: init_cfg names no checkpoint'),
        (constant, 'tensors are random or as Constant made them: init_cfg names no checkpoint'),
        (pretrained, 'tiny.pth'),
        ([constant, pretrained], 'tiny.pth'),
    ):
        MMLogger.get_instance(f'alone with {init_cfg}')  # it writes to what is captured now
        tiny(init_cfg=init_cfg).init_weights()
        out, err = capfd.readouterr()
        (line,) = (out + err).splitlines()
        assert 'CvT: ' in line
        assert expected in line


def test_a_second_initialisation_leaves_trained_weights(tmp_path) -> None:
    torch.save(weights(tiny(out_norm=False)), tmp_path / 'tiny.pth')
    model = tiny(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'tiny.pth')))
    model.init_weights()
    torch.nn.init.zeros_(model.stage0.patch_embed.proj.weight)
    model.init_weights()
    assert not model.stage0.patch_embed.proj.weight.any()


def test_within_a_model_mmengine_reports_each_parameter_to_the_log_file(tmp_path) -> None:
    torch.save(weights(tiny(out_norm=False)), tmp_path / 'tiny.pth')

    class Detector(BaseModule):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = tiny(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'tiny.pth')))
            self.head = nn.Linear(2, 2)

    MMLogger.get_instance('a run with a file', log_file=str(tmp_path / 'run.log'))
    Detector().init_weights()
    log = (tmp_path / 'run.log').read_text()
    reported = log.split('backbone.stage1.blocks.1.attn.proj_q.weight - torch.Size([48, 48]):')[1]
    assert 'Initialized by user-defined `init_weights` in CvT' in reported.splitlines()[1]
    assert 'CvT: ' in log


def test_an_older_torch_is_named() -> None:
    code = """
import torch
torch.__version__ = type(torch.__version__)('2.5.1+cpu')
import cvt_dense
"""
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert 'ImportError: cvt_dense needs torch 2.6 or later' in result.stderr
    assert '2.5.1+cpu' in result.stderr


def test_an_unknown_attribute_of_the_package_is_an_attribute_error() -> None:
    import cvt_dense

    with pytest.raises(AttributeError, match="no attribute 'CvT99'"):
        _ = cvt_dense.CvT99


def test_init_weights_loads_a_pretrained_checkpoint(tmp_path) -> None:
    source = tiny(out_norm=False)
    torch.save(weights(source), tmp_path / 'tiny.pth')
    model = tiny(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'tiny.pth')))
    model.init_weights()
    for name, tensor in weights(source).items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert model.init_cfg['checkpoint'].endswith('tiny.pth')
    with torch.no_grad():
        assert all(x.isfinite().all() for x in model.eval()(image(64, 96, 2)))


def test_other_initialisers_work_beside_a_checkpoint(tmp_path) -> None:
    torch.save(weights(tiny(out_norm=False)), tmp_path / 'tiny.pth')
    constant = dict(type='Constant', layer='LayerNorm', val=0.5, bias=0.0)
    pretrained = dict(type='Pretrained', checkpoint=str(tmp_path / 'tiny.pth'))
    model = tiny(init_cfg=[constant, pretrained])
    model.init_weights()
    assert (model.norm0.weight == 0.5).all()
    assert not (model.stage0.patch_embed.norm.weight == 0.5).any()
