"""DIST: "Rendering Deep Implicit Signed Distance Function with Differentiable Sphere Tracing" (CVPR 2020).

arXiv:1911.13225. ``distrender.sphere_trace`` finds where rays meet a signed distance function, and sends gradients
back to the function's parameters.
"""

from importlib import import_module

_HOMES = {  # imported when first asked for, since PyTorch takes a second
    "AnalyticSDF": "distrender.analytic",
    "Camera": "distrender.cameras",
    "DecoderConfig": "distrender.decoder",
    "DeepSDFDecoder": "distrender.decoder",
    "GridSDF": "distrender.grid",
    "Hit": "distrender.tracing",
    "MarchOptions": "distrender.tracing",
    "sphere_trace": "distrender.tracing",
    "trace_image": "distrender.pyramid",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'distrender' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
