"""AdderNet: "Do We Really Need Multiplications in Deep Learning?" (CVPR 2020, arXiv:1912.13200).

``addernet.Adder2d`` stands where ``torch.nn.Conv2d`` stood, ``addernet.convert`` puts it there in a whole
network, ``addernet.attach`` gives an optimizer the adaptive local learning rate that such layers need.
"""

from importlib import import_module

_HOMES = {  # imported when first asked for, since PyTorch takes a second
    "ARCHITECTURES": "addernet.architectures",
    "Adder2d": "addernet.layer",
    "adder2d": "addernet.adder",
    "adder2d_reference": "addernet.adder",
    "attach": "addernet.local_rate",
    "build": "addernet.architectures",
    "convert": "addernet.conversion",
    "load": "addernet.checkpoints",
    "quantize": "addernet.quantization",
    "save": "addernet.checkpoints",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'addernet' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
