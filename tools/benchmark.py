"""Measure backbones side by side: time, memory and operations, forward and in a training step, over image sizes.

Times are taken in turns, so that a machine that gets slower on the way slows all alike: compare ratios of one run.
Peak memory is what a pass adds to a process of its own. Writes results.json and results.png into --out.

With --runtimes, models are exported too, and run by ONNX Runtime and OpenVINO beside PyTorch: forward, on a CPU.

Example:
    python tools/benchmark.py
    python tools/benchmark.py --models cvt-13 --runtimes pytorch onnxruntime openvino --modes forward --threads 2
    python tools/benchmark.py --models cvt-13 cvt-13-windowed swin-t --sizes 512x512 800x1344 --modes forward
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from cvt_dense import cli

cli.need('matplotlib')  # before the imports that would end in a stack trace

import timm
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

from cvt_dense import CMTTrunk, CvTTrunk, __version__
from cvt_dense.analysis.flops import count_macs
from cvt_dense.errors import UserError
from cvt_dense.models.cmt.layers import Attention

MODES = ('forward', 'training')
#: Smallest side of images for exported models, in pixels.
SMALLEST_EXPORTED = 128
#: What runs a model, beside PyTorch: the ending of the file for it, and what it computes in.
RUNTIMES = {
    'onnxruntime': ('.onnx', 'float32'),
    'openvino': ('.xml', 'float32'),
    'openvino-bf16': ('.xml', 'bfloat16'),
}
#: Windows of the grid of 384-pixel pre-training where the map is large, global attention in the last stage.
WINDOWS = ('pretrain', 'pretrain', None)
#: Windows in every stage and a few blocks with global attention, as in ViTDet (arXiv 2203.16527, section 3).
FEW_GLOBAL = ('pretrain', 'pretrain', ['pretrain', 'pretrain', 'pretrain', 'pretrain', None] * 2)
#: Tokens are channels-last by themselves. Inductor's own choice of layouts fails in training with dynamic sizes
#: (torch 2.11: "cannot determine truth value of Relational").
COMPILE_OPTIONS = {'layout_optimization': False}


class HuggingFaceCvT(nn.Module):
    """``CvtModel`` of transformers with the structure of a variant, returning the map of each stage."""

    def __init__(self) -> None:
        from transformers import CvtConfig, CvtModel

        super().__init__()
        self.model = CvtModel(CvtConfig())  # its defaults are CvT-13's

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.model(x, output_hidden_states=True).hidden_states


class Maps(nn.Module):
    """Our trunk without the cls token: the maps alone, as the other backbones return them."""

    def __init__(
        self, arch: Any, family: type[CvTTrunk | CMTTrunk] = CvTTrunk, with_bias: bool = True, **settings: Any
    ) -> None:
        super().__init__()
        self.trunk = family(arch, **settings)
        for module in self.trunk.modules():
            if isinstance(module, Attention):
                module.with_bias = with_bias

    def forward(self, x: Tensor) -> list[Tensor]:
        _, outputs = self.trunk.compute(x, None)
        return [output.maps[0].contiguous() for output in outputs]


@dataclass(frozen=True)
class Candidate:
    """A backbone and how it is run.

    Attributes:
        build: Makes the model; it returns a sequence of maps.
        dtype: Type that is computed in, by autocast; None for float32.
        compiled: Whether it goes through ``torch.compile``, for all sizes at once.
    """

    build: Callable[[], nn.Module]
    dtype: torch.dtype | None = None
    compiled: bool = False


def _timm(name: str, **settings: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, features_only=True, **settings)


CANDIDATES: dict[str, Candidate] = {
    'cvt-13': Candidate(lambda: Maps('cvt-13')),
    'cvt-13-windowed': Candidate(lambda: Maps('cvt-13', window_size=WINDOWS)),
    'cvt-13-few-global': Candidate(lambda: Maps('cvt-13', window_size=FEW_GLOBAL)),
    'cvt-13-fast': Candidate(lambda: Maps('cvt-13', window_size='fast')),
    'cvt-13-compiled': Candidate(lambda: Maps('cvt-13'), compiled=True),
    'cvt-13-bf16': Candidate(lambda: Maps('cvt-13'), dtype=torch.bfloat16),
    'cvt-13-fp16': Candidate(lambda: Maps('cvt-13'), dtype=torch.float16),
    'cvt-13-checkpointed': Candidate(lambda: Maps('cvt-13', with_cp=True)),
    'cvt-21': Candidate(lambda: Maps('cvt-21')),
    'cmt-s': Candidate(lambda: Maps('cmt-s', CMTTrunk)),
    'cmt-s-without-bias': Candidate(lambda: Maps('cmt-s', CMTTrunk, with_bias=False)),
    'cmt-s-windowed': Candidate(lambda: Maps('cmt-s', CMTTrunk, window_size='pretrain')),
    'hf-cvt-13': Candidate(HuggingFaceCvT),
    'swin-t': Candidate(_timm('swin_tiny_patch4_window7_224', strict_img_size=False)),
    'pvtv2-b2': Candidate(_timm('pvt_v2_b2')),
    'convnext-t': Candidate(_timm('convnext_tiny')),
    'resnet-50': Candidate(_timm('resnet50')),
}


class Exported:
    """A candidate in a file, run by its runtime; called as the model is."""

    def __init__(self, path: Path, runtime: str, threads: int) -> None:
        from cvt_dense.apis.runtimes import open_file  # needs OpenCV, which PyTorch's models do without

        self.runtime = open_file(path, 'cpu', RUNTIMES[runtime][1], threads)

    def __call__(self, images: Tensor) -> list[np.ndarray]:
        return list(self.runtime.run(images.numpy()).values())


@dataclass(frozen=True)
class Row:
    """What is measured: a candidate, by PyTorch or by another runtime.

    Attributes:
        file: What the other runtime reads.
    """

    model: str
    runtime: str = 'pytorch'
    file: Path | None = None

    def build(self, mode: str, device: torch.device) -> Callable[[Tensor], Any]:
        """What computes it, ready to run."""
        if self.file is None:
            return build(self.model, mode, device)
        return Exported(self.file, self.runtime, torch.get_num_threads())


@dataclass
class Result:
    """What was measured of one candidate at one size; times in seconds, memory in bytes."""

    model: str
    mode: str
    height: int
    width: int
    batch: int
    times: list[float]
    peak_memory: int
    flops: int
    params: int
    runtime: str = 'pytorch'

    @property
    def label(self) -> str:
        """The model, and what ran it if that was not PyTorch."""
        return self.model if self.runtime == 'pytorch' else f'{self.model} {self.runtime}'

    @property
    def median(self) -> float:
        return statistics.median(self.times)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--models',
        nargs='+',
        metavar='MODEL',
        help=f'of {", ".join(CANDIDATES)} (default: all, less float16 on a CPU, where it is many times slower)',
    )
    parser.add_argument(
        '--sizes', nargs='+', default=['224x224', '512x512', '800x1344'], metavar='HxW', help='in pixels'
    )
    parser.add_argument('--batches', nargs='+', type=int, default=[1], metavar='N', help='images at once')
    parser.add_argument('--modes', nargs='+', choices=MODES, default=list(MODES), help='forward, or training steps')
    parser.add_argument(
        '--runtimes',
        nargs='+',
        choices=['pytorch', *RUNTIMES],
        default=['pytorch'],
        help='what runs the models (default: pytorch); for others than pytorch, the default model is cvt-13',
    )
    parser.add_argument('--threads', type=int, metavar='N', help="of a CPU (default: torch's)")
    parser.add_argument('--repeats', type=int, default=3, help='passes that are timed, after one that is not')
    parser.add_argument(
        '--device', default='cuda' if torch.cuda.is_available() else 'cpu', help='default: a GPU if any'
    )
    parser.add_argument('--out', default='work_dirs/benchmark', help='folder for results.json and results.png')
    parser.add_argument('--memory-of', nargs=6, help=argparse.SUPPRESS)  # the process that measures memory
    return parser.parse_args()


def parse_size(text: str) -> tuple[int, int]:
    """``'800x1344'`` to ``(800, 1344)``.

    Raises:
        UserError: If it is not of that form, or too small for CvT.
    """
    height, _, width = text.partition('x')
    if not (height.isdecimal() and width.isdecimal() and min(int(height), int(width)) >= 32):
        raise UserError(f'--sizes takes HxW with at least 32 pixels each, such as 800x1344, got {text!r}')
    return int(height), int(width)


def build(name: str, mode: str, device: torch.device) -> nn.Module:
    """A candidate's model, ready to run; of the training mode BatchNorm keeps its statistics, as in detectors."""
    torch.manual_seed(0)
    candidate = CANDIDATES[name]
    model = candidate.build().to(device).train(mode == 'training')
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return torch.compile(model, dynamic=True, options=COMPILE_OPTIONS) if candidate.compiled else model


def run_once(name: str, model: Callable[[Tensor], Any], images: Tensor, mode: str) -> None:
    """One pass, waited for: forward without gradients, or forward and backward."""
    dtype = CANDIDATES[name].dtype
    precision: AbstractContextManager = torch.autocast(images.device.type, dtype) if dtype else nullcontext()
    with torch.set_grad_enabled(mode == 'training'):
        with precision:
            maps = model(images)
        if mode == 'training':
            sum(m.float().mean() for m in maps).backward()
            model.zero_grad(set_to_none=True)
    if images.is_cuda:
        torch.cuda.synchronize()


def peak_memory(row: Row, mode: str, size: tuple[int, int], batch: int, device: torch.device) -> int:
    """Bytes that one pass adds at its peak to what the process held before; meant for a process of its own."""
    model = row.build(mode, device)
    small = 64 if row.file is None else SMALLEST_EXPORTED
    run_once(
        row.model, model, torch.randn(batch, 3, small, small, device=device), mode
    )  # libraries load, kernels warm up
    images = torch.randn(batch, 3, *size, device=device)
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run_once(row.model, model, images, mode)
        return torch.cuda.max_memory_allocated() - before
    Path('/proc/self/clear_refs').write_text('5')  # forget the peak so far
    before = _status('VmRSS')
    run_once(row.model, model, images, mode)
    return _status('VmHWM') - before


def _status(field: str) -> int:
    """A size of this process as Linux reports it, in bytes."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f'{field}:'))


def peak_memory_in_process(row: Row, mode: str, size: str, batch: int, device: str) -> int:
    """:func:`peak_memory`, measured in a new process."""
    what = [row.model, row.runtime, str(row.file or ''), mode, size, str(batch)]
    threads = ['--threads', str(torch.get_num_threads())]
    command = [sys.executable, __file__, '--device', device, *threads, '--memory-of', *what]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ['killed, which Linux does when memory runs out'])[-1]
        raise UserError(f'{row.model} at {batch}x{size} failed: {why}')
    return int(done.stdout.splitlines()[-1])


def matmul_rates(device: torch.device, side: int = 2048, repeats: int = 5) -> dict[str, float]:
    """The machine's own rates of float32 matrix products, in FLOP/s, by PyTorch's libraries: the best of some.

    On CPUs, linear layers and attention use the BLAS that torch was built with (MKL in the official packages), and
    convolutions oneDNN, here as one of 1x1 pixels. MKL leaves AVX-512 unused on processors of other makers than Intel.
    """
    a, b = torch.randn(2, side, side, device=device)
    products: dict[str, Callable[[], Tensor]] = {'BLAS': lambda: a @ b}
    if device.type == 'cpu' and torch.backends.mkldnn.is_available():
        image, weights = a.view(1, side, side, 1), b.view(side, side, 1, 1)
        products['oneDNN'] = lambda: nn.functional.conv2d(image, weights)
    best = dict.fromkeys(products, math.inf)
    for _ in range(repeats):
        for name, product in products.items():
            start = time.perf_counter()
            product()
            if device.type == 'cuda':
                torch.cuda.synchronize()
            best[name] = min(best[name], time.perf_counter() - start)
    return {name: 2 * side**3 / seconds for name, seconds in best.items()}


def rows_of(models: list[str], runtimes: list[str], folder: Path, progress: tqdm) -> list[Row]:
    """What is to be measured; models are exported into a folder for other runtimes, and compared with themselves.

    Raises:
        UserError: If one cannot be exported.
    """
    rows = []
    if runtimes != ['pytorch']:
        from cvt_dense.apis.export import Exportable, export  # likewise
    for name in models:
        for runtime in runtimes:
            file = None
            if runtime != 'pytorch':
                file = folder / f'{name}{RUNTIMES[runtime][0]}'
                if not file.exists():
                    progress.set_postfix_str(f'exporting {name}')
                    export(Exportable(build(name, 'forward', torch.device('cpu'))).eval(), file)
            rows.append(Row(name, runtime, file))
    return rows


def measure(
    rows: list[Row],
    mode: str,
    size: str,
    batch: int,
    repeats: int,
    device: torch.device,
    progress: tqdm,
    results: list[Result],
) -> None:
    """Measure all rows at one size, in turns; what does not fit into memory is skipped, and reported.

    Results are added as they come, so that they are there if this is stopped.
    """
    height, width = parse_size(size)
    images = torch.randn(batch, 3, height, width, device=device)
    built: list[tuple[Result, Callable[[Tensor], Any]]] = []
    for row in rows:
        progress.set_postfix_str(f'{mode} {batch}x{size} {row.model}')
        plain = CANDIDATES[row.model].build()
        params = sum(p.numel() for p in plain.parameters())
        flops = 2 * batch * count_macs(plain, height, width)
        try:
            memory = peak_memory_in_process(row, mode, size, batch, device.type)
        except UserError as error:
            progress.write(f'skipped: {error}', file=sys.stderr)
            progress.update(1 + repeats)
            continue
        model = row.build(mode, device)
        run_once(row.model, model, images, mode)
        built.append((Result(row.model, mode, height, width, batch, [], memory, flops, params, row.runtime), model))
        progress.update()
    results += [result for result, _ in built]
    for _ in range(repeats):
        for result, model in built:
            start = time.perf_counter()
            run_once(result.model, model, images, mode)
            result.times.append(time.perf_counter() - start)
            progress.update()


def write_results(results: list[Result], device: torch.device, rates: dict[str, float], out: Path) -> None:
    """Write what was measured, and on what, as results.json: as a whole or not at all."""
    machine = dict(
        device=torch.cuda.get_device_name() if device.type == 'cuda' else platform.processor() or platform.machine(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        timm=timm.__version__,
        cvt_dense=__version__,
        runtimes={name: version(name) for name in ('onnxruntime', 'openvino') if find_spec(name)},
        matmul_flops=max(rates.values()),
        matmul_flops_by=rates,
    )
    with tempfile.TemporaryDirectory(dir=out, prefix='.partial-') as folder:
        partial = Path(folder, 'results.json')
        partial.write_text(json.dumps(dict(machine=machine, results=[asdict(r) for r in results]), indent=1))
        os.replace(partial, out / 'results.json')


def growth_exponent(results: list[Result]) -> float | None:
    """Slope of log time over log pixels; None for fewer than two sizes."""
    points = [(math.log(r.height * r.width), math.log(r.median)) for r in results]
    if len({x for x, _ in points}) < 2:
        return None
    return statistics.linear_regression(*zip(*points)).slope


def table(results: list[Result], rate: float) -> str:
    """The results in words; ratios are to the first model's time and memory at the same size."""
    lines = []
    for mode, height, width, batch in dict.fromkeys((r.mode, r.height, r.width, r.batch) for r in results):
        group = [r for r in results if (r.mode, r.height, r.width, r.batch) == (mode, height, width, batch)]
        first = group[0]
        wide = max(18, *(len(r.label) + 2 for r in group))
        lines += [
            f'\n{mode}, {batch} x {height}x{width}',
            f'{"model":<{wide}}{"seconds":>9}{"spread":>8}{"ratio":>7}{"img/s":>8}{"MB":>8}{"ratio":>7}{"GFLOP":>9}'
            f'{"of peak":>9}{"M params":>10}',
        ]
        for r in group:
            flops = r.flops * (3 if mode == 'training' else 1)  # backward computes about twice what forward does
            lines.append(
                f'{r.label:<{wide}}{r.median:>9.3f}{(max(r.times) - min(r.times)) / r.median:>8.0%}'
                f'{r.median / first.median:>7.2f}{batch / r.median:>8.2f}{r.peak_memory / 1e6:>8.0f}'
                f'{r.peak_memory / first.peak_memory:>7.2f}{flops / 1e9:>9.1f}{flops / r.median / rate:>9.0%}'
                f'{r.params / 1e6:>10.1f}'
            )
    return '\n'.join(lines)


def plot(results: list[Result], out: Path) -> None:
    """Draw time and memory over pixels, on logarithmic axes, a row for each mode."""
    modes = list(dict.fromkeys(r.mode for r in results))
    figure = Figure(figsize=(12, 4.5 * len(modes)), layout='constrained')
    axes = figure.subplots(len(modes), 2, squeeze=False)
    for row, mode in zip(axes, modes):
        for index, name in enumerate(dict.fromkeys(r.label for r in results)):
            style = dict(color=f'C{index % 10}', marker='o', linestyle='-' if name.startswith('cvt') else '--')
            series = sorted((r for r in results if (r.label, r.mode) == (name, mode)), key=lambda r: r.height * r.width)
            pixels = [r.batch * r.height * r.width for r in series]
            row[0].loglog(pixels, [r.median for r in series], label=name, **style)
            row[1].loglog(pixels, [r.peak_memory / 2**20 for r in series], label=name, **style)
        row[0].set(xlabel='pixels', ylabel='seconds', title=f'{mode}: time')
        row[1].set(xlabel='pixels', ylabel='MiB', title=f'{mode}: peak memory')
        for ax in row:
            ax.grid(True, which='both', alpha=0.25)
        row[0].legend(fontsize='small')
    figure.savefig(out, dpi=110)


def main() -> None:
    args = parse_args()
    device = torch.device(args.device)
    if args.threads is not None:
        if args.threads < 1:
            raise UserError('--threads must be at least 1')
        torch.set_num_threads(args.threads)
    if args.memory_of:
        name, runtime, file, mode, size, batch = args.memory_of
        row = Row(name, runtime, Path(file) if file else None)
        print(peak_memory(row, mode, parse_size(size), int(batch), device))
        return
    models = args.models or default_models(args.runtimes, device)
    unknown = [name for name in models if name not in CANDIDATES]
    if unknown:
        raise UserError(f'--models: there is no {unknown[0]!r}; known are {", ".join(CANDIDATES)}')
    if min(args.repeats, *args.batches) < 1:
        raise UserError('--repeats and --batches must be at least 1')
    cases = [(mode, size, batch) for mode in args.modes for size in args.sizes for batch in args.batches]
    for _, size, _ in cases:
        parse_size(size)
    check_runtimes(args, models, device)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    rates = matmul_rates(device)
    results: list[Result] = []
    rows: list[Row] = []
    progress = tqdm(total=len(cases) * len(models) * len(args.runtimes) * (1 + args.repeats), unit='pass')
    stop = None
    with tempfile.TemporaryDirectory() as folder:
        try:
            rows += rows_of(models, args.runtimes, Path(folder), progress)
            for mode, size, batch in cases:
                measure(rows, mode, size, batch, args.repeats, device, progress, results)
                write_results(results, device, rates, out)
        except KeyboardInterrupt as interrupt:
            stop = cli.stop_of(interrupt)
    progress.close()
    results = [result for result in results if result.times]  # the others were only built
    if stop and not results:
        raise cli.Stopped(stop.number, f'{stop} before anything was measured')
    if not results:
        raise UserError('nothing could be measured')
    write_results(results, device, rates, out)
    plot(results, out / 'results.png')
    print(table(results, max(rates.values())))
    for mode in args.modes:
        for name in dict.fromkeys(r.label for r in results):
            series = [r for r in results if (r.label, r.mode, r.batch) == (name, mode, args.batches[0])]
            exponent = growth_exponent(series)
            if exponent is not None:
                print(f'{mode}: time of {name} grows with the {exponent:.2f}th power of the pixels')
    by = ', '.join(f'{rate / 1e9:.0f} by {name}' for name, rate in rates.items())
    print(f'\nGFLOP/s in float32 matrix products: {by}; results and plot in {out}')
    if rates.get('oneDNN', 0) > 1.25 * rates.get('BLAS', math.inf):
        print('BLAS is the slower one: docs/performance.md, "On AMD", may have what makes PyTorch faster here')
    if stop:
        total = len(cases) * len(rows)
        raise cli.Stopped(stop.number, f'{stop} after {len(results)} of {total} rows, which are in {out}')


def default_models(runtimes: list[str], device: torch.device) -> list[str]:
    """All candidates that are not far too slow; of several runtimes CvT-13 alone, whose export takes its time."""
    if runtimes != ['pytorch']:
        return ['cvt-13']
    return [name for name, c in CANDIDATES.items() if device.type != 'cpu' or c.dtype is not torch.float16]


def check_runtimes(args: argparse.Namespace, models: list[str], device: torch.device) -> None:
    """Check that other runtimes than PyTorch can run what they are to run.

    Raises:
        UserError: If they cannot.
    """
    others = [runtime for runtime in args.runtimes if runtime != 'pytorch']
    if not others:
        return
    cli.check_installed('cv2')
    if device.type != 'cpu':
        raise UserError(f'--runtimes {others[0]} is measured on CPUs: --device cpu')
    if args.modes != ['forward']:
        raise UserError(f'--runtimes {others[0]} does not train: --modes forward')
    if any(min(parse_size(size)) < SMALLEST_EXPORTED for size in args.sizes):
        raise UserError(f'--runtimes {others[0]} takes images of at least {SMALLEST_EXPORTED} pixels a side')
    for name in models:
        if CANDIDATES[name].compiled or CANDIDATES[name].dtype:
            raise UserError(f'{name} is how PyTorch runs a model: leave it out, or --runtimes')


if __name__ == '__main__':
    cli.run(main)
