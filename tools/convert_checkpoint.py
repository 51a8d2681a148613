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

import torch
from safetensors.torch import save_file
from timm.layers import QuickGELU
from torch import Tensor

from cvt_dense import CvTClassifier, CvTTrunk, launch
from cvt_dense.arch import ARCHS
from cvt_dense.checkpoints.files import CheckpointError, read
from cvt_dense.checkpoints.formats import FORMATS, StateDict, to_timm, to_trunk
from cvt_dense.checkpoints.load import check_fit, variant_of
from cvt_dense.checkpoints.sources import fetch
from cvt_dense.unpickling import read_checkpoint

TARGETS = {'official': 'official', 'hf': 'transformers', 'timm': 'timm'}
IMAGE_SIZE = (65, 98)  # odd, and with maps of different sides: a transposed weight would show
TOLERANCE = 1e-4  # of the largest value: another implementation, and another order of sums


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', metavar='IN', help='checkpoint of any known format')
    parser.add_argument('out', metavar='OUT', help='.safetensors, .pth or .bin file to write')
    parser.add_argument('--to', choices=list(TARGETS), default='official', help='format of OUT (default: official)')
    parser.add_argument('--prefix', help="what the backbone's parameter names begin with in IN (default: found)")
    parser.add_argument('--half', action='store_true', help='store floating-point tensors in half precision')
    parser.add_argument('--force', action='store_true', help='overwrite OUT')
    return parser.parse_args()


def write(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a state dict."""
    if path.suffix == '.safetensors':
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, {'format': 'pt'})
    else:
        torch.save(dict(tensors), path)


def verify(source: StateDict, variant: str | None, path: Path, target: str) -> str:
    """Compare what a converted checkpoint holds and computes with the tensors that it was made of.

    Args:
        source: Under the trunk's names.
        variant: The known variant that they are of, if any.
        path: The converted file.
        target: Its format, a key of :data:`~cvt_dense.checkpoints.formats.FORMATS`.

    Returns:
        What was compared, in words.

    Raises:
        CheckpointError: If the file does not hold the same weights, or computes something else.
    """
    back = to_trunk(read(path))
    if (
        back is None
        or back[1] != target
        or back[0].keys() != source.keys()
        or not all(torch.equal(tensor, source[key]) for key, tensor in back[0].items())
    ):
        raise CheckpointError(f'conversion to the {target} format lost weights, so nothing was written')
    if variant is None:
        return 'reads back the same; no known variant, so no image was run'
    if target != 'transformers':
        ours = our_outputs(variant, back[0])
    elif find_spec('transformers'):
        ours = transformers_outputs(variant, FORMATS[target].from_trunk(back[0]))
    else:
        return 'reads back the same; transformers is not installed, so no image was run'
    difference = max(
        float((got - want).abs().max() / want.abs().max()) for got, want in zip(ours, our_outputs(variant, source))
    )
    if not difference <= TOLERANCE:
        raise CheckpointError(f'conversion to the {target} format changed the outputs by {difference:.1e}')
    return f'ran {variant} on an image before and after: off by {difference:.1e} of the largest value'


def random_image() -> Tensor:
    return torch.randn(1, 3, *IMAGE_SIZE, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def our_outputs(variant: str, tensors: StateDict) -> list[Tensor]:
    """What our model computes with tensors under the trunk's names: last map and, if there is a head, logits."""
    num_classes = len(tensors['head.bias']) if 'head.bias' in tensors else 0
    model = CvTClassifier(variant, num_classes=num_classes).eval()
    model.load_state_dict(to_timm(tensors), strict=False)  # the trunk is complete; norm and head may be missing
    tokens, maps = model.forward_intermediates(random_image())
    return [maps[-1], *([model.forward_head(tokens)] if num_classes else [])]


@torch.no_grad()
def transformers_outputs(variant: str, tensors: StateDict) -> list[Tensor]:
    """What the model of ``transformers`` computes with tensors under its names, with our activation."""
    from transformers import CvtConfig, CvtForImageClassification

    arch = ARCHS[variant]
    num_labels = len(tensors['classifier.bias']) if 'classifier.bias' in tensors else 0
    config = CvtConfig(
        embed_dim=list(arch.embed_dims),
        num_heads=list(arch.num_heads),
        depth=list(arch.depths),
        num_labels=num_labels,
    )
    model = CvtForImageClassification(config).eval()
    for module in model.modules():
        if type(module).__name__ == 'CvtIntermediate':
            module.activation = QuickGELU()  # the published weights', while the port has GELU
    model.load_state_dict(tensors, strict=False)  # the trunk is complete; norm and head may be missing
    result = model(random_image(), output_hidden_states=True)
    return [result.hidden_states[-1], *([result.logits] if num_labels else [])]


def main() -> None:
    args = parse_args()
    out = Path(args.out)
    if out.suffix not in ('.safetensors', '.pth', '.bin'):
        raise launch.UserError(f'{out} must end in .safetensors, .pth or .bin')
    if out.exists() and not args.force:
        raise launch.UserError(f'{out} exists; overwrite it with --force')
    converted = to_trunk(read_checkpoint(str(fetch(args.checkpoint))), args.prefix)
    if converted is None:
        raise launch.UserError(f'checkpoint {args.checkpoint} holds no CvT weights of any known format')
    tensors, found = converted
    if args.half:
        tensors = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}
    variant = variant_of(tensors)
    if variant is not None:
        with torch.device('meta'):
            trunk = CvTTrunk(variant)
        check_fit(args.checkpoint, tensors, trunk.state_dict(), trunk.arch, trunk.num_stages)
    target = TARGETS[args.to]
    out.parent.mkdir(parents=True, exist_ok=True)
    # OUT appears only when it is whole and found to be right.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix='.partial-') as folder:
        partial = Path(folder) / out.name
        write(FORMATS[target].from_trunk(tensors), partial)
        verdict = verify(tensors, variant, partial, target)
        os.replace(partial, out)
    size = out.stat().st_size / 2**20
    print(f'{args.checkpoint} ({found} format) -> {out} ({target} format), {len(tensors)} tensors, {size:.1f} MiB')
    print(verdict)


if __name__ == '__main__':
    launch.run(main)
