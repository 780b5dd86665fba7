"""What a plan makes of the tokens."""

import pytest
import torch

import tokenreduce as tr


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_sum_of_a_group_is_its_row_of_a_mix(dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 300, 4, generator=generator).to(dtype)
    weight = torch.rand(2, 300, generator=generator)
    group = torch.randint(-1, 3, (2, 300), generator=generator)
    keep = torch.tensor([[1, 5, 9], [0, 2, 4]])
    mix = (group[:, None] == torch.arange(3)[:, None]) * weight[:, None]
    grouped = tr.Plan(keep, content=tr.Merge(group, weight, "sum")).merge(x)
    mixed = tr.Plan(keep, content=tr.Mix(mix)).merge(x)
    assert grouped.dtype == dtype
    torch.testing.assert_close(grouped, mixed)


def test_a_sum_alone_is_the_token_itself_and_has_its_gradient():
    x = torch.randn(1, 4, 2, requires_grad=True)
    plan = tr.Plan(
        torch.tensor([[0, 3]]), content=tr.Merge(torch.tensor([[0, -1, -1, 1]]), how="sum")
    )
    merged = plan.merge(x)
    assert torch.equal(merged, x[:, [0, 3]])
    merged.sum().backward()
    assert torch.equal(x.grad[0, :, 0], torch.tensor([1.0, 0.0, 0.0, 1.0]))
