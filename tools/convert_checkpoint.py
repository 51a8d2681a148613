"""Convert a CvT checkpoint from any known format to another, and check that the outcome computes the same.

IN is whatever init_cfg takes: a file, a folder, an https:// or hf:// address, or a published name. Of a trained
detector or segmentor the backbone is taken.

Example:
    python tools/convert_checkpoint.py microsoft-cvt-13/pytorch_model.bin CvT-13.pth
    python tools/convert_checkpoint.py cvt-21-384x384-in22k cvt_21.safetensors --to timm
    python tools/convert_checkpoint.py work_dirs/upernet_cvt13_ade20k/iter_160000.pth cvt-13-ade20k.safetensors --half
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from timm.layers import QuickGELU
from torch import Tensor

from cvt_dense import CvTTrunk, cli
from cvt_dense.checkpoints import load_pretrained, read_checkpoint
from cvt_dense.checkpoints.files import read
from cvt_dense.checkpoints.formats import FORMATS, StateDict, to_trunk
from cvt_dense.checkpoints.load import check_complete, variant_of
from cvt_dense.errors import CheckpointError, UserError
from cvt_dense.models.cvt.arch import ARCHS

TARGETS = {'official': 'official', 'hf': 'transformers', 'timm': 'timm'}
IMAGE_SIZE = (65, 98)  # odd, and with maps of different sides: a transposed weight would show
TOLERANCE = 1e-4  # of the largest value: another implementation, and another order of sums
HALF_TOLERANCE = 2e-2


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', metavar='IN', help='checkpoint of any known format')
    parser.add_argument('out', metavar='OUT', help='.safetensors, .pth or .bin file to write')
    parser.add_argument('--to', choices=list(TARGETS), default='official', help='format of OUT (default: official)')
    parser.add_argument('--prefix', help="what the backbone's parameter names begin with in IN (default: found)")
    parser.add_argument('--half', action='store_true', help='store floating-point tensors in half precision')
    parser.add_argument('--force', action='store_true', help='overwrite OUT')
    return parser.parse_args()


def to_half(tensors: StateDict) -> StateDict:
    """Round floating-point tensors to half precision."""
    return {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}


def write(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a state dict."""
    if path.suffix == '.safetensors':
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, {'format': 'pt'})
    else:
        torch.save(dict(tensors), path)


def verify(source: StateDict, variant: str | None, path: Path, target: str, tolerance: float) -> str:
    """Compare what a converted checkpoint holds, and what its users compute with it, with what it was made of.

    Args:
        source: Under the trunk's names.
        variant: The known variant that they are of, if any.
        path: The converted file.
        target: Its format, a key of :data:`~cvt_dense.checkpoints.formats.FORMATS`.
        tolerance: How far the outputs may differ, as a part of their largest value.

    Returns:
        What was compared, in words.

    Raises:
        CheckpointError: If the file does not hold the same tensors, or something else is computed with it.
    """
    back = to_trunk(read(path))
    if (
        back is None
        or back[1] != target
        or {key: tensor.shape for key, tensor in back[0].items()} != {key: t.shape for key, t in source.items()}
    ):
        raise CheckpointError(f'conversion to the {target} format lost weights, so nothing was written')
    if variant is None:
        return 'reads back with the same names and shapes; no known variant, so no image was run'
    if target == 'transformers' and not find_spec('transformers'):
        return 'reads back with the same names and shapes; transformers is not installed, so no image was run'
    trunk = CvTTrunk(variant)
    trunk.load_state_dict({key: tensor for key, tensor in source.items() if key in trunk.state_dict()}, strict=False)
    expected = trunk.eval()(random_image())[0][-1]
    got = OUTPUTS[target](variant, path)
    difference = float((got - expected).abs().max() / expected.abs().max())
    if not difference <= tolerance:
        raise CheckpointError(f'conversion to the {target} format changed the outputs by {difference:.1e}')
    return f'ran {variant} on an image before and after: off by {difference:.1e} of the largest value'


def random_image() -> Tensor:
    return torch.randn(1, 3, *IMAGE_SIZE, generator=torch.Generator().manual_seed(0))


def official_output(variant: str, path: Path) -> Tensor:
    """The last map, of the trunk that has loaded a file."""
    trunk = CvTTrunk(variant).eval()
    load_pretrained(trunk, str(path))
    return trunk(random_image())[0][-1]


def timm_output(variant: str, path: Path) -> Tensor:
    """The last map, of the timm model that has loaded a file."""
    name = variant.replace('-', '_')
    model = timm.create_model(
        name, pretrained=True, features_only=True, out_indices=(2,), pretrained_cfg_overlay=dict(file=str(path))
    )
    return model.eval()(random_image())[0]


def transformers_output(variant: str, path: Path) -> Tensor:
    """The last map, of the model of ``transformers`` that has loaded a file, with our activation."""
    from transformers import CvtConfig, CvtForImageClassification

    arch = ARCHS[variant]
    config = CvtConfig(embed_dim=list(arch.embed_dims), num_heads=list(arch.num_heads), depth=list(arch.depths))
    model = CvtForImageClassification(config).eval()
    for module in model.modules():
        if type(module).__name__ == 'CvtIntermediate':
            module.activation = QuickGELU()  # the published weights', while the port has GELU
    stages = {key: tensor for key, tensor in read(path).items() if key.startswith('cvt.')}
    missing, unexpected = model.load_state_dict(stages, strict=False)
    if unexpected or any(key.startswith('cvt.') and not key.endswith('num_batches_tracked') for key in missing):
        raise CheckpointError('conversion to the transformers format gave names that transformers does not have')
    return model(random_image(), output_hidden_states=True).hidden_states[-1]


OUTPUTS = {'official': official_output, 'timm': timm_output, 'transformers': transformers_output}


def main() -> None:
    args = parse_args()
    out = Path(args.out)
    if out.suffix not in ('.safetensors', '.pth', '.bin'):
        raise UserError(f'{out} must end in .safetensors, .pth or .bin')
    if out.exists() and not args.force:
        raise UserError(f'{out} exists; overwrite it with --force')
    converted = to_trunk(read_checkpoint(args.checkpoint), args.prefix)
    if converted is None:
        raise UserError(f'checkpoint {args.checkpoint} holds no CvT weights of any known format')
    tensors, found = converted
    check_complete(args.checkpoint, tensors)
    variant = variant_of(tensors)
    target = TARGETS[args.to]
    out.parent.mkdir(parents=True, exist_ok=True)
    # OUT appears only when it is whole and found to be right.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix='.partial-') as folder:
        partial = Path(folder) / out.name
        write(FORMATS[target].from_trunk(to_half(tensors) if args.half else tensors), partial)
        with torch.no_grad():
            verdict = verify(tensors, variant, partial, target, HALF_TOLERANCE if args.half else TOLERANCE)
        os.replace(partial, out)
    size = out.stat().st_size / 2**20
    print(f'{args.checkpoint} ({found} format) -> {out} ({target} format), {len(tensors)} tensors, {size:.1f} MiB')
    print(verdict)


if __name__ == '__main__':
    cli.run(main)
