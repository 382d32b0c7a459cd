"""A network without masks in 64-bit NumPy, written from the description of the networks: nothing needs compiling."""

import numpy as np

EPSILON = 1e-5


def forward(graph, params, batch_stats, x, batch_statistics=False):
    """Logits of normalised images [n, h, w, c]."""
    x = np.asarray(x, np.float64)
    for block in graph.blocks:
        weights, stats, shape = params[block.name], batch_stats[block.name], block.shape
        act = _relu6 if shape.activation == "relu6" else _relu
        y = x
        for i, layer in enumerate(shape.layers):
            y = act(y) if i else y
            y = _unit(layer, weights, stats, y, batch_statistics)
        if shape.projection is not None:
            x = _unit(shape.projection, weights, stats, x, batch_statistics)
        y = y + x if shape.residual else y
        y = act(y) if shape.activate_output else y
        x = _max_pool(y) if shape.max_pool else y
    return x.mean((1, 2)) @ _wide(params["fc"]["kernel"]) + _wide(params["fc"]["bias"])


def _unit(layer, weights, stats, x, batch_statistics):
    y = convolve(x, weights[layer.name]["kernel"], layer.stride, layer.kind == "depthwise")
    mean, var = _wide(stats[layer.norm]["mean"]), _wide(stats[layer.norm]["var"])
    if batch_statistics:
        mean, var = y.mean((0, 1, 2)), y.var((0, 1, 2))
    norm = weights[layer.norm]
    return (y - mean) / np.sqrt(var + EPSILON) * _wide(norm["scale"]) + _wide(norm["bias"])


def convolve(x, kernel, stride=1, depthwise=False):
    """'SAME' convolution; a depthwise kernel is [size, size, 1, c]."""
    windows, kernel = _windows(_wide(x), len(kernel), stride), _wide(kernel)
    if depthwise:
        return np.einsum("nhwcab,abc->nhwc", windows, kernel[:, :, 0])
    return np.tensordot(windows, kernel, ([3, 4, 5], [2, 0, 1]))


def _windows(x, size, stride, fill=0.0):
    """[n, h', w', c, size, size] with TensorFlow's 'SAME' padding: the odd pixel goes behind."""
    padding = [(0, 0)]
    for side in x.shape[1:3]:
        total = max((-(-side // stride) - 1) * stride + size - side, 0)
        padding.append((total // 2, total - total // 2))
    padded = np.pad(x, [*padding, (0, 0)], constant_values=fill)
    return np.lib.stride_tricks.sliding_window_view(padded, (size, size), (1, 2))[:, ::stride, ::stride]


def _max_pool(x):
    return _windows(x, 3, 2, -np.inf).max((4, 5))


def _relu(x):
    return np.maximum(x, 0)


def _relu6(x):
    return np.clip(x, 0, 6)


def _wide(array):
    return np.asarray(array, np.float64)
