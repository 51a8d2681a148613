"""Evaluate a segmentor that was trained on crops on whole pictures, and find what of CvT shifts with their size.

The model is evaluated as it is, in crops as in training, and on whole pictures with one or two things changed.

Example:
    CAMVID_ROOT=data/camvid python tests/helpers/compare_sizes.py \
        configs/comparison/upernet_cvtsmall_camvid.py runs/cvt/iter_1500.pth
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from collections.abc import Callable
from itertools import islice, product

import torch
from mmengine.config import ConfigDict
from mmengine.runner import Runner
from torch import Tensor, nn

from cvt_dense import CvT
from cvt_dense.engine import launch
from cvt_dense.engine.checkpoint_files import load_checkpoints_safely
from cvt_dense.engine.config import load_config
from cvt_dense.models.attention import attend
from cvt_dense.models.cvt.layers import ConvAttention

CALIBRATION_PICTURES = 128


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='of a segmentor on CvT with global attention, trained on square crops')
    parser.add_argument('checkpoint', help='that training with it wrote')
    return parser.parse_args()


class Segmentor:
    """A trained segmentor on CvT, to be changed and evaluated.

    Args:
        config: Its config file, whose ``crop_size`` it was trained on.
        checkpoint: Its weights.
    """

    def __init__(self, config: str, checkpoint: str) -> None:
        cfg = load_config(config)
        (self.crop,) = set(cfg.crop_size)
        cfg.work_dir, cfg.log_level = tempfile.mkdtemp(), 'ERROR'
        cfg.default_hooks.visualization = None
        cfg.test_dataloader.update(batch_size=1, num_workers=0, persistent_workers=False)
        self._train_loader = ConfigDict(cfg.test_dataloader)
        self._train_loader.dataset = ConfigDict(cfg.test_dataloader.dataset)
        self._train_loader.dataset.data_prefix = cfg.train_dataloader.dataset.data_prefix
        self.runner = launch.build_runner(cfg)
        self.runner.load_checkpoint(checkpoint)
        self.model = self.runner.model.eval()
        self.backbone: CvT = self.model.backbone

    def evaluate(self) -> float:
        """The mIoU in percent."""
        loop = self.runner.test_loop
        with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            for batch in loop.dataloader:
                loop.evaluator.process(data_batch=batch, data_samples=self.model.test_step(batch))
            return float(loop.evaluator.evaluate(len(loop.dataloader.dataset))['mIoU'])

    def slide(self) -> None:
        """Pictures crop by crop, as large as in training; what crops that overlap say is averaged."""
        sizes = dict(crop_size=(self.crop,) * 2, stride=(self.crop * 2 // 3,) * 2)
        self.model.test_cfg = ConfigDict(mode='slide', **sizes)

    def backbone_on_crops(self) -> None:
        """The backbone's maps crop by crop, averaged where crops overlap; the heads see the whole."""
        forward, strides = self.backbone.forward, self.backbone.out_strides
        step, coarsest = self.crop * 2 // 3, strides[-1]

        def starts(length: int) -> list[int]:
            last = -(-(length - self.crop) // coarsest) * coarsest  # at a token of all maps; a few pixels stay over
            return [*range(0, last, step // coarsest * coarsest), last]

        def crop_by_crop(images: Tensor) -> tuple[Tensor, ...]:
            sizes = self.backbone.map_sizes(images)
            sums: list[Tensor] = []
            counts = [images.new_zeros(1, 1, *size) for size in sizes]
            for top, left in product(starts(images.shape[2]), starts(images.shape[3])):
                maps = forward(images[:, :, top : top + self.crop, left : left + self.crop])
                sums = sums or [images.new_zeros(*x.shape[:2], *size) for x, size in zip(maps, sizes)]
                for x, total, count, stride in zip(maps, sums, counts, strides):
                    place = total[:, :, top // stride :, left // stride :][:, :, : x.shape[2], : x.shape[3]]
                    place += x[:, :, : place.shape[2], : place.shape[3]]
                    count[:, :, top // stride :, left // stride :][:, :, : x.shape[2], : x.shape[3]] += 1
            return tuple(total / count for total, count in zip(sums, counts))

        self.backbone.forward = crop_by_crop

    def scale_logits(self) -> None:
        """As ``reference_resolution`` does it."""
        scaled = CvT(self.backbone.arch, reference_resolution=self.crop)
        for (_, ours), (_, theirs) in zip(_attentions(self.backbone), _attentions(scaled), strict=True):
            ours.reference_keys = theirs.reference_keys

    def attend_in_windows(self) -> None:
        """Attend within windows as large as the map of a crop."""
        for stage, attention in _attentions(self.backbone):
            attention.window_size = self.crop // self.backbone.arch.strides[stage]

    def leave_out_cls_token(self) -> None:
        """No token of the map attends to the cls token."""

        def without(query: Tensor, key: Tensor, value: Tensor, size: object, *, module: ConvAttention) -> Tensor:
            first = attend(query[:, :1], key, value, module.num_heads, module.scale)
            others = attend(query[:, 1:], key[:, 1:], value[:, 1:], module.num_heads, module.scale)
            return torch.cat((first, others), dim=1)

        for _, attention in _attentions(self.backbone):
            if attention.with_cls_token:
                attention._attend = lambda *args, module=attention: without(*args, module=module)

    def renew_statistics(self) -> None:
        """Take BatchNorm's statistics of whole pictures, of those that were trained on."""
        for module in self.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None  # a plain average
                module.train()
        with torch.no_grad():
            for batch in islice(Runner.build_dataloader(self._train_loader), CALIBRATION_PICTURES):
                self.backbone(self.model.data_preprocessor(batch)['inputs'])
        self.model.eval()


def _attentions(backbone: CvT) -> list[tuple[int, ConvAttention]]:
    return [(index, block.attn) for index, stage in enumerate(backbone.stages) for block in stage.blocks]


CHANGES: dict[str, tuple[Callable[[Segmentor], None], ...]] = {
    'whole': (),
    'slide': (Segmentor.slide,),
    'whole, the backbone on crops': (Segmentor.backbone_on_crops,),
    'whole, logits scaled': (Segmentor.scale_logits,),
    'whole, windows': (Segmentor.attend_in_windows,),
    'whole, statistics renewed': (Segmentor.renew_statistics,),
    'whole, logits scaled, statistics renewed': (Segmentor.scale_logits, Segmentor.renew_statistics),
    'whole, windows, statistics renewed': (Segmentor.attend_in_windows, Segmentor.renew_statistics),
    'whole, cls token left out': (Segmentor.leave_out_cls_token,),
}


def main() -> None:
    args = parse_args()
    load_checkpoints_safely()
    for name, changes in CHANGES.items():
        segmentor = Segmentor(args.config, args.checkpoint)
        for change in changes:
            change(segmentor)
        print(f'{name:45} mIoU {segmentor.evaluate():.1f}', flush=True)


if __name__ == '__main__':
    main()
