"""PS-FCN and LCNet: "Deep Photometric Stereo for Non-Lambertian Surfaces" (TPAMI 2020), arXiv:2007.13145.

``psfcn.read`` takes a capture from its files, ``psfcn.estimate`` finds its normals, albedo and confidence, by a network
from ``psfcn.load`` or without one; ``psfcn.solve`` is the classical methods on arrays, ``psfcn.PSFCN`` the network.
"""

from importlib import import_module

_HOMES = {  # imported when first asked for, since PyTorch takes a second
    "Capture": "psfcn.captures",
    "Estimate": "psfcn.estimation",
    "LCNet": "psfcn.lcnet",
    "Options": "psfcn.render_options",
    "PSFCN": "psfcn.networks",
    "Perspective": "psfcn.integration",
    "ReadOptions": "psfcn.captures",
    "Sample": "psfcn.samples",
    "decode": "psfcn.lcnet",
    "default_weights": "psfcn.checkpoints",
    "estimate": "psfcn.estimation",
    "find_lights": "psfcn.estimation",
    "integrate": "psfcn.integration",
    "load": "psfcn.checkpoints",
    "normalise_images": "psfcn.networks",
    "predict_normals": "psfcn.prediction",
    "read": "psfcn.captures",
    "read_lights": "psfcn.light_files",
    "render_sample": "psfcn.rendering",
    "save": "psfcn.checkpoints",
    "solve": "psfcn.classical",
    "train": "psfcn.training",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'psfcn' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
