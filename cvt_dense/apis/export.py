"""Models as files that run elsewhere: ONNX, OpenVINO, torch.export and TorchScript, for any number and size of images.

What is written is read again and compared with the model, at sizes that it was not exported at, before it gets its
name.
"""

from __future__ import annotations

import copy
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim

from ..errors import UserError, reason
from .metadata import KEY, Metadata
from .runtimes import open_file

#: Smallest side of images that an exported model is for, in pixels: torch.export treats a side of one token specially.
MIN_SIZE = 128
EXAMPLE_SHAPE = (2, 161, 225)  # images, height, width
#: What an exported model is tried on; the last is larger than the largest window, 96 tokens of 4 pixels.
CHECKED_SHAPES = ((1, 128, 131), (3, 226, 160), (1, 143, 437))
#: Largest difference from the model, relative to an output's largest value. Plain GELU would be off by 3e-3.
TOLERANCE = 1e-4
#: The opset of ONNX that all runtimes have; attention is products and a softmax in it, with the matrix in memory.
OPSET = 20
#: The first with an operator for attention, of which runtimes need not keep the matrix.
ATTENTION_OPSET = 23

Function = Callable[[torch.Tensor], Sequence[torch.Tensor]]
Write = Callable[[nn.Module, Path, Metadata | None, int | None], None]
#: How to write a format, how to read it again, and the packages that takes.
Format = tuple[Write, Callable[[Path], Callable[..., Any]], tuple[str, ...]]


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


def export(
    model: nn.Module,
    path: Path,
    metadata: Metadata | None = None,
    opset: int | None = None,
    formats: Mapping[str, Format] | None = None,
    compare: Callable[[nn.Module, Any], None] | None = None,
) -> None:
    """Write a model in the format that the ending names.

    That is ``.onnx``, ``.xml`` (OpenVINO, with its weights in a ``.bin`` file beside it), ``.pt2`` (torch.export) or
    ``.pt`` (TorchScript).

    Args:
        model: In eval mode, on the CPU: an :class:`Exportable`, or one that comes with its own formats.
        path: Replaced, if the new file has turned out right; as it was otherwise.
        metadata: What ``.onnx`` and ``.xml`` files are to say of themselves.
        opset: Of ``.onnx`` files; by default the best that the installed ONNX Runtime has, see :func:`best_opset`.
        formats: By the file's ending, as FORMATS, which is the default.
        compare: Raises UserError if what was read is not the model; :func:`check` by default.

    Raises:
        UserError: If the format is unknown, packages are missing, the model cannot be exported, or what was exported
            computes something else.
    """
    formats, compare = formats or FORMATS, compare or check
    if path.suffix not in formats:
        raise UserError(f'--out {path}: the ending says the format, and is one of {", ".join(formats)}')
    if not path.parent.is_dir():
        raise UserError(f'--out {path}: folder {path.parent} does not exist')
    write, read, packages = formats[path.suffix]
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise UserError(f'a {path.suffix} file needs packages that are not installed: pip install {" ".join(missing)}')
    # Under its own name in a folder of its own: large ONNX models have a second file, which the first one names.
    with tempfile.TemporaryDirectory(prefix=f'.{path.stem}-', dir=path.parent) as folder:
        draft = Path(folder) / path.name
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter('ignore')  # of what goes on inside of the exporters
                write(exportable_copy(model), draft, metadata, opset)
        except Exception as error:  # exporters raise all kinds
            raise UserError(
                f'torch {torch.__version__} cannot export this to {path.suffix}: {type(error).__name__}: '
                f'{reason(error)}'
            ) from error
        compare(model, read(draft))
        for file in sorted(Path(folder).iterdir(), key=lambda file: file == draft):  # it names the others: comes last
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


def _output_names(model: nn.Module) -> list[str]:
    return ['logits'] if model.head is not None else [f'map{i}' for i in range(len(model(_example(model))))]


def best_opset(model: nn.Module) -> int:
    """The opset with an operator for attention, if this torch writes it and the installed ONNX Runtime runs it.

    Not for windows: that operator takes no mask that is one for all queries.
    """
    if any(getattr(module, 'window_size', None) is not None for module in model.modules()):
        return OPSET
    import onnx  # which the other formats can do without
    import onnxruntime

    if not hasattr(torch.onnx, 'ops'):  # since torch 2.8
        return OPSET
    names = ['query', 'key', 'value', 'output']
    *inputs, output = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (1, 1, 2, 4)) for name in names)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node('Attention', names[:3], names[3:])], 'attention', inputs, [output]
    )
    opsets = [onnx.helper.make_opsetid('', ATTENTION_OPSET)]
    tried = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    try:
        onnxruntime.InferenceSession(tried.SerializeToString(), providers=['CPUExecutionProvider'])
    except Exception:  # its own exceptions have no class in common but this
        return OPSET
    return ATTENTION_OPSET


def _write_onnx(model: nn.Module, path: Path, metadata: Metadata | None, opset: int | None) -> None:
    program = torch.onnx.export(
        _to_program(model),
        dynamo=True,
        opset_version=opset or best_opset(model),
        input_names=['images'],
        output_names=_output_names(model),
        dynamic_shapes=_dynamic_shapes(),
        verbose=False,
    )
    if metadata is not None:
        program.model.metadata_props[KEY] = metadata.to_json()
    program.save(path)


def _write_openvino(model: nn.Module, path: Path, metadata: Metadata | None, opset: int | None) -> None:
    import openvino  # likewise

    converted = openvino.convert_model(_to_program(model))
    converted.inputs[0].get_tensor().set_names({'images'})
    for output, name in zip(converted.outputs, _output_names(model)):
        output.get_tensor().set_names({name})
    if metadata is not None:
        converted.set_rt_info(metadata.to_json(), [KEY])
    openvino.save_model(converted, path, compress_to_fp16=False)


def _read_file(path: Path) -> Function:
    runtime = open_file(path, 'cpu')
    return lambda images: [torch.from_numpy(x) for x in runtime.run(images.numpy()).values()]


def _write_program(model: nn.Module, path: Path, metadata: Metadata | None, opset: int | None) -> None:
    torch.export.save(_to_program(model), path)


def _read_program(path: Path) -> Function:
    return torch.export.load(path).module()


def _write_torchscript(model: nn.Module, path: Path, metadata: Metadata | None, opset: int | None) -> None:
    torch.jit.trace(model, _example(model), check_trace=False).save(path)


#: By the file's ending.
FORMATS: dict[str, Format] = {
    '.onnx': (_write_onnx, _read_file, ('onnx', 'onnxscript', 'onnxruntime')),
    '.xml': (_write_openvino, _read_file, ('openvino',)),
    '.pt2': (_write_program, _read_program, ()),
    '.pt': (_write_torchscript, torch.jit.load, ()),
}
