from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import benchmark
import pytest
import small_files
import torch
from benchmark import CANDIDATES, Result
from PIL import Image

from cvt_dense import CvTTrunk
from cvt_dense.apis.export import MIN_SIZE
from cvt_dense.errors import UserError


def result(model: str, side: int, seconds: float, mode: str = 'forward') -> Result:
    return Result(model, mode, side, side, 2, [seconds, 3 * seconds, 2 * seconds], side**2 * 1000, 10**9, 10**6)


def test_sizes_are_height_times_width() -> None:
    assert benchmark.parse_size('800x1344') == (800, 1344)
    for text in ('800', 'x', '800x', '31x64', '-64x64', '64x64x3', '8e2x64', ''):
        with pytest.raises(UserError, match='--sizes takes HxW'):
            benchmark.parse_size(text)


@pytest.mark.parametrize('exponent', [1.0, 1.5, 2.0])
def test_growth_is_the_slope_over_pixels_in_logarithms(exponent: float) -> None:
    results = [result('a', side, (side**2) ** exponent) for side in (100, 200, 400)]
    assert benchmark.growth_exponent(results) == pytest.approx(exponent)
    assert benchmark.growth_exponent(results[:1]) is None


def test_the_table_compares_with_the_first_model_of_each_size() -> None:
    results = [result('ours', 64, 1.0), result('theirs', 64, 4.0), result('ours', 128, 3.0)]
    lines = benchmark.table(results, rate=1e9).splitlines()
    assert [line for line in lines if line.startswith('forward')] == [
        'forward, 2 x 64x64',
        'forward, 2 x 128x128',
    ]
    theirs = next(line for line in lines if line.startswith('theirs')).split()
    # Median, spread over median, ratio, images a second, MB, ratio, GFLOP, share of the peak, parameters.
    assert theirs[1:] == ['8.000', '100%', '4.00', '0.25', '4', '1.00', '1.0', '12%', '1.0']


def test_the_plot_has_a_row_for_each_mode(tmp_path: Path) -> None:
    forward = [result('a', side, side) for side in (64, 128)]
    heights = []
    for results in (forward, [*forward, result('a', 64, 1.0, mode='training')]):
        benchmark.plot(results, tmp_path / 'plot.png')
        with Image.open(tmp_path / 'plot.png') as image:
            heights.append(image.height)
    assert heights[1] == 2 * heights[0]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--models', 'cvt-99'], "there is no 'cvt-99'; known are cvt-13"),
        (['--sizes', '16x16'], '--sizes takes HxW'),
        (['--repeats', '0'], 'must be at least 1'),
        (['--batches', '1', '0'], 'must be at least 1'),
        (['--threads', '0'], '--threads must be at least 1'),
        (['--runtimes', 'onnxruntime', '--device', 'cpu'], '--runtimes onnxruntime does not train: --modes forward'),
        (['--runtimes', 'openvino', '--device', 'cuda'], '--runtimes openvino is measured on CPUs'),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_measured(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, 'argv', ['benchmark.py', '--out', str(tmp_path / 'out'), *arguments])
    with pytest.raises(UserError, match=message):
        benchmark.main()
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('name', [name for name, candidate in CANDIDATES.items() if not candidate.compiled])
def test_every_candidate_gives_maps_of_falling_size_and_trains(name: str) -> None:
    model = benchmark.build(name, 'training', torch.device('cpu'))
    assert not any(module.training for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d))
    maps = model(torch.randn(1, 3, 64, 96))
    sizes = [tuple(m.shape[-2:]) for m in maps]
    assert len(sizes) >= 3
    assert sizes == sorted(sizes, reverse=True)
    benchmark.run_once(name, model, torch.randn(1, 3, 64, 64), 'training')
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.slow
def test_a_run_writes_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    models = ['cvt-13', 'resnet-50']
    arguments = ['--models', *models, '--sizes', '128x128', '192x256', '--modes', 'training', '--repeats', '2']
    monkeypatch.setattr(sys, 'argv', ['benchmark.py', '--out', str(tmp_path), *arguments])
    benchmark.main()
    written = json.loads((tmp_path / 'results.json').read_text())
    assert written['machine']['matmul_flops'] > 1e8
    assert [(r['model'], r['height']) for r in written['results']] == [(m, h) for h in (128, 192) for m in models]
    for r in written['results']:
        assert len(r['times']) == 2
        assert all(math.isfinite(t) and t > 0 for t in r['times'])
        assert 1e5 < r['peak_memory'] < 1e9
    small, large = written['results'][0], written['results'][2]
    assert small['params'] == large['params'] == sum(p.numel() for p in CvTTrunk('cvt-13').parameters())
    assert large['flops'] > 2.9 * small['flops']
    assert (tmp_path / 'results.png').exists()
    assert 'training: time of cvt-13 grows with the' in capsys.readouterr().out


def test_what_fails_is_left_out_and_said_and_the_rest_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails_for_swin(row: benchmark.Row, *arguments: object) -> int:
        if row.model == 'swin-t':
            raise UserError('swin-t at 1x64x64 failed: killed')
        return 10**6

    monkeypatch.setattr(benchmark, 'peak_memory_in_process', fails_for_swin)
    arguments = ['--sizes', '64x64', '--modes', 'forward', '--repeats', '1', '--out', str(tmp_path), '--models']
    monkeypatch.setattr(sys, 'argv', ['benchmark.py', *arguments, 'swin-t', 'resnet-50'])
    benchmark.main()
    assert [r['model'] for r in json.loads((tmp_path / 'results.json').read_text())['results']] == ['resnet-50']
    assert 'skipped: swin-t at 1x64x64 failed: killed' in capsys.readouterr().err
    monkeypatch.setattr(sys, 'argv', ['benchmark.py', *arguments, 'swin-t'])
    with pytest.raises(UserError, match='nothing could be measured'):
        benchmark.main()


def test_a_model_is_run_by_other_runtimes_beside_pytorch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its export is as tests/tools/test_export.py has it, and takes long; here a file stands for it."""

    def small(model: torch.nn.Module, path: Path) -> None:
        small_files.write(small_files.SEGMENTOR, path, None)

    monkeypatch.setattr('cvt_dense.apis.export.export', small)
    assert benchmark.SMALLEST_EXPORTED == MIN_SIZE
    arguments = ['--runtimes', 'pytorch', 'onnxruntime', '--sizes', '128x160', '--modes', 'forward', '--threads', '1']
    monkeypatch.setattr(
        sys, 'argv', ['benchmark.py', *arguments, '--repeats', '2', '--device', 'cpu', '--out', str(tmp_path)]
    )
    before = torch.get_num_threads()
    benchmark.main()
    torch.set_num_threads(before)
    written = json.loads((tmp_path / 'results.json').read_text())
    assert [(r['model'], r['runtime']) for r in written['results']] == [
        ('cvt-13', 'pytorch'),
        ('cvt-13', 'onnxruntime'),
    ]
    assert all(len(r['times']) == 2 and r['peak_memory'] >= 0 for r in written['results'])
    machine = written['machine']
    assert machine['matmul_flops'] == max(machine['matmul_flops_by'].values()) > 1e8
    assert 'onnxruntime' in machine['runtimes']
    out = capsys.readouterr().out
    assert 'cvt-13 onnxruntime' in out
    assert 'GFLOP/s in float32 matrix products: ' in out
