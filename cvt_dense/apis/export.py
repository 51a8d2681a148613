"""Models as files that run elsewhere: ONNX, torch.export and TorchScript, for any number and size of images.

What is written is read again and compared with the model, at sizes that it was not exported at, before it gets its
name.
"""

from __future__ import annotations

import copy
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim

from ..errors import UserError, reason

#: Smallest side of images that an exported model is for, in pixels: torch.export treats a side of one token specially.
MIN_SIZE = 128
EXAMPLE_SHAPE = (2, 161, 225)  # images, height, width
#: What an exported model is tried on; the last is larger than the largest window, 96 tokens of 4 pixels.
CHECKED_SHAPES = ((1, 128, 131), (3, 226, 160), (1, 143, 437))
#: Largest difference from the model, relative to an output's largest value. Plain GELU would be off by 3e-3.
TOLERANCE = 1e-4
OPSET = 20

Function = Callable[[torch.Tensor], Sequence[torch.Tensor]]


class Exportable(nn.Module):
    """A backbone and what follows it, as a function of images alone.

    Args:
        backbone: ``(N, C, H, W)`` images to maps.
        neck: Maps to maps.
        head: Maps to ``(N, classes, h, w)`` logits.
        mean: Of the images, per channel; taken off first.
        std: Likewise; divided by next.
        align_corners: How logits are enlarged to the size of the images.
    """

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module | None = None,
        head: nn.Module | None = None,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.backbone, self.neck, self.head = backbone, neck, head
        self.align_corners = align_corners
        self.register_buffer('mean', torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer('std', torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Compute what ``(N, C, H, W)`` float images give: the maps, or the logits ``(N, classes, H, W)`` alone."""
        outputs = self.backbone((images - self.mean) / self.std)
        if self.neck is not None:
            outputs = self.neck(outputs)
        if self.head is None:
            return tuple(outputs)
        size = images.shape[2:]
        return (F.interpolate(self.head(outputs), size, mode='bilinear', align_corners=self.align_corners),)


class AdaptiveAvgPoolByProducts(nn.Module):
    """``nn.AdaptiveAvgPool2d`` in operators that ONNX has, for any size: a matrix that averages, on either axis."""

    def __init__(self, output_size: int | tuple[int, int]) -> None:
        super().__init__()
        self.output_size = (output_size, output_size) if isinstance(output_size, int) else output_size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Average an ``(N, C, H, W)`` map to ``(N, C, *output_size)``."""
        x = _pool(x, self.output_size[1])
        return _pool(x.transpose(2, 3), self.output_size[0]).transpose(2, 3)


def _pool(x: torch.Tensor, bins: int) -> torch.Tensor:
    if bins == 1:  # by a product, torch.export could not prove that it is the same for all lengths
        return x.mean(-1, keepdim=True)
    return F.linear(x, averaging_matrix(bins, x.shape[-1], x))


def averaging_matrix(bins: int, length: int, like: torch.Tensor) -> torch.Tensor:
    """``(bins, length)`` weights of an adaptive average pool; bins overlap where ``length`` is no multiple of them."""
    index, place = torch.arange(bins, device=like.device)[:, None], torch.arange(length, device=like.device)
    start, end = index * length // bins, ((index + 1) * length + bins - 1) // bins
    return ((place >= start) & (place < end)).to(like.dtype) / (end - start)


def export(model: Exportable, path: Path) -> None:
    """Write a model in the format that the ending names: ``.onnx``, ``.pt2`` (torch.export) or ``.pt`` (TorchScript).

    Args:
        model: In eval mode, on the CPU.
        path: Replaced, if the new file has turned out right; as it was otherwise.

    Raises:
        UserError: If the format is unknown, packages are missing, the model cannot be exported, or what was exported
            computes something else.
    """
    if path.suffix not in FORMATS:
        raise UserError(f'--out {path}: the ending says the format, and is one of {", ".join(FORMATS)}')
    if not path.parent.is_dir():
        raise UserError(f'--out {path}: folder {path.parent} does not exist')
    write, read, packages = FORMATS[path.suffix]
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise UserError(f'a {path.suffix} file needs packages that are not installed: pip install {" ".join(missing)}')
    # Under its own name in a folder of its own: large ONNX models have a second file, which the first one names.
    with tempfile.TemporaryDirectory(prefix=f'.{path.stem}-', dir=path.parent) as folder:
        draft = Path(folder) / path.name
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter('ignore')  # of what goes on inside of the exporters
                write(exportable_copy(model), draft)
        except Exception as error:  # exporters raise all kinds
            raise UserError(
                f'torch {torch.__version__} cannot export this to {path.suffix}: {type(error).__name__}: '
                f'{reason(error)}'
            ) from error
        check(model, read(draft))
        for file in sorted(Path(folder).iterdir(), reverse=True):  # the one that names the other comes last
            os.replace(file, path.parent / file.name)


def exportable_copy(model: nn.Module) -> nn.Module:
    """A copy of a model without what the formats lack."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d):
                setattr(module, name, AdaptiveAvgPoolByProducts(child.output_size))
    return model


def check(model: nn.Module, exported: Function) -> None:
    """Compare what was exported with the model, on noise of several sizes.

    Raises:
        UserError: If it computes something else, or fails.
    """
    generator = torch.Generator().manual_seed(0)
    for count, height, width in CHECKED_SHAPES:
        images = torch.rand(count, _channels(model), height, width, generator=generator) * 255
        with torch.no_grad():
            expected = model(images)
        where = f'the exported model is not the one of PyTorch on {count} images of {height}x{width}, and was not kept'
        try:
            outputs = exported(images)
        except Exception as error:  # each runtime raises its own
            raise UserError(f'{where}: {type(error).__name__}: {reason(error)}') from error
        for theirs, ours in zip(outputs, expected, strict=True):
            if theirs.shape != ours.shape:
                raise UserError(f'{where}: shape {tuple(theirs.shape)} instead of {tuple(ours.shape)}')
            difference = ((theirs - ours).abs().max() / ours.abs().max()).item()
            if not difference <= TOLERANCE:
                raise UserError(f"{where}: it differs by {difference:.1g} of the output's largest value")


def _channels(model: nn.Module) -> int:
    return next(module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d))


def _example(model: nn.Module) -> torch.Tensor:
    count, height, width = EXAMPLE_SHAPE
    return torch.zeros(count, _channels(model), height, width)


def _dynamic_shapes() -> tuple[dict[int, Any]]:
    return ({0: Dim('batch', min=1), 2: Dim('height', min=MIN_SIZE), 3: Dim('width', min=MIN_SIZE)},)


def _to_program(model: nn.Module) -> torch.export.ExportedProgram:
    return torch.export.export(model, (_example(model),), dynamic_shapes=_dynamic_shapes(), strict=False)


def _write_onnx(model: nn.Module, path: Path) -> None:
    names = ['logits'] if model.head is not None else [f'map{i}' for i in range(len(model(_example(model))))]
    program = torch.onnx.export(
        _to_program(model),
        dynamo=True,
        opset_version=OPSET,
        input_names=['images'],
        output_names=names,
        dynamic_shapes=_dynamic_shapes(),
        verbose=False,
    )
    program.save(path)


def _read_onnx(path: Path) -> Function:
    import onnxruntime  # which the other formats can do without

    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    return lambda images: [torch.from_numpy(x) for x in session.run(None, {'images': images.numpy()})]


def _write_program(model: nn.Module, path: Path) -> None:
    torch.export.save(_to_program(model), path)


def _read_program(path: Path) -> Function:
    return torch.export.load(path).module()


def _write_torchscript(model: nn.Module, path: Path) -> None:
    torch.jit.trace(model, _example(model), check_trace=False).save(path)


#: By the file's ending: how to write it, how to read it again, and the packages that takes.
FORMATS: dict[str, tuple[Callable[[nn.Module, Path], None], Callable[[Path], Function], tuple[str, ...]]] = {
    '.onnx': (_write_onnx, _read_onnx, ('onnx', 'onnxscript', 'onnxruntime')),
    '.pt2': (_write_program, _read_program, ()),
    '.pt': (_write_torchscript, torch.jit.load, ()),
}
