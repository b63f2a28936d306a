"""Gradients on fake CUDA tensors, which torch cannot take where there is no GPU."""

import torch

import captum_clustered.explainers.base as explainer


def let_gradients_be_ones(monkeypatch):
    """Only the way back is replaced: the forward pass and what follows are the package's own."""

    def stand_in(forward, layer, inputs, *, attribute_to_layer_input, output_fn, grad_kwargs):
        kept = []

        def hook(_, __, output):
            kept.append(output)

        hook.__module__ = "captum"  # whose hooks are left where they are
        handle = layer.register_forward_hook(hook)
        try:
            with torch.enable_grad():
                forward(inputs)
        finally:
            handle.remove()
        output_fn(tuple(kept))
        return [torch.ones_like(tensor) for tensor in kept], None

    monkeypatch.setattr(explainer, "compute_layer_gradients_and_eval", stand_in)
