"""The definitions: plain PyTorch, on any device, in float64 where it is given float64."""
