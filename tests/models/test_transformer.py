import pytest
import torch
from torch import nn

from raypipe.models.attention import Linear, linear
from raypipe.models.inputs import MAX_SIZE
from raypipe.models.transformer import Block, Dropout, Transformer


@pytest.mark.parametrize("training", [False, True])
def test_block_is_torchs_pre_norm_encoder_layer(training: bool) -> None:
    torch.manual_seed(0)
    ours = Block(32, num_heads=4, dropout=0.0)
    theirs = nn.TransformerEncoderLayer(32, 4, 128, 0.0, "gelu", batch_first=True, norm_first=True)
    theirs.load_state_dict(ours.state_dict())
    ours.train(training)
    theirs.train(training)
    x = torch.randn(2, 3, 5, 32)
    torch.testing.assert_close(ours(x).flatten(1, 2), theirs(x.flatten(1, 2)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("p", [0.05, 0.3, 0.5])
def test_dropout_drops_its_share_and_keeps_the_mean(p: float) -> None:
    torch.manual_seed(0)
    dropout, count = Dropout(p), 400_001  # not a multiple of four
    x = torch.full((count,), 2.0, requires_grad=True)
    out = dropout(x)
    assert set(out.detach().unique().tolist()) == {0.0, torch.tensor(2 / (1 - p)).item()}
    dropped = (out == 0).double()
    assert dropped.mean().item() == pytest.approx(p, abs=5 * (p * (1 - p) / count) ** 0.5)
    neighbours = [(dropped[k:] * dropped[:-k]).mean().item() for k in (1, 2, 3, 4)]  # those of one draw, and the next
    assert neighbours == pytest.approx([p**2] * 4, abs=5 * (p / count) ** 0.5)
    out.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, out.detach() / 2)
    torch.manual_seed(0)
    assert torch.equal(dropout(x), out)
    assert not torch.equal(dropout(x), out)
    assert torch.equal(dropout.eval()(x), x)


@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 1, 1), (3, 1, 5), (1, 4, 1)])
def test_linear_by_convolution_is_linear(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = Linear(6, 10)
    x = torch.randn(*shape, 6, requires_grad=True)
    expected = nn.functional.linear(x, layer.weight, layer.bias)
    found = linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous()
    weights = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad((found * weights).sum(), (x, layer.weight, layer.bias)),
        torch.autograd.grad((expected * weights).sum(), (x, layer.weight, layer.bias)),
    )


def test_positions_tell_rows_from_columns() -> None:
    torch.manual_seed(0)
    network = Transformer(2, 2, inner_dim=8, depth=1, mid_depth=1, num_heads=2).eval()
    table = network.position_encoding(3, 5)
    assert table.shape == (3, 5, 8)
    torch.testing.assert_close(table[2, 4, :4], network.position_encoding.col_embed.weight[4])
    torch.testing.assert_close(table[2, 4, 4:], network.position_encoding.row_embed.weight[2])


def test_frames_larger_than_the_table_are_refused() -> None:
    network = Transformer(1, 1, inner_dim=4, depth=1, mid_depth=1, num_heads=1)
    with pytest.raises(ValueError, match=f"at most {MAX_SIZE} high and wide, not 1 x {MAX_SIZE + 1}"):
        network(torch.zeros(1, 1, 1, MAX_SIZE + 1))


def test_the_published_sizes_have_98_million_parameters() -> None:
    with torch.device("meta"):
        network = Transformer(16, 4, inner_dim=768, depth=4, mid_depth=5, num_heads=8)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == pytest.approx(98e6, rel=0.01)
