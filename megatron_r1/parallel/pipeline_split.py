"""Which layers each model chunk of a pipeline gets. Pure: from numbers to numbers."""

from __future__ import annotations

from megatron_r1.config.model import ModelConfig
from megatron_r1.config.parallel import ParallelConfig


def layers_per_chunk(model: ModelConfig, parallel: ParallelConfig) -> list[int]:
    """Decoder layers of each chunk of the pipeline, in the order of the model."""
    if parallel.pipeline_layers is not None:
        return list(parallel.pipeline_layers)
    return split_layers(model.num_layers, parallel.num_chunks, num_mtp_layers=model.num_mtp_layers)


def split_layers(num_layers: int, num_chunks: int, *, num_mtp_layers: int = 0) -> list[int]:
    """Layers of each chunk, in the order of the model; no chunk is empty.

    The embedding weighs on the first chunk, the loss and the prediction layers on the last one, as
    one layer each (the head of DeepSeek-V3, 0.9 B weights, costs more than one of its layers does
    per token). Of chunks with an equal load the earlier gets the layer.

    Raises:
        ValueError: there are fewer layers than chunks.
    """
    if num_layers < num_chunks:
        raise ValueError(f"{num_layers} layers cannot be split into {num_chunks} chunks")
    layers = [1] * num_chunks
    load = [1] * num_chunks
    load[0] += 1
    load[-1] += 1 + num_mtp_layers
    for _ in range(num_layers - num_chunks):
        lightest = load.index(min(load))
        layers[lightest] += 1
        load[lightest] += 1
    return layers


def chunk_starts(layers: list[int]) -> list[int]:
    """The first layer (from 0) of each chunk."""
    return [sum(layers[:chunk]) for chunk in range(len(layers))]
