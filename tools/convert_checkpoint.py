"""Convert a checkpoint of CvT or CMT from any known format to another, and check that the outcome computes the same.

IN is whatever init_cfg takes: a file, a folder, an https:// or hf:// address, or a published name. Of a trained
detector or segmentor the backbone is taken. transformers has no CMT. At the end, the call that loads OUT is printed.

Example:
    python tools/convert_checkpoint.py microsoft-cvt-13/pytorch_model.bin CvT-13.pth
    python tools/convert_checkpoint.py cvt-21-384x384-in22k cvt_21.safetensors --to timm
    python tools/convert_checkpoint.py cvt-21-384x384-in22k cvt-21 --to hf
    python tools/convert_checkpoint.py work_dirs/upernet_cvt13_ade20k/iter_160000.pth cvt-13-ade20k.safetensors --half
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import ImageNetInfo
from timm.layers import QuickGELU
from torch import Tensor

from cvt_dense import cli
from cvt_dense.checkpoints import load_pretrained, read_checkpoint
from cvt_dense.checkpoints.conversion import (
    TIMM_SETTINGS,
    TOLERANCE,
    difference,
    kept_for,
    last_map,
    random_image,
    write,
)
from cvt_dense.checkpoints.families import Family, recognised
from cvt_dense.checkpoints.formats import StateDict, to_trunk, unwrap
from cvt_dense.checkpoints.load import check_complete
from cvt_dense.checkpoints.published import find_published
from cvt_dense.checkpoints.transformers_config import transformers_config
from cvt_dense.errors import CheckpointError, UserError
from cvt_dense.models.cvt.arch import ARCHS

TARGETS = {'official': 'official', 'hf': 'transformers', 'timm': 'timm'}
SUFFIXES = ('.safetensors', '.pth', '.bin')
HALF_TOLERANCE = 2e-2  # of the largest value


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', metavar='IN', help='checkpoint of any known format')
    parser.add_argument(
        'out',
        metavar='OUT',
        help='.safetensors, .pth or .bin file to write; with --to hf also a folder, as from_pretrained takes it',
    )
    parser.add_argument('--to', choices=list(TARGETS), default='official', help='format of OUT (default: official)')
    parser.add_argument('--prefix', help="what the backbone's parameter names begin with in IN (default: found)")
    parser.add_argument('--half', action='store_true', help='store floating-point tensors in half precision')
    parser.add_argument('--force', action='store_true', help='overwrite OUT')
    return parser.parse_args()


def to_half(tensors: StateDict) -> StateDict:
    """Round floating-point tensors to half precision."""
    return {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}


def write_folder(tensors: Mapping[str, Tensor], config: Mapping[str, Any], folder: Path) -> None:
    """Write a folder as ``save_pretrained`` of transformers does."""
    folder.mkdir()
    write(tensors, folder / 'model.safetensors')
    (folder / 'config.json').write_text(f'{json.dumps(config, indent=2)}\n')


def move(partial: Path, out: Path) -> None:
    """Put a file or folder where it is to be; what a folder there holds besides stays."""
    if partial.is_dir() and out.is_dir():
        for file in partial.iterdir():
            os.replace(file, out / file.name)
    else:
        os.replace(partial, out)


def labels_of(checkpoint: str, count: int) -> list[str]:
    """Names of a head's classes: ImageNet's for published weights, those in a folder's config; empty if not known."""
    config = Path(checkpoint, 'config.json')
    labels: list[str] = []
    if find_published(checkpoint):
        imagenet = ImageNetInfo()
        labels = [imagenet.index_to_description(index) for index in range(imagenet.num_classes())]
    elif config.is_file():
        named = json.loads(config.read_text()).get('id2label') or {}
        labels = [named.get(str(index), '') for index in range(len(named))]
    return labels if len(labels) == count else []


def call_for(target: str, family: Family, variant: str, tensors: StateDict, out: Path) -> str | None:
    """The line of Python that loads what was written; None if no short one does.

    Args:
        family: That it is of.
        target: A key of :data:`~cvt_dense.checkpoints.formats.FORMATS`.
        variant: The known variant that it is of.
        tensors: What was written, under the trunk's names.
        out: Where it is.
    """
    name, path, head = variant.replace('-', '_'), str(out), tensors.get('head.weight')
    settings = family.settings_like(variant, tensors)
    if target == 'timm':
        options = ', features_only=True' if head is None else ''
        options += f', num_classes={len(head)}' if head is not None and len(head) != 1000 else ''
        options += ''.join(f', {TIMM_SETTINGS[key]}={value}' for key, value in settings.items())
        return f'import cvt_dense, timm; model = timm.create_model({name!r}{options}, checkpoint_path={path!r})'
    if target == 'official':
        options = ''.join(f', {key}={value}' for key, value in settings.items())
        init_cfg, kind = f"dict(type='Pretrained', checkpoint={path!r})", family.name
        call = f'{kind}({variant!r}{options}, init_cfg={init_cfg})'
        return f'from cvt_dense import {kind}; model = {call}; model.init_weights()'
    if not out.is_dir():
        return None
    kind = 'CvtModel' if head is None else 'CvtForImageClassification'
    return f'from transformers import {kind}; model = {kind}.from_pretrained({path!r})'


def verify(source: StateDict, family: Family, variant: str | None, path: Path, target: str, tolerance: float) -> str:
    """Compare what a converted checkpoint holds, and what its users compute with it, with what it was made of.

    Args:
        source: Under the trunk's names.
        family: That they are of.
        variant: The known variant that they are of, if any.
        path: The converted file or folder.
        target: Its format, a key of :data:`~cvt_dense.checkpoints.formats.FORMATS`.
        tolerance: How far the outputs may differ, as a part of their largest value.

    Returns:
        What was compared, in words.

    Raises:
        CheckpointError: If the file does not hold the same tensors, or something else is computed with it.
    """
    back = to_trunk(read_checkpoint(str(path)), formats=family.formats)
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
    trunk = family.trunk_like(variant, source).eval()
    image = random_image(trunk.in_channels)
    if target == 'official':
        load_pretrained(trunk, str(path))
        got = last_map(trunk, image)
    else:
        got = OUTPUTS[target](variant, family.settings_like(variant, source), path, image)
    trunk.load_state_dict({key: tensor for key, tensor in source.items() if key in trunk.state_dict()}, strict=False)
    expected = last_map(trunk, image)
    off = difference(got, expected)
    if not off <= tolerance:
        raise CheckpointError(f'conversion to the {target} format changed the outputs by {off:.1e}')
    return f'ran {variant} on an image before and after: off by {off:.1e} of the largest value'


def timm_output(variant: str, settings: Mapping[str, int], path: Path, image: Tensor) -> Tensor:
    """The last map, of the timm model that has loaded a file."""
    model = timm.create_model(
        variant.replace('-', '_'),
        features_only=True,
        out_indices=(-1,),
        checkpoint_path=str(path),
        **{TIMM_SETTINGS[key]: value for key, value in settings.items()},
    )
    return model.eval()(image)[0]


def transformers_output(variant: str, settings: Mapping[str, int], path: Path, image: Tensor) -> Tensor:
    """The last map, of the model of ``transformers`` that has loaded a file or a folder, with our activation."""
    from transformers import CvtConfig, CvtForImageClassification

    arch = ARCHS[variant]
    if path.is_dir():
        config = CvtConfig.from_pretrained(path)
    else:
        config = CvtConfig(
            embed_dim=list(arch.embed_dims),
            num_heads=list(arch.num_heads),
            depth=list(arch.depths),
            num_channels=image.shape[1],
        )
    model = CvtForImageClassification(config).eval()
    for module in model.modules():
        if type(module).__name__ == 'CvtIntermediate':
            module.activation = QuickGELU()  # the published weights', while the port has GELU
    content = read_checkpoint(str(path))
    stages = {key: tensor for key, tensor in content.items() if key.startswith('cvt.')}
    missing, unexpected = model.load_state_dict(stages, strict=False)
    if unexpected or any(key.startswith('cvt.') and not key.endswith('num_batches_tracked') for key in missing):
        raise CheckpointError('conversion to the transformers format gave names that transformers does not have')
    return model(image, output_hidden_states=True).hidden_states[-1]


OUTPUTS = {'timm': timm_output, 'transformers': transformers_output}


def check_out(out: Path, target: str, force: bool) -> bool:
    """Check where the outcome is to go; returns whether that is a folder.

    Raises:
        UserError: If it has a wrong name, or is there already.
    """
    as_folder = target == 'transformers' and out.suffix not in SUFFIXES
    if not as_folder and out.suffix not in SUFFIXES:
        raise UserError(f'{out} must end in .safetensors, .pth or .bin; with --to hf it can be a folder')
    if out.exists() and out.is_dir() != as_folder:
        raise UserError(f'{out} is a {"folder" if out.is_dir() else "file"}; choose another name')
    if out.exists() and not force and not (as_folder and not any(out.iterdir())):
        raise UserError(f'{out} exists; overwrite it with --force')
    return as_folder


def main() -> None:
    args = parse_args()
    out, target = Path(args.out), TARGETS[args.to]
    as_folder = check_out(out, target, args.force)
    tensors = unwrap(read_checkpoint(args.checkpoint), args.prefix)
    recognition = recognised(tensors)
    if recognition is None:
        raise UserError(f'checkpoint {args.checkpoint} holds no weights of CvT or CMT, of any known format')
    family, found = recognition
    if target not in family.formats:
        raise UserError(f'{args.checkpoint} is of {family.name}, which has no {args.to} format: leave out --to')
    whole = family.formats[found].to_trunk(tensors)
    check_complete(args.checkpoint, whole, family)
    variant = family.variant_of(whole)
    departures = family.departures_of(whole)
    if target == 'transformers' and departures:
        raise UserError(f'{args.checkpoint} has other {", ".join(departures)} than transformers knows: leave out --to')
    if as_folder and variant is None:
        raise UserError(f"{args.checkpoint} is of no known variant, so transformers' config is not known: write a file")
    kept = kept_for(target, family, to_half(whole) if args.half else whole)
    out.parent.mkdir(parents=True, exist_ok=True)
    # OUT appears only when it is whole and found to be right.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix='.partial-') as folder:
        partial, renamed = Path(folder) / out.name, family.formats[target].from_trunk(kept)
        if as_folder:
            labels = labels_of(args.checkpoint, len(kept.get('head.weight', ())))
            write_folder(renamed, transformers_config(kept, ARCHS[variant], labels), partial)
        else:
            write(renamed, partial)
        source = {key: tensor for key, tensor in whole.items() if key in kept}
        with torch.no_grad():
            verdict = verify(source, family, variant, partial, target, HALF_TOLERANCE if args.half else TOLERANCE)
        move(partial, out)
    files = [file for file in out.iterdir() if file.is_file()] if as_folder else [out]
    size = sum(file.stat().st_size for file in files) / 2**20
    print(f'{args.checkpoint} ({found} format) -> {out} ({target} format), {len(kept)} tensors, {size:.1f} MiB')
    left_out = sorted({key.split('.')[0] for key in whole.keys() - kept.keys()})
    if left_out:
        print(f'left out, since no model of {target} has them: {", ".join(left_out)}')
    print(verdict)
    if variant is not None:
        call = call_for(target, family, variant, kept, out)
        print(f'to load it: {call}' if call else 'from_pretrained of transformers takes a folder: OUT without a suffix')


if __name__ == '__main__':
    cli.run(main)
