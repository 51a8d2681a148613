"""BatchNorm as a part of a convolution: where it must not be. (What it computes: test_plain.py.)"""

from __future__ import annotations

import torch
from families import Family, each_family, with_statistics


@each_family
def test_a_trace_of_torch_fx_computes_with_what_is_loaded_or_trained_after_it(family: Family) -> None:
    models = [with_statistics(family.trunk(family.tiny)).eval() for _ in range(2)]
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        traced = torch.fx.symbolic_trace(models[0])
        traced.load_state_dict(models[1].state_dict())
        for model in models:  # the first shares its layers with the trace
            expected = family.trunk_maps(model, images)
            outputs = traced(images)
            maps = list(outputs[0]) if isinstance(outputs, tuple) else list(outputs)
            assert all(torch.allclose(a, b, atol=1e-5, rtol=1e-4) for a, b in zip(maps, expected))
