"""What the documentation shows is held to the code: commands, blocks of Python, links, messages."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import documents
import golden
import mmdet.models  # noqa: F401  registers what its configs name
import mmseg.models  # noqa: F401  likewise
import pytest
import torch
from mmengine.config import Config, DictAction
from mmengine.registry import HOOKS, MODELS, DefaultScope
from paths import ROOT

from cvt_dense.checkpoints import PUBLISHED
from cvt_dense.engine.config import load_config

SNIPPETS = [
    (path, block)
    for path in ('README.md', 'docs/checkpoints.md')
    for block in re.findall(r'```python\n(.*?)```', (ROOT / path).read_text(), re.DOTALL)
    if 'custom_imports' in block
]


def section(path: str, title: str) -> str:
    """What a page has below a heading of the second level."""
    return (ROOT / path).read_text().partition(f'\n## {title}\n')[2].partition('\n## ')[0]


def test_what_watching_a_run_can_be_set_to_is_there_to_be_set() -> None:
    text = section('docs/training.md', 'Watching a run')
    settings = dict(re.findall(r'^\| `([\w.]+)=(\S+)` \|', text, re.MULTILINE))
    assert len(settings) == 4
    cfg = Config.fromfile(ROOT / 'configs' / 'maskrcnn_cvt13_fpn_coco.py')
    for key, value in settings.items():
        node = cfg
        for part in key.split('.')[:-1]:
            node = node[part]
        if 'samples' not in key:
            assert key.split('.')[-1] in node, f'{key}={value}'
    samples = {key.split('.')[-1]: int(value) for key, value in settings.items() if 'samples' in key}
    HOOKS.build(cfg.default_hooks.samples | samples)
    (block,) = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    assert len([HOOKS.build(hook) for hook in Config.fromstring(block, '.py').custom_hooks]) == 2


#: Settings that pages name in backquotes: with a dotted path, or what mmengine looks up in the config as a whole.
SETTINGS = sorted(
    {
        (path.name, span)
        for path in (ROOT / 'docs').glob('*.md')
        for span in re.findall(r'`([^`\n]+)`', path.read_text())
        if all(re.fullmatch(r'(?:[a-z_]+\.[\w.]+|sync_bn|compile)=\S+', part) for part in span.split())
    }
)


@pytest.mark.parametrize(('page', 'span'), SETTINGS)
def test_settings_in_the_text_can_be_set(page: str, span: str) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    options = parser.parse_args(['--cfg-options', *(part.replace('"', '') for part in span.split())]).cfg_options
    name = 'upernet_cvt13_ade20k' if 'mIoU' in span else 'maskrcnn_cvt13_fpn_coco'
    cfg = load_config(ROOT / f'configs/{name}.py', options)
    for key in options:
        node: Any = cfg
        for part in key.split('.'):
            assert part in node, f'{page}: {key} leads nowhere'
            node = node[part]


def test_the_pages_name_settings() -> None:
    assert len(SETTINGS) > 12
    assert any('sync_bn=torch' in span for _, span in SETTINGS)


def configs(package: str) -> Path:
    """The folder of configs that came with a toolkit."""
    return Path(importlib.util.find_spec(package).origin).parent / '.mim' / 'configs'


def test_the_documentation_shows_how_to_use_it_in_a_project() -> None:
    assert [path for path, _ in SNIPPETS] == ['README.md', 'docs/checkpoints.md', 'docs/checkpoints.md']


@pytest.mark.parametrize(('path', 'block'), SNIPPETS, ids=[f'{path}-{i}' for i, (path, _) in enumerate(SNIPPETS)])
def test_a_projects_config_takes_the_backbone(path: str, block: str, tmp_path: Path) -> None:
    named = re.search(r"_base_ = '(.+)'", block)
    base = named[1] if named else 'mask-rcnn_r50_fpn_1x_coco.py'
    scope = 'mmseg' if 'decode_head' in block else 'mmdet'
    (found,) = configs(scope).rglob(base)
    (tmp_path / 'config.py').write_text(f"_base_ = '{found}'\n" + block.replace(named[0] if named else '\0', ''))
    cfg = Config.fromfile(tmp_path / 'config.py')
    assert cfg.model.backbone.init_cfg.checkpoint == 'cvt-13-384x384-in22k'
    cfg.model.backbone.init_cfg = None
    for part in ('decode_head', 'auxiliary_head', 'backbone'):
        if 'norm_cfg' in cfg.model.get(part, {}):
            cfg.model[part].norm_cfg = dict(type='BN')  # SyncBN is for several GPUs
    with DefaultScope.overwrite_default_scope(scope), torch.no_grad():
        model = MODELS.build(cfg.model).eval()
        features = model.extract_feat(torch.randn(1, 3, 64, 96))
        if scope == 'mmdet':
            scores, _ = model.rpn_head(features)
            assert [tuple(s.shape[2:]) for s in scores] == [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
        else:
            assert model.decode_head(features).shape == (1, 150, 16, 24)
            assert model.auxiliary_head(features).shape == (1, 150, 4, 6)


#: Pages whose blocks other tests run, on trained models or with other packages.
RUN_ELSEWHERE = {
    'prediction': 'tests/tools/test_predict.py',
    'export': 'tests/tools/test_export.py',
    'integrations': 'tests/test_integrations.py',
    'publishing': 'tests/tools/test_publish_model.py',
    'pretraining': 'tests/tools/test_run_timm.py',
}
PYTHON_BLOCKS = [
    pytest.param(path, block, id=f'{path.stem}-{number}')
    for path in documents.PAGES
    for number, block in enumerate(documents.blocks(path, 'python'))
    if path.stem not in RUN_ELSEWHERE
]
SCRIPTS = [
    pytest.param(script, id=f'{path.stem}-{number}')
    for path in documents.PAGES
    for number, script in enumerate(documents.scripts(path))
]
#: What stands for a file or folder of the reader's in the documentation.
PLACEHOLDERS = {'CONFIG', 'configs/mine.py'}


class Parsed(Exception):
    """Carries the arguments that a tool's parser accepted."""


def parse(tool: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace | None:
    """The arguments as a tool understands them, None if it only prints its help; the tool is not run.

    Raises:
        SystemExit: If the tool refuses them.
    """
    plain = argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, *args: Any) -> None:
        raise Parsed(plain(self, *args))

    spec = importlib.util.spec_from_file_location(f'documented_{Path(tool).stem}', ROOT / tool)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses look for it
    spec.loader.exec_module(module)
    monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', stop)
    monkeypatch.setattr(sys, 'argv', [tool, *arguments])
    try:
        module.main()
    except Parsed as parsed:
        return parsed.args[0]
    except SystemExit as left:
        if left.code == 0:
            return None
        raise
    raise AssertionError(f'{tool} parsed no arguments')


def options_of(tool: str) -> set[str]:
    """The options that a tool's parser takes, by its own help."""
    with pytest.MonkeyPatch.context() as monkeypatch, contextlib.redirect_stdout(io.StringIO()) as help_text:
        parse(tool, ['--help'], monkeypatch)
    return set(re.findall(r'--[a-z][\w-]+', help_text.getvalue()))


def check_tool(tool: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Check whether a tool takes arguments, and whether the config that they name takes their overrides."""
    given = parse(tool, arguments, monkeypatch)
    configs = getattr(given, 'config', None) or getattr(given, 'configs', None) or []
    if tool == 'tools/predict.py' and given and given.model.endswith('.py'):
        configs = given.model
    for config in [configs] if isinstance(configs, str) else configs:
        if config in PLACEHOLDERS:
            config = 'configs/maskrcnn_cvt13_fpn_coco.py'
        load_config(config, getattr(given, 'cfg_options', None))


@pytest.mark.parametrize('script', SCRIPTS)
def test_commands_are_ones_that_the_tools_take(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    targets = re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE)
    for program, *arguments in documents.calls(script, tmp_path):
        is_pytest = program == 'python' and arguments[:2] == ['-m', 'pytest']
        script = r'tools/\w+\.py|tests/kill_and_resume\.py|tests/helpers/compare_\w+\.py'
        tools = [place for place, word in enumerate(arguments) if re.fullmatch(script, word) and not is_pytest]
        if tools and len(arguments) > tools[0] + 1:
            check_tool(arguments[tools[0]], arguments[tools[0] + 1 :], monkeypatch)
            monkeypatch.undo()
            monkeypatch.chdir(ROOT)
        elif tools:
            assert (ROOT / arguments[tools[0]]).is_file()
        elif program == 'make':
            assert arguments[0] in targets
        elif is_pytest:
            files = [word for word in arguments if word.startswith('tests/')]
            assert all((ROOT / word).exists() for word in files)
        elif program == 'python':
            raise AssertionError(f'nothing checks python {" ".join(arguments)}')
        elif program in ('bash', 'cp'):
            assert (ROOT / arguments[0]).is_file()


@pytest.mark.parametrize('path', documents.PAGES, ids=lambda path: path.stem)
def test_tools_and_options_in_the_text_exist(path: Path) -> None:
    for tool, rest in re.findall(r'`(tools/\w+\.py)([^`]*)`', path.read_text()):
        asked = re.findall(r'--[\w-]+', rest)
        if asked:
            assert set(asked) <= options_of(tool), (tool, rest)
        assert (ROOT / tool).is_file()


@pytest.fixture(scope='module')
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with stand-ins for the published files of CvT-21."""
    folder = tmp_path_factory.mktemp('published')
    torch.save(golden.classifier('cvt_21').state_dict(), folder / 'weights.pth')
    for entry in PUBLISHED.values():
        if entry.arch == 'cvt-21':
            (folder / entry.filename).symlink_to(folder / 'weights.pth')
    return folder


@pytest.mark.parametrize(('path', 'block'), PYTHON_BLOCKS)
def test_python_blocks_run(
    path: Path, block: str, tmp_path: Path, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = compile(block, str(path), 'exec')
    monkeypatch.setenv('CVT_DENSE_CHECKPOINTS', str(published))
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    images = [dict(id=number, file_name=f'{number}.png') for number in range(10)]
    annotations = [dict(id=number, image_id=number) for number in range(10)]
    Path('instances.json').write_text(json.dumps(dict(images=images, annotations=annotations, categories=[])))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    promised = re.findall(r'^print\(.*\n# (.+)$', block, re.MULTILINE)
    assert printed.getvalue().splitlines() == promised


def test_the_split_leaves_nothing_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = documents.blocks(ROOT / 'docs/finetuning.md', 'python')
    monkeypatch.chdir(tmp_path)
    images = [dict(id=number) for number in range(11)]
    content = dict(images=images, annotations=[dict(image_id=number % 11) for number in range(30)], categories=[{}])
    Path('instances.json').write_text(json.dumps(content))
    exec(block, {})
    parts = [json.loads(Path(f'{name}.json').read_text()) for name in ('train', 'val')]
    assert [len(part['images']) for part in parts] == [9, 2]
    assert sorted(image['id'] for part in parts for image in part['images']) == list(range(11))
    assert sum(len(part['annotations']) for part in parts) == 30
    for part in parts:
        assert {a['image_id'] for a in part['annotations']} <= {image['id'] for image in part['images']}
        assert part['categories'] == [{}]


@pytest.mark.parametrize('path', documents.PAGES, ids=lambda path: path.stem)
def test_links_lead_somewhere(path: Path) -> None:
    for link in re.findall(r'\]\(([^)\s]+)\)', path.read_text()):
        if link.startswith('https://'):
            continue
        name, _, anchor = link.partition('#')
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), link
        if anchor:
            headings = re.findall(r'^#+ (.+)$', target.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r'[^\w\- ]', '', heading).lower().replace(' ', '-') for heading in headings}, link


def test_the_installation_page_names_what_is_pinned_and_what_exists() -> None:
    page = (ROOT / 'docs' / 'install.md').read_text()
    for path in re.findall(r'\b(?:requirements|tests|tools)/[\w/]+(?:\.\w+)?', page):
        assert (ROOT / path).exists(), path
    assert re.search(r'uv==[\d.]+', page)[0] in (ROOT / 'tools' / 'make_env.sh').read_text()
    targets = re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE)
    assert set(re.findall(r'\bmake ([\w-]+)', page)) <= set(targets)
    table = re.search(r'## What was tried together\n(.+?)\n## ', page, re.DOTALL)[1]
    rows = dict(re.findall(r'^\| ([\w, ]+) \| (.+) \|$', table, re.MULTILINE))
    for column, stack in enumerate(('onedl', 'openmmlab')):
        pins = (ROOT / 'requirements' / f'{stack}.txt').read_text()
        for packages in ('torch, torchvision', 'mmengine', 'mmcv', 'mmdet', 'mmsegmentation'):
            cell = rows[packages].split(' | ')[column].removeprefix('onedl ')
            for package, version in zip(packages.split(', '), cell.split(', '), strict=True):
                name = {'mmdet': 'mm(?:det|detection)'}.get(package, package)
                assert re.search(rf'^(?:onedl-)?{name}=={re.escape(version)}$', pins, re.MULTILINE), package


#: Where others' messages of the troubleshooting page come from: what is installed, except for what cannot be here.
SOURCES = [
    *(path for folder in ('cvt_dense', 'tools') for path in (ROOT / folder).rglob('*.py')),
    ROOT / 'tools' / 'make_env.sh',
    *(
        Path(importlib.util.find_spec(package).origin).parent / file
        for package, file in (
            ('mmengine', 'registry/build_functions.py'),
            ('mmengine', 'runner/checkpoint.py'),
            ('mmdet', 'evaluation/metrics/coco_metric.py'),
            ('torch', 'serialization.py'),
            ('torch', 'nn/functional.py'),
            ('torch', 'nn/modules/batchnorm.py'),
        )
    ),
]
NOT_HERE = re.compile(
    r'terminated program|No module named|undefined symbol|torchvision::nms|^MMCV==|sctypes|libGL|CUDA out of|Lowering'
    r'|mmseg::'
)


def test_messages_of_the_troubleshooting_page_are_ones_that_appear() -> None:
    page = (ROOT / 'docs/troubleshooting.md').read_text()
    # As the code has them: without the quotes and placeholders of formatted strings.
    text = re.sub(r"""\s+f?['"]|['"]\s+""", ' ', '\n'.join(path.read_text() for path in SOURCES))
    text = re.sub(r'\{[^{}]*\}', '…', re.sub(r'\s+', ' ', text)).replace('… ', '…').replace(' …', '…')
    firsts = [row.split('|')[1] for row in page.splitlines() if row.startswith('| `')]
    messages = [message for first in firsts for message in re.findall('`([^`]+)`', first)[:1]]
    assert len(messages) > 20
    for message in messages:
        if not NOT_HERE.search(message):
            parts = [
                part.strip(" :';,") for part in re.split('…|CvT|mmdet::model|nan|Killed|mmsegmentation|2.6', message)
            ]
            assert all(part in text for part in parts if len(part) > 3), message


def test_badges_say_what_is_tried() -> None:
    badges = dict(re.findall(r'!\[([^:\]]+?):? ([^\]]+)\]\(https://img', (ROOT / 'README.md').read_text()))
    badges = {' '.join(badge) for badge in badges.items()}
    oldest, newest = (
        re.search(r'^torch==(\d+\.\d+)', (ROOT / 'requirements' / file).read_text(), re.MULTILINE)[1]
        for file in ('openmmlab.txt', 'onedl.txt')
    )
    tried = re.search(r'## What was tried together\n\nPython (\S+),', (ROOT / 'docs/install.md').read_text())[1]
    assert (ROOT / 'LICENSE').read_text().split()[:4] == ['Apache', 'License', 'Version', '2.0,']
    assert badges == {
        'Licence Apache 2.0',
        f'Python {tried}',
        f'torch {oldest} to {newest}',
        'OneDL and upstream OpenMMLab',
    }
