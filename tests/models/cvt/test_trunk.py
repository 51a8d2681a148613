from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from golden import DATA, MODELS, TINY, classifier, image
from torch import nn

from cvt_dense import CvTTrunk
from cvt_dense.analysis.flops import count_macs
from cvt_dense.models.cvt.arch import MIN_SIZE

TOLERANCE = 1e-5  # of each map's largest value


def assert_agrees(ours: torch.Tensor, golden: np.ndarray) -> None:
    difference = np.abs(ours.numpy() - golden).max() / np.abs(golden).max()
    print(f'off by {difference:.1e} of the largest value')  # shown by pytest -rP
    assert difference <= TOLERANCE, f'off by {difference:.2e} of the largest value'


@pytest.mark.parametrize('name', list(MODELS))
def test_outputs_are_the_references(name: str) -> None:
    golden = np.load(DATA / f'{name}.npz')
    model = classifier(name)
    sizes = sorted({key.split('.')[0] for key in golden.files if 'x' in key})
    assert sizes
    for size in sizes:
        height, width = map(int, size.split('x'))
        with torch.no_grad():
            maps, logits = model(image(height, width, batch=2 if name == 'tiny' else 1))
        if name != 'tiny':  # stored sub-sampled
            maps, logits = [x[0, ::8, ::5, ::5] for x in maps], logits.reshape(-1)[::10]
        assert len(maps) == 3
        for stage, x in enumerate(maps):
            assert_agrees(x, golden[f'{size}.stage{stage}'])
        assert_agrees(logits, golden[f'{size}.logits'])


@pytest.mark.parametrize('name', ['cvt_13', 'cvt_21', 'cvt_w24'])
def test_parameters_are_as_many_as_published(name: str) -> None:
    with torch.device('meta'):
        trunk = CvTTrunk(MODELS[name])
    width = trunk.arch.embed_dims[-1]
    head = 2 * width + 1000 * width + 1000  # final norm and classifier
    counted = sum(p.numel() for p in trunk.parameters()) + head
    print(f'{name}: {counted} parameters')
    assert counted == int(np.load(DATA / f'{name}.npz')['num_params'])


def test_parameter_names_and_shapes_are_the_references() -> None:
    published = json.loads((DATA / 'official_cvt_21_keys.json').read_text())
    trunk = {key: list(tensor.shape) for key, tensor in CvTTrunk('cvt-21').state_dict().items()}
    heads = {key for key in published if key.startswith(('norm.', 'head.'))}
    assert trunk == {key: shape for key, shape in published.items() if key not in heads}


@pytest.mark.parametrize(('arch', 'gmacs'), [('cvt-13', 4.53), ('cvt-21', 7.13), ('cvt-w24', 60.86)])
def test_macs_are_as_published(arch: str, gmacs: float) -> None:
    trunk = CvTTrunk(arch)
    classifier_macs = 1000 * trunk.arch.embed_dims[-1]
    counted = (count_macs(trunk, 224, 224) + classifier_macs) / 1e9
    print(f'{arch}: {counted:.2f} GMACs')
    assert counted == pytest.approx(gmacs, rel=0.01)


def test_counting_macs_leaves_the_modes_as_they_were() -> None:
    trunk = CvTTrunk(TINY).train()
    trunk.stage1.eval()
    count_macs(trunk, 32, 32)
    assert trunk.training
    assert trunk.stage0.blocks[0].training
    assert not trunk.stage1.blocks[0].training


@pytest.mark.parametrize(('height', 'width'), [(16, 16), (17, 31), (32, 50), (65, 16)])
def test_map_sizes_follow_the_formula(height: int, width: int) -> None:
    maps, cls_token = CvTTrunk(TINY).eval()(torch.randn(2, 3, height, width))
    size = ((height + 1) // 4, (width + 1) // 4)
    for x, channels in zip(maps, TINY['embed_dims']):
        assert x.shape == (2, channels, *size)
        size = ((size[0] + 1) // 2, (size[1] + 1) // 2)
    assert cls_token.shape == (2, 96)


@pytest.mark.parametrize(
    ('x', 'message'),
    [
        (torch.zeros(3, 32, 32), r'takes \(N, 3, H, W\) images, got shape \(3, 32, 32\)'),
        (torch.zeros(1, 4, 32, 32), r'got shape \(1, 4, 32, 32\)'),
        (torch.zeros(0, 3, 32, 32), 'at least one image'),
        (torch.zeros(1, 3, MIN_SIZE - 1, 32), 'at least 16x16 pixels'),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), 'floating-point images, got torch.uint8'),
    ],
)
def test_wrong_input_is_a_clear_error(x: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CvTTrunk(TINY)(x)


def test_settings_reach_their_blocks() -> None:
    arch = TINY | dict(mlp_ratio=[4, 2, [2, 4]], kv_stride=[2, [1, 2], 1])
    trunk = CvTTrunk(arch, drop_path_rate=0.4)
    blocks = [block for stage in trunk.stages for block in stage.blocks]
    assert [block.mlp.fc1.out_features // block.mlp.fc1.in_features for block in blocks] == [4, 2, 2, 2, 4]
    assert [block.attn.conv_proj_k.conv.stride[0] for block in blocks] == [2, 1, 2, 1, 1]
    assert [block.attn.conv_proj_v.conv.stride[0] for block in blocks] == [2, 1, 2, 1, 1]
    rates = [getattr(block.drop_path, 'drop_prob', 0.0) for block in blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    assert [stage.cls_token is not None for stage in trunk.stages] == [False, False, True]


def test_fewer_stages_may_be_built() -> None:
    trunk = CvTTrunk(TINY, num_stages=2)
    assert not any(key.startswith('stage2') for key in trunk.state_dict())
    maps, cls_token = trunk(torch.randn(1, 3, 32, 32))
    assert len(maps) == 2
    assert cls_token is None


def test_a_retained_graph_can_be_gone_through_twice() -> None:
    trunk = CvTTrunk(TINY, with_cp=True).train()
    x = torch.randn(2, 3, 32, 48)
    loss = sum(m.pow(2).mean() for m in trunk(x)[0])
    loss.backward(retain_graph=True)
    once = {name: p.grad.clone() for name, p in trunk.named_parameters() if p.grad is not None}
    statistics = {name: buffer.clone() for name, buffer in trunk.named_buffers()}
    loss.backward()
    for name, gradient in once.items():
        torch.testing.assert_close(trunk.get_parameter(name).grad, 2 * gradient)
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in trunk.named_buffers())


def _train_step(with_cp: bool) -> tuple[CvTTrunk, torch.Tensor]:
    torch.manual_seed(0)
    trunk = CvTTrunk(TINY, drop_path_rate=0.3, with_cp=with_cp).train()
    torch.manual_seed(1)
    maps, _ = trunk(torch.randn(3, 3, 40, 56))
    loss = sum(x.square().mean() for x in maps)
    loss.backward()
    return trunk, loss.detach()


def test_activation_checkpointing_changes_neither_gradients_nor_statistics() -> None:
    (plain, loss), (recomputed, same_loss) = _train_step(False), _train_step(True)
    torch.testing.assert_close(same_loss, loss)
    for (name, p), q in zip(plain.named_parameters(), recomputed.parameters()):
        torch.testing.assert_close(q.grad, p.grad, msg=lambda m, name=name: f'{name}: {m}')
    for (name, b), c in zip(plain.named_buffers(), recomputed.buffers()):
        torch.testing.assert_close(c, b, msg=lambda m, name=name: f'{name}: {m}')
    norms = [m for m in recomputed.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(norm.num_batches_tracked == 1 and norm.momentum == 0.1 for norm in norms)


def test_gradients_are_those_of_plain_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    def plain(query, key, value, attn_mask, scale):
        return (scale * query @ key.transpose(-2, -1)).softmax(-1) @ value

    fused, _ = _train_step(False)
    monkeypatch.setattr('torch.nn.functional.scaled_dot_product_attention', plain)
    reference, _ = _train_step(False)
    for (name, p), q in zip(reference.named_parameters(), fused.parameters()):
        torch.testing.assert_close(q.grad, p.grad, atol=1e-6, rtol=1e-3, msg=lambda m, name=name: f'{name}: {m}')
