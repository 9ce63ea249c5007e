"""Layers to chunks of a pipeline: every layer once, loads as even as they can be."""

from __future__ import annotations

import pytest

from megatron_r1.parallel.pipeline_split import chunk_starts, split_layers


def test_deepseek_v3_over_16_stages():
    # 61 layers, embedding and loss: 63 of 16 x 4. The last stage, with the loss, is the lighter.
    assert split_layers(61, 16) == [3] + [4] * 14 + [2]
    # With the prediction layer it is 64: all stages carry 4.
    assert split_layers(61, 16, num_mtp_layers=1) == [3] + [4] * 14 + [2]
    assert split_layers(61, 32, num_mtp_layers=1) == [1] + [2] * 29 + [1, 1]


@pytest.mark.parametrize("num_mtp_layers", [0, 1])
@pytest.mark.parametrize("num_chunks", [1, 2, 3, 4, 7])
def test_loads_differ_by_one_layer_unless_one_layer_is_already_too_much(num_chunks, num_mtp_layers):
    for num_layers in range(num_chunks, 30):
        layers = split_layers(num_layers, num_chunks, num_mtp_layers=num_mtp_layers)
        assert sum(layers) == num_layers and min(layers) >= 1 and len(layers) == num_chunks
        load = list(layers)
        load[0] += 1
        load[-1] += 1 + num_mtp_layers
        heaviest = max(range(num_chunks), key=load.__getitem__)
        assert load[heaviest] - min(load) <= 1 or layers[heaviest] == 1, layers


def test_chunks_start_where_the_one_before_ends():
    assert chunk_starts([3, 4, 2]) == [0, 3, 7]


def test_fewer_layers_than_chunks_is_an_error():
    with pytest.raises(ValueError, match="3 layers cannot be split into 4 chunks"):
        split_layers(3, 4)
