"""Padded heads and channels compute the same, in the fewest parameters."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from hgsp.exports.padding import PaddedTensor, Part, cheapest_num_queries, round_up, smallest_layout

kept_groups = st.lists(st.integers(0, 6), min_size=1, max_size=6).filter(any)


def attention(x, q, k, v, o, num_queries, num_kv, head_dim):
    """Causal grouped-query attention of x [T, H]."""

    def heads(weight, count):
        return (x @ weight.T).view(len(x), count, head_dim).transpose(0, 1)[None]

    mixed = scaled_dot_product_attention(
        heads(q, num_queries), heads(k, num_kv), heads(v, num_kv), is_causal=True, enable_gqa=True
    )
    return mixed[0].transpose(0, 1).reshape(len(x), -1) @ o.T


@given(
    kept=st.integers(1, 4), queries_per_kv=st.integers(1, 4), num_queries=st.integers(1, 24), seed=st.integers(0, 99)
)
def test_padded_heads_compute_the_same_attention(kept, queries_per_kv, num_queries, seed):
    layout = smallest_layout(kept, queries_per_kv, num_queries)
    if layout is None:
        fitting = [
            g for g in range(kept, num_queries + 1) if num_queries % g == 0 and num_queries // g >= queries_per_kv
        ]
        assert not fitting
        return
    torch.manual_seed(seed)
    head_dim, hidden, own = 4, 8, kept * queries_per_kv
    x = torch.randn(5, hidden, dtype=torch.float64)
    stored = {
        name: torch.randn(rows, hidden, dtype=torch.float64)
        for name, rows in (("q", own * head_dim), ("k", kept * head_dim), ("v", kept * head_dim))
    }
    stored["o"] = torch.randn(hidden, own * head_dim, dtype=torch.float64)
    queries, keys = layout.query_positions(kept, queries_per_kv, head_dim), range(kept * head_dim)
    kv_rows = layout.num_kv * head_dim
    padded = {
        "q": PaddedTensor((num_queries * head_dim, hidden), (Part("q", 0, queries),)),
        "k": PaddedTensor((kv_rows, hidden), (Part("k", 0, keys),)),
        "v": PaddedTensor((kv_rows, hidden), (Part("v", 0, keys),)),
        "o": PaddedTensor((hidden, num_queries * head_dim), (Part("o", 1, queries),)),
    }
    built = {name: tensor.build(stored.__getitem__, torch.float64) for name, tensor in padded.items()}
    assert all(tensor.holds(built[name], stored.__getitem__) for name, tensor in padded.items())
    expected = attention(x, **stored, num_queries=own, num_kv=kept, head_dim=head_dim)
    found = attention(x, **built, num_queries=num_queries, num_kv=layout.num_kv, head_dim=head_dim)
    torch.testing.assert_close(found, expected)


@given(kept=kept_groups, queries_per_kv=st.integers(1, 4))
def test_no_other_number_of_query_heads_costs_less(kept, queries_per_kv):
    def heads(num_queries):
        layouts = [smallest_layout(k, queries_per_kv, num_queries) for k in kept if k]
        return None if None in layouts else sum(num_queries + layout.num_kv for layout in layouts)

    chosen = heads(cheapest_num_queries(kept, queries_per_kv, preferred=1))
    others = [cost for n in range(1, 8 * max(kept) * queries_per_kv) if (cost := heads(n)) is not None]
    assert chosen == min(others)


@given(groups=st.integers(1, 8), queries_per_kv=st.integers(1, 8), layers=st.integers(1, 5))
def test_equal_groups_need_no_padding(groups, queries_per_kv, layers):
    num_queries = cheapest_num_queries([groups] * layers, queries_per_kv, preferred=64)
    assert num_queries == groups * queries_per_kv
    assert smallest_layout(groups, queries_per_kv, num_queries) == (num_queries, groups)


def test_of_equally_cheap_numbers_the_preferred_one_is_taken():
    kept = [4, 7]  # N = 7: heads 7 + 7 and 7 + 7; N = 8: 8 + 4 and 8 + 8
    assert [cheapest_num_queries(kept, 1, preferred=n) for n in (7, 8)] == [7, 8]


def test_a_value_in_the_padding_or_another_weight_is_noticed():
    stored = {"w": torch.arange(1.0, 7.0).view(2, 3)}
    tensor = PaddedTensor((4, 3), (Part("w", 0, [0, 2]),))
    built = tensor.build(stored.__getitem__, torch.float32)
    assert built.tolist() == [[1, 2, 3], [0, 0, 0], [4, 5, 6], [0, 0, 0]]
    assert tensor.holds(built, stored.__getitem__)
    for row in range(4):
        wrong = built.clone()
        wrong[row, 1] += 1
        assert not tensor.holds(wrong, stored.__getitem__)
    assert not tensor.holds(built[:3], stored.__getitem__)


def test_a_tensor_without_parts_is_filled():
    tensor = PaddedTensor((3,), fill=1.0)
    built = tensor.build({}.__getitem__, torch.bfloat16)
    assert built.dtype == torch.bfloat16
    assert built.tolist() == [1, 1, 1]
    assert tensor.holds(built, {}.__getitem__)


def test_sizes_are_rounded_up():
    assert [round_up(size, 256) for size in (0, 1, 256, 257)] == [0, 256, 256, 512]
