from __future__ import annotations

import torch
from torch import nn

from cvt_dense.models.stages import Stages, run_stages
from cvt_dense.models.tokens import map_to_tokens, tokens_to_map


class Halving(nn.Module):
    """A stage that adds one to every second pixel, and puts a token of zeros in front."""

    def forward(self, maps: list[torch.Tensor]) -> tuple[torch.Tensor, tuple[int, int]]:
        x = maps[0][:, :, ::2, ::2] + 1
        tokens = map_to_tokens(x)
        return torch.cat((torch.zeros_like(tokens[:, :1]), tokens), dim=1), (x.shape[2], x.shape[3])

    def to_maps(self, tokens: torch.Tensor, size: tuple[int, int]) -> list[torch.Tensor]:
        return [tokens_to_map(tokens[:, 1:], size)]


def test_each_stage_takes_the_map_of_the_one_before() -> None:
    x = torch.randn(2, 3, 9, 12)
    outputs = run_stages([Halving(), Halving()], [x])
    for stage, (tokens, (output,)) in enumerate(outputs):
        expected = x[:, :, :: 2 << stage, :: 2 << stage] + (stage + 1)
        torch.testing.assert_close(output, expected)
        assert tokens.shape == (2, 1 + output.shape[2] * output.shape[3], 3)
        assert output.untyped_storage().data_ptr() == tokens.untyped_storage().data_ptr()


def test_as_a_module_stages_are_a_list_that_runs_and_can_be_scripted() -> None:
    stages, x = Stages([Halving(), Halving(), Halving()]), torch.randn(1, 3, 16, 16)
    expected = run_stages(list(stages), [x])
    for run in (stages, torch.jit.script(stages), stages[:]):
        for (tokens, maps), (expected_tokens, expected_maps) in zip(run([x]), expected, strict=True):
            assert torch.equal(tokens, expected_tokens)
            assert torch.equal(maps[0], expected_maps[0])
    assert len(stages[:2]([x])) == 2
