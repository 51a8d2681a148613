"""What is published of runs: of each kind of model and backbone, and to a Hub on the loopback interface."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import huggingface_hub
import publish_model
import pytest
import timm
import torch
from documents import blocks
from golden import CMT_TINY
from huggingface_hub import ModelCard
from mmengine.config import Config
from mmengine.registry import MODELS
from paths import ROOT
from safetensors.torch import load_file
from servers import FileServer, nobody_serving, serving

from cvt_dense import CheckpointError
from cvt_dense.backbones.cvt import CvT
from cvt_dense.engine.config import load_config
from cvt_dense.engine.model import toolkit_scope
from cvt_dense.errors import UserError

CMT = f"""
_base_ = '{ROOT}/configs/upernet_cvttiny_shapes.py'
model = dict(backbone=dict(_delete_=True, type='CMT', arch={CMT_TINY!r}, out_indices=(1, 2, 3), pretrain_size=96))
"""
RESNET = f"""
_base_ = '{ROOT}/configs/upernet_cvttiny_shapes.py'
model = dict(
    backbone=dict(_delete_=True, type='ResNet', depth=18, num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1),
                  out_indices=(0, 1, 2)),
    decode_head=dict(in_channels=[64, 128, 256]), auxiliary_head=dict(in_channels=256))
"""
RUNS = {
    'segmentation': "_base_ = '{root}/configs/upernet_cvttiny_shapes.py'",
    'detection': "_base_ = '{root}/configs/maskrcnn_cvttiny_fpn_shapes.py'\nmodel = dict(backbone=dict(init_cfg=None))",
    'new_style': (ROOT / 'configs/new_style/maskrcnn_cvttiny_fpn_shapes.py').read_text(),
    'cmt': CMT,
    'resnet': RESNET,
}
LOG = """2026/01/02 10:00:00 - mmengine - INFO -
System environment:
    Python: 3.11.7 (main, Jan 1 2026)
    GPU 0,1: NVIDIA X
    PyTorch: 2.11.0
Runtime environment:
    GPU number: 2

2026/01/02 10:00:10 - mmengine - INFO - Checkpoints will be saved to run.
2026/01/02 10:00:30 - mmengine - INFO - Iter(train) [2/4]  lr: 1e-3
2026/01/02 10:01:30 - mmengine - INFO - Iter(val) [2/2]  aAcc: 50
2026/01/02 10:09:00 - mmengine - INFO - something else
"""
STEPS = [
    dict(lr=5e-4, base_lr=1e-3, loss=2.0, iter=2, step=2),
    dict(aAcc=40.0, mIoU=20.5, time=0.1, step=2),
    dict(lr=2e-4, base_lr=4e-4, loss=1.5, iter=4, step=4),
    dict(aAcc=50.0, mIoU=31.25, time=0.1, step=4),
]


@pytest.fixture(scope='module')
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Work directories as runs leave them, by the kind of the run."""
    made = {}
    for kind, text in RUNS.items():
        torch.manual_seed(3)
        folder = made[kind] = tmp_path_factory.mktemp(kind)
        source = folder / 'source' / f'{kind}.py'
        source.parent.mkdir()
        source.write_text(text.replace('{root}', str(ROOT)) if kind != 'new_style' else '')
        cfg = load_config(ROOT / 'configs/new_style/maskrcnn_cvttiny_fpn_shapes.py' if kind == 'new_style' else source)
        cfg.model.backbone.init_cfg = None
        cfg.dump(folder / f'{kind}.py')
        with toolkit_scope(cfg):
            tensors = MODELS.build(cfg.model.copy()).state_dict()
        meta = dict(iter=4, epoch=0, seed=3, time='20260102_100130', mmengine_version=f'0.10.12{"0" * 40}')
        meta['dataset_meta'] = dict(classes=('star', 'ring'), palette=[(1, 2, 3), (4, 5, 6)])
        content = dict(meta=meta, state_dict=tensors, optimizer=dict(state={}), message_hub={})
        if kind == 'segmentation':  # EMAHook puts what it averaged in the place of what was trained
            content['ema_state_dict'] = {f'module.{name}': tensor + 1 for name, tensor in tensors.items()}
        torch.save(content, folder / 'iter_4.pth')
        (folder / 'last_checkpoint').write_text('/gone/iter_4.pth')
        logs = folder / '20260102_100000'
        (logs / 'vis_data').mkdir(parents=True)
        (logs / 'vis_data' / 'scalars.json').write_text(''.join(f'{json.dumps(step)}\n' for step in STEPS))
        (logs / '20260102_100000.log').write_text(LOG)
        (folder / 'curves.png').write_bytes(b'a picture')
    return made


def publish(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, 'argv', ['publish_model.py', *map(str, arguments)])
    publish_model.main()


@pytest.mark.parametrize('kind', RUNS)
def test_a_run_is_published(
    kind: str,
    runs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / 'new' / 'published'
    publish(monkeypatch, runs[kind], '--out', out, '--license', 'apache-2.0')
    (weights,) = out.glob('*.pth')
    assert weights.name.startswith(f'{kind}_20260102-')
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['published']
    names = {path.name for path in out.iterdir()}
    in_timm = {'config.json', 'model.safetensors'} if kind != 'resnet' else set()
    common = {f'{kind}.py', 'README.md', 'metrics.json', 'curves.png', weights.with_suffix('.safetensors').name}
    assert names == common | {weights.name} | in_timm

    content = torch.load(weights, weights_only=True)
    trained = torch.load(runs[kind] / 'iter_4.pth', weights_only=True)['state_dict']
    for tensors in (content['state_dict'], load_file(weights.with_suffix('.safetensors'))):
        assert tensors.keys() == trained.keys()
        assert all(torch.equal(tensors[name], tensor) for name, tensor in trained.items())
    assert content.keys() == {'meta', 'state_dict'}
    assert content['meta']['dataset_meta'] == dict(classes=['star', 'ring'], palette=[[1, 2, 3], [4, 5, 6]])
    assert content['meta']['cfg'] == (out / f'{kind}.py').read_text()
    assert 'work_dir' not in Config.fromfile(out / f'{kind}.py')

    card = ModelCard.load(out / 'README.md')
    (result,) = (found for found in card.data.eval_results if found.metric_name == 'mIoU')
    assert (result.metric_value, result.metric_type, card.data.license) == (31.25, 'mean_iou', 'apache-2.0')
    assert ('weights averaged (EMA)' in card.content) == (kind == 'segmentation')
    for told in (
        '0:01:20',
        'NVIDIA X',
        '| learning rate | 0.001 |',
        '| 2 | 40 | 20.5 |',
        'torch 2.11.0, python 3.11.7, mmengine 0.10.12 |',
        '| seed | 3 |',
    ):
        assert told in card.content
    assert json.loads((out / 'metrics.json').read_text())['metrics'] == dict(aAcc=50.0, mIoU=31.25)

    if in_timm:
        model = timm.create_model(f'local-dir:{out}', pretrained=True, features_only=True)
        key = 'model.stages.1.patch_embed.proj.weight'
        ours = 'patch_embed_b.proj.weight' if kind == 'cmt' else 'stage1.patch_embed.proj.weight'
        assert torch.equal(model.state_dict()[key], trained[f'backbone.{ours}'])
        told = json.loads((out / 'config.json').read_text())['pretrained_cfg']
        assert told['input_size'] == [3, 160, 160]
        assert told['mean'] == pytest.approx([0.485, 0.456, 0.406])
    else:
        assert 'note: not for timm, since its backbone is a ResNet' in capsys.readouterr().err


def test_what_is_not_known_is_not_told(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = torch.load(runs['segmentation'] / 'iter_4.pth', weights_only=True)['state_dict']
    torch.save(tensors, tmp_path / 'weights.pth')
    publish(monkeypatch, runs['segmentation'] / 'segmentation.py', tmp_path / 'weights.pth', '--out', tmp_path / 'out')
    card = ModelCard.load(tmp_path / 'out' / 'README.md')
    assert card.data.license is None
    assert card.data.eval_results is None
    assert not {'## Results', 'iterations', 'seed', 'time,', 'device', 'versions'} & set(card.content.split())
    assert not (tmp_path / 'out' / 'metrics.json').exists()
    backbone = CvT(
        dict(embed_dims=[32, 64, 128], num_heads=[1, 2, 4], depths=[1, 1, 2]),
        out_indices=(0, 1, 2),
        init_cfg=dict(type='Pretrained', checkpoint=str(next((tmp_path / 'out').glob('*.pth')))),
    )
    backbone.init_weights()
    assert torch.equal(backbone.norm2.weight, tensors['backbone.norm2.weight'])


def test_nothing_is_overwritten_and_nothing_half_written(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / 'out'
    out.mkdir()
    (out / 'mine').write_text('mine')
    with pytest.raises(UserError, match='nothing is overwritten: choose another --out'):
        publish(monkeypatch, runs['cmt'], '--out', out)
    config, broken = runs['segmentation'] / 'segmentation.py', tmp_path / 'broken.pth'
    content = torch.load(runs['segmentation'] / 'iter_4.pth', weights_only=True)
    del content['state_dict']['decode_head.conv_seg.weight']
    torch.save(content, broken)
    with pytest.raises(UserError, match=r'it lacks decode_head\.conv_seg\.weight'):
        publish(monkeypatch, config, broken, '--out', tmp_path / 'other')
    broken.write_bytes(b'no checkpoint')
    with pytest.raises(CheckpointError, match='damaged'):
        publish(monkeypatch, config, broken, '--out', tmp_path / 'other')
    assert {path.name for path in tmp_path.iterdir()} == {'out', 'broken.pth'}
    assert [path.name for path in out.iterdir()] == ['mine']


class Hub(FileServer):
    """A Hugging Face Hub that takes uploads; its settings are the class's.

    Attributes:
        token: What may write.
        address: Where it is.
        made: Repositories that were made.
    """

    token = 'hf_right'
    address: str
    made: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = self._body()
        if self.headers['Authorization'] != f'Bearer {self.token}':
            return self.reply(HTTPStatus.UNAUTHORIZED, b'{}', {'X-Error-Message': 'Invalid token'})
        if self.path == '/api/repos/create':
            self.made.append(json.loads(body))
            return self._say(url=f'{self.address}/USER/NAME')
        if self.path == '/api/validate-yaml':
            return self._say(errors=[], warnings=[])
        if self.path == '/api/models/USER/NAME/preupload/main':
            asked = [entry['path'] for entry in json.loads(body)['files']]
            return self._say(files=[dict(path=path, uploadMode='regular', shouldIgnore=False) for path in asked])
        if self.path == '/api/models/USER/NAME/commit/main':
            for line in map(json.loads, body.splitlines()):
                if line['key'] == 'file':
                    content = base64.b64decode(line['value']['content'])
                    self.files[f'/USER/NAME/resolve/main/{line["value"]["path"]}'] = content
            return self._say(success=True, commitOid='0' * 40, commitUrl=f'{self.address}/USER/NAME/commit/{"0" * 40}')
        self.reply(HTTPStatus.NOT_FOUND, b'{}')

    def answer(self) -> None:
        found = self.files.get(self.path)
        headers = {'X-Repo-Commit': '0' * 40, 'ETag': f'"{abs(hash(found))}"'}
        if found is None:
            headers['X-Error-Code'] = 'EntryNotFound'
        self.reply(HTTPStatus.NOT_FOUND if found is None else HTTPStatus.OK, found or b'', headers)

    def _say(self, **content: Any) -> None:
        self.reply(HTTPStatus.OK, json.dumps(content).encode(), {'Content-Type': 'application/json'})

    def _body(self) -> bytes:
        if 'Content-Length' in self.headers:
            return self.rfile.read(int(self.headers['Content-Length']))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b''.join(parts)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    handler = type('AHub', (Hub,), dict(files={}, asked=[], made=[]))
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(huggingface_hub.constants, 'HF_TOKEN_PATH', str(tmp_path / 'token'))
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setenv('HF_TOKEN', 'hf_right')
    with serving(handler) as handler.address:
        use(monkeypatch, handler.address)
        yield handler


def use(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Let huggingface_hub ask another Hub."""
    monkeypatch.setattr(huggingface_hub.constants, 'ENDPOINT', address)
    template = address + '/{repo_id}/resolve/{revision}/{filename}'
    monkeypatch.setattr(huggingface_hub.constants, 'HUGGINGFACE_CO_URL_TEMPLATE', template)


def test_what_is_uploaded_is_what_timm_loads_from_the_hub(
    hub: type[Hub], runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / 'published' / 'upernet'
    publish(monkeypatch, runs['segmentation'], '--out', out, '--upload', 'USER/NAME', '--private')
    assert {path.rpartition('/')[2]: content for path, content in hub.files.items()} == {
        path.name: path.read_bytes() for path in out.iterdir()
    }
    assert hub.made[0]['name'] == 'NAME'
    assert hub.made[0].get('private') is True or hub.made[0].get('visibility') == 'private'
    monkeypatch.chdir(tmp_path)
    (block,) = blocks(ROOT / 'docs/publishing.md', 'python')
    names: dict[str, Any] = {}
    loaded = []
    for line in block.splitlines():  # each model takes the name of the one before
        exec(line, names)
        loaded.append(names.get('backbone'))
    local, remote = (model.state_dict() for model in loaded[-2:])
    assert all(torch.equal(tensor, remote[name]) for name, tensor in local.items())


@pytest.mark.parametrize('problem', ['no token', 'offline', 'no name', 'refused', 'nobody'])
def test_what_keeps_it_from_the_hub_is_one_line_and_what_was_written_stays(
    problem: str, hub: type[Hub], runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [runs['segmentation'], '--out', tmp_path / 'out', '--upload']
    before = {'no token': 'hf auth login', 'offline': 'HF_HUB_OFFLINE', 'no name': 'is named USER/NAME'}
    if problem in before:
        if problem == 'no token':
            monkeypatch.delenv('HF_TOKEN')
        if problem == 'offline':
            monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
        with pytest.raises(UserError, match=before[problem]) as error:
            publish(monkeypatch, *arguments, 'NAME' if problem == 'no name' else 'USER/NAME')
        assert not (tmp_path / 'out').exists(), 'found before the work is done'
    else:
        monkeypatch.setattr('time.sleep', lambda seconds: None)  # between attempts
        with nobody_serving() as address:
            if problem == 'refused':
                monkeypatch.setenv('HF_TOKEN', 'hf_wrong')
            else:
                use(monkeypatch, address)
            with pytest.raises(UserError, match='is whole, and could not be uploaded to USER/NAME') as error:
                publish(monkeypatch, *arguments, 'USER/NAME')
        assert f'hf upload USER/NAME {tmp_path / "out"}' in str(error.value)
        assert (tmp_path / 'out' / 'README.md').is_file()
    assert '\n' not in str(error.value)
    assert hub.files == {}
