from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import make_shapes
import numpy as np
import pytest
import torch
import visualize
from families import FAMILIES
from golden import weights
from matplotlib.figure import Figure
from paths import ROOT
from PIL import Image

from cvt_dense import CheckpointError, CvT, cli
from cvt_dense.analysis.inspection import Lattice, inspect_stages
from cvt_dense.errors import UserError

TINY = ROOT / 'configs/maskrcnn_cvttiny_fpn_shapes.py'


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """An image of 90x61 pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (61, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'photo.png')
    return tmp_path / 'photo.png'


def draw(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, 'argv', ['visualize.py', *map(str, arguments)])
    visualize.main()


def config(folder: Path, text: str) -> Path:
    """A config like the demo's, with changes."""
    (folder / 'config.py').write_text(f"_base_ = '{TINY}'\n{text}\n")
    return folder / 'config.py'


def test_a_configs_own_checkpoint_is_drawn_and_held_against_random_weights(
    photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = photo.parent / 'out'
    draw(monkeypatch, photo, '--config', TINY, '--out', out, '--heads')
    names = {'features', 'attention', 'heads0', 'heads1', 'heads2'}
    assert {path.name for path in out.iterdir()} == {f'photo_{name}.png' for name in names}
    for path in out.iterdir():
        with Image.open(path) as picture:
            assert np.asarray(picture).std() > 10
    printed = capsys.readouterr()
    assert 'loaded 155 tensors of the trunk from cvt-tiny-shapes (official format)' in printed.out
    assert printed.err == ''
    rows = re.findall(
        r'^([012]) +(\S+) \((\S+)\) +(\S+) \((\S+)\) of (\d+) +(\S+) \((\S+)\) of (\d+)$', printed.out, re.M
    )
    assert [(int(row[0]), int(row[5])) for row in rows] == [(0, 32), (1, 64), (2, 128)]
    for row, number in zip(rows, (8 * 11, 4 * 6, 2 * 3 + 1)):
        trained, untrained, of = map(float, row[6:])
        assert of == number
        assert trained < 0.99 * number
        assert untrained == pytest.approx(number, rel=2e-3)


@pytest.mark.parametrize('arch', ['cvt-13', 'cmt-ti'])
def test_random_weights_are_announced(
    arch: str, photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(monkeypatch, photo, '--arch', arch, '--out', photo.parent / 'out')
    printed = capsys.readouterr()
    assert printed.err == 'RANDOM WEIGHTS: no --checkpoint was given, so these pictures show no training\n'
    assert 'brackets' not in printed.out
    assert {path.name for path in (photo.parent / 'out').iterdir()} == {'photo_features.png', 'photo_attention.png'}
    without = config(photo.parent, 'model = dict(backbone=dict(init_cfg=None))')
    draw(monkeypatch, photo, '--config', without, '--out', photo.parent / 'out')
    assert capsys.readouterr().err.startswith('RANDOM WEIGHTS')


def test_a_config_of_cmt_is_drawn(
    photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = dict(type='CMT', arch=FAMILIES['cmt'].tiny, window_size=[4, 2, None, None], _delete_=True)
    path = config(photo.parent, f'model = dict(backbone={backbone!r}, neck=dict(in_channels=[16, 32, 64, 128]))')
    out = photo.parent / 'out'
    draw(monkeypatch, photo, '--config', path, '--out', out, '--heads')
    names = ['features', 'attention', *(f'heads{stage}' for stage in range(4))]
    assert sorted(file.name for file in out.iterdir()) == sorted(f'photo_{name}.png' for name in names)
    assert re.search(r'^3 .* of 128 ', capsys.readouterr().out, re.M)


def test_weights_come_from_a_trained_detector_from_load_from_or_from_init_cfg(tmp_path: Path) -> None:
    arch = dict(embed_dims=[32, 64, 128], num_heads=[1, 2, 4], depths=[1, 1, 2])
    trained = weights(CvT(arch))
    path = tmp_path / 'epoch_1.pth'
    torch.save(dict(meta={}, state_dict={f'backbone.{key}': tensor for key, tensor in trained.items()}), path)
    loads_from = config(tmp_path, f"load_from = '{path}'")
    for network in (
        visualize.build_network(None, str(TINY), str(path)),
        visualize.build_network(None, str(loads_from), None),
    ):
        assert network.report.checkpoint == str(path)
        assert not network.trunk.training
        assert all(torch.equal(tensor, trained[key]) for key, tensor in network.trunk.state_dict().items())
    twin = visualize.random_twin(network.trunk).state_dict()
    assert not torch.equal(twin['stage0.patch_embed.proj.weight'], trained['stage0.patch_embed.proj.weight'])
    start = "init_cfg=[dict(type='Pretrained', checkpoint='cvt-tiny-shapes')]"
    listed = config(tmp_path, f'model = dict(backbone=dict({start}))')
    assert visualize.build_network(None, str(listed), None).report.checkpoint == 'cvt-tiny-shapes'
    with pytest.raises(CheckpointError, match='does not fit the model'):
        visualize.build_network('cvt-13', None, str(path))


@pytest.mark.parametrize(
    'settings', ['', 'bgr_to_rgb=False', 'bgr_to_rgb=False, rgb_to_bgr=True', 'mean=[1, 2, 3], std=[4, 5, 6]']
)
def test_images_are_prepared_as_the_configs_preprocessor_does(settings: str, photo: Path) -> None:
    from mmdet.models import DetDataPreprocessor

    network = visualize.build_network(
        None, str(config(photo.parent, f'model = dict(data_preprocessor=dict({settings}))')), None
    )
    pixels = visualize.read_image(photo, None, 640, 16).pixels
    mean, std = network.mean, network.std
    swaps = dict(bgr_to_rgb='bgr_to_rgb=False' not in settings, rgb_to_bgr='rgb_to_bgr=True' in settings)
    preprocessor = DetDataPreprocessor(mean=mean, std=std, **swaps)
    as_read_by_mmcv = torch.from_numpy(pixels[..., ::-1].copy()).permute(2, 0, 1)
    expected = preprocessor(dict(inputs=[as_read_by_mmcv], data_samples=None))['inputs']
    torch.testing.assert_close(network.prepare(pixels), expected)
    assert ('mean' in settings) == (list(mean) == [1, 2, 3])


def test_a_variant_by_name_takes_images_as_timm_prepares_them(photo: Path) -> None:
    import timm
    from timm.data import create_transform, resolve_data_config

    pixels = visualize.read_image(photo, None, 640, 16).pixels
    model = timm.create_model('cvt_13', num_classes=0)
    normalise = create_transform(**resolve_data_config(model=model)).transforms[-2:]
    image = Image.fromarray(pixels)
    for step in normalise:
        image = step(image)
    torch.testing.assert_close(visualize.build_network('cvt-13', None, None).prepare(pixels)[0], image)


def test_a_large_image_is_reduced_and_the_point_with_it(tmp_path: Path) -> None:
    pixels = np.zeros((300, 500, 3), np.uint8)
    pixels[200:220, 400:420] = 255
    path = tmp_path / 'large.png'
    Image.fromarray(pixels).save(path)
    photo = visualize.read_image(path, (410, 210), 100, 16)
    x, y = photo.place
    assert photo.pixels.shape == (60, 100, 3)
    assert (photo.pixels[y, x] == 255).all()
    assert photo.query == (410, 210)
    assert photo.description == '500x300 pixels reduced to 100x60'
    assert visualize.read_image(path, (499, 299), 100, 16).place == (99, 59)
    whole = visualize.read_image(path, None, 640, 16)
    assert whole.place == whole.query == (250, 150)
    assert whole.description == '500x300 pixels'


def test_a_photograph_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned by 90 degrees
    Image.new('RGB', (80, 40)).save(tmp_path / 'photo.jpg', exif=exif)
    photo = visualize.read_image(tmp_path / 'photo.jpg', (39, 79), 40, 16)
    assert photo.pixels.shape == (40, 20, 3)
    assert (photo.size, photo.query, photo.place) == ((40, 80), (39, 79), (19, 39))
    with pytest.raises(UserError, match=r'has 40x80 pixels, turned upright by its EXIF orientation$'):
        visualize.read_image(tmp_path / 'photo.jpg', (79, 39), 40, 16)


def test_the_point_is_named_by_its_pixel_of_the_file_wherever_it_is_named(
    photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = []
    monkeypatch.setattr(Figure, 'savefig', lambda figure, path: figures.append(figure) or Path(path).touch())
    arguments = [photo, '--config', TINY, '--heads', '--size', 45, '--out', photo.parent / 'out']
    for point in ((83, 7), None):
        figures.clear()
        draw(monkeypatch, *arguments, *(('--point', *point) if point else ()))
        x, y = point or (45, 30)
        assert f'90x61 pixels reduced to 45x31, query at {x} {y}' in capsys.readouterr().out
        assert len(figures) == 5
        for figure in figures:
            assert f'photo.png, query at {x} {y}, cvt-tiny-shapes' in figure.get_suptitle().replace('\n', ' ')
        for figure in figures[:2]:
            assert figure.axes[0].get_title() == f'90×61, query at {x} {y}'


@pytest.mark.parametrize('columns', [1, 4])
def test_titles_end_within_the_picture(columns: int) -> None:
    title = 'a_photograph_with_a_long_name_from_a_camera.jpg, query at 1200 3400, some-checkpoint.pth, stage 0'
    figure = visualize._figure(1, columns, np.zeros((40, 60, 3), np.uint8), title)
    figure.subplots(1, columns)
    figure.draw_without_rendering()
    extent = figure._suptitle.get_window_extent()
    assert extent.x0 >= 0
    assert extent.x1 <= figure.bbox.x1
    assert figure.get_suptitle().replace('\n', ' ').split() == title.split() or columns == 1


def grey(width: int, height: int, place: tuple[int, int], shade: int = 100) -> visualize.Photo:
    """A grey image, not reduced."""
    pixels = np.full((height, width, 3), shade, np.uint8)
    return visualize.Photo(Path('grey.png'), (width, height), place, pixels, place)


def pictures_of(figure: Figure) -> list[np.ndarray]:
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]


def test_the_key_with_the_most_weight_is_the_brightest_place() -> None:
    network = visualize.build_network(None, str(TINY), None)
    views = inspect_stages(network.trunk.stages, torch.randn(1, 3, 96, 128), (64, 48))
    _, *panels = pictures_of(visualize.draw_attention(grey(128, 96, (64, 48)), views, ''))
    rows = [row for view in views for row in view.attention]
    assert len(panels) == len(rows) == 4
    for panel, row in zip(panels, rows):
        key = divmod(int(row.weights.mean(0).argmax()), row.weights.shape[2])
        y, x = (row.lattice.centre + place * row.lattice.stride for place in key)
        assert panel.shape == (96, 128, 3)
        assert panel[y, x].sum() == panel.sum(-1).max()


def test_each_head_has_a_panel() -> None:
    network = visualize.build_network(None, str(TINY), None)
    views = inspect_stages(network.trunk.stages, torch.randn(1, 3, 64, 64), (0, 63))
    figure = visualize.draw_heads(grey(64, 64, (0, 63)), views[2].attention, 2, 'title')
    panels = pictures_of(figure)
    assert len(panels) == 2 * 4
    assert len({panel.tobytes() for panel in panels}) == 8
    assert figure.axes[5].get_title().startswith('block 1, head 1: ')


def test_even_weights_look_even_and_not_bright() -> None:
    axes = Figure().subplots()
    even = torch.full((8, 8), 1 / 65)
    visualize._show_weights(axes, grey(32, 32, (0, 0), shade=0), 'name', even, torch.tensor(1 / 65), Lattice(4, 1))
    (picture,) = pictures_of(axes.figure)
    assert np.ptp(picture, axis=(0, 1)).max() < 1e-5
    assert 0 < picture.mean() < 0.25
    assert axes.get_title() == 'name: 1×, cls 1.5 %'


def test_what_is_outside_of_the_window_stays_grey(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    windowed = config(photo.parent, 'model = dict(backbone=dict(window_size=[4, 2, None]))')
    network = visualize.build_network(None, str(windowed), None)
    image = visualize.read_image(photo, None, 640, 16)
    views = inspect_stages(network.trunk.stages, network.prepare(image.pixels), image.place)
    _, first, *_, last = pictures_of(visualize.draw_attention(image, views, ''))
    is_grey = np.ptp(first, axis=2) < 1e-9
    for place, middle in zip(np.nonzero(~is_grey), reversed(image.place)):
        assert np.ptp(place) + 1 == 2 * 8  # two keys, at stride 8
        assert place.min() - 8 <= middle <= place.max() + 8  # the query may be the last of its window, beyond its keys
    assert not (np.ptp(last, axis=2) < 1e-9).any()
    assert ' of 4 ' in visualize.table(views, None).replace('\n', ' ')


@pytest.fixture
def broken(photo: Path) -> dict[str, Path]:
    """Files that are no images, or none that CvT takes, and configs of other networks."""
    folder = photo.parent
    (folder / 'text.jpg').write_text('no image')
    (folder / 'cut.png').write_bytes(photo.read_bytes()[:5000])
    Image.new('RGB', (15, 40)).save(folder / 'small.png')
    Image.new('RGB', (1000, 20)).save(folder / 'flat.png')
    (folder / 'other').mkdir()
    Image.new('RGB', (40, 40)).save(folder / 'other' / 'photo.png')
    for name, text in (
        ('resnet', "model = dict(backbone=dict(_delete_=True, type='ResNet', depth=18))"),
        ('depth', 'model = dict(backbone=dict(in_channels=4))'),
        ('wrong', 'model = dict(backbone=dict(window_size=0))'),
    ):
        config(folder, text).rename(folder / f'{name}.py')
    return {path.stem if path.parent == folder else 'same': path for path in folder.rglob('*.*')}


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (
            ['photo', '--arch', 'cvt-99'],
            r"unknown arch 'cvt-99'; choose one of cvt-13, cvt-21, cvt-w24, cmt-ti, cmt-xs, cmt-s, cmt-b$",
        ),
        (['photo', '--arch', 'cvt-13', '--point', '90', '0'], 'outside of image .*photo.png, which has 90x61 pixels'),
        (['photo', '--arch', 'cvt-13', '--point', '0', '-1'], '--point 0 -1 lies outside'),
        (['photo', '--arch', 'cvt-13', '--size', '15'], '--size must be at least 16, got 15'),
        (['photo', 'same', '--arch', 'cvt-13'], 'two images are named photo'),
        (['missing.png', '--arch', 'cvt-13'], 'image missing.png cannot be read: .*No such file'),
        (['other', '--arch', 'cvt-13'], 'image .*other cannot be read'),
        (['text', '--arch', 'cvt-13'], 'image .*text.jpg cannot be read: cannot identify'),
        (['cut', '--arch', 'cvt-13'], 'image .*cut.png cannot be read'),
        (['small', '--arch', 'cvt-13'], r'image .*small.png of 15x40 pixels is smaller than 16x16$'),
        (['small', '--arch', 'cmt-xs'], r'image .*small.png of 15x40 pixels is smaller than 31x31$'),
        (['flat', '--arch', 'cvt-13'], r'is smaller than 16x16 once it is reduced to 640x13$'),
        (['photo', '--arch', 'cvt-13', '--checkpoint', 'nope'], "checkpoint 'nope' is neither a file nor a known name"),
        (['photo', '--arch', 'cvt-13', '--checkpoint', 'cvt-tiny-shapes'], 'does not fit the model'),
        (['photo', '--config', 'nope.py'], 'config nope.py does not exist'),
        (['photo', '--config', 'resnet'], 'has a backbone of type ResNet, and this tool inspects CvT and CMT'),
        (['photo', '--config', 'depth'], 'takes 4 channels, and pictures have 3'),
        (['photo', '--config', 'wrong'], 'cannot be built: window_size must hold'),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str],
    message: str,
    broken: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    paths = broken | {'other': tmp_path / 'other'}
    command_line: list[Any] = ['visualize.py', *(str(paths.get(word, word)) for word in arguments)]
    monkeypatch.setattr(sys, 'argv', [*command_line, '--out', str(tmp_path / 'out')])
    with pytest.raises(SystemExit) as exit_:
        cli.run(visualize.main)
    error = capsys.readouterr().err
    assert exit_.value.code == 2
    assert error.startswith('error: ')
    assert error.count('\n') == 1
    assert re.search(message, error.strip())
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(('package', 'option'), [('matplotlib', '--arch'), ('mmengine', '--config')])
def test_a_missing_package_is_named(package: str, option: str, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visualize, 'find_spec', lambda name: None if name == package else object())
    with pytest.raises(UserError, match=f'pip install {package}'):
        draw(monkeypatch, photo, option, 'cvt-13' if option == '--arch' else TINY)


def test_what_the_documentation_shows_works(
    photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / 'docs/inspection.md').read_text()
    commands = [shlex.split(line) for line in re.findall(r'^python (tools/.+)$', text.replace('\\\n', ''), re.M)]
    assert [tool for tool, *_ in commands] == ['tools/make_shapes.py', *['tools/visualize.py'] * 3]
    monkeypatch.chdir(photo.parent)
    (photo.parent / 'configs').symlink_to(ROOT / 'configs')
    photo.rename('image.jpg')
    published = weights(CvT('cvt-13', out_norm=False))
    torch.save(published, 'CvT-13-384x384-IN-22k.pth')
    monkeypatch.setenv('CVT_DENSE_CHECKPOINTS', str(photo.parent))
    trained = Path(commands[3][commands[3].index('--checkpoint') + 1])
    trained.parent.mkdir(parents=True)
    torch.save({f'backbone.{key}': tensor for key, tensor in published.items()}, trained)
    monkeypatch.setattr(sys, 'argv', commands[0])
    make_shapes.main()
    for _, *arguments in commands[1:]:
        capsys.readouterr()
        draw(monkeypatch, *arguments)
        printed = capsys.readouterr().out
        source = 'cvt-tiny-shapes' if '--point' in arguments else arguments[arguments.index('--checkpoint') + 1]
        assert re.match(rf'loaded \d+ tensors of the trunk from {source} ', printed)
    assert len(list(Path('work_dirs/visualize').iterdir())) == 2 + 2 + 3  # those of image.jpg were written twice

    (snippet,) = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    exec(snippet, {})
    assert capsys.readouterr().out.strip() == re.findall(r'^# (.+)$', snippet, re.M)[-1]
