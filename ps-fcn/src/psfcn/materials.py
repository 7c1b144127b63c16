"""How surfaces reflect: fits of the 100 measured MERL materials, random microfacet materials, and blends of them.

Every material is isotropic, so its BRDF depends on four cosines: n·l, n·v, n·h and l·h, with h halfway between the
light l and the viewer v. It is a diffuse part rho / pi plus ``specular(...)``, in 1 / steradian, for R, G and B.

- :class:`SGD`: Bagher, Soler, Holzschuch, "Accurate fitting of measured reflectances using a Shifted Gamma
  micro-facet distribution", EGSR 2012; the parameters are the authors'.
- :class:`ABC`: Löw, Kronander, Ynnerman, Unger, "BRDF models for accurate and efficient rendering of glossy
  surfaces", ACM TOG 31(1), 2012, its microfacet form.
- :class:`GGX`: Walter et al., "Microfacet models for refraction through rough surfaces", EGSR 2007, with Schlick's
  Fresnel term.

``merl_fits.json`` beside this file holds the fits' parameters (origin: its first line). The materials at the sorted
positions 0, 5, .. 95 are the test set and never trained on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources

import numpy as np

GRAZING = 1e-3  # smallest cosine to divide by
LARGE = 4.0  # e^e^4 is far past where the lambda of any fit brings G1 to zero, and still a float32


def half_cosines(normals_z: np.ndarray, n_dot_l: np.ndarray, light_z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """n·h and l·h for the viewer v = (0, 0, 1): |l + v| = 2 l·h, so no half vector is ever formed.

    Args:
        normals_z: n·v.
        n_dot_l: n·l.
        light_z: l·v.
    """
    length = np.sqrt(2 + 2 * light_z)
    return np.minimum((n_dot_l + normals_z) / length, 1), np.minimum(length / 2, 1)


@dataclass(frozen=True)
class SGD:
    """A shifted gamma distribution of microfacets; every field ``[3]`` float32, for R, G, B, named as in the paper."""

    name: str
    rho_d: np.ndarray
    rho_s: np.ndarray
    alpha: np.ndarray
    p: np.ndarray
    f0: np.ndarray
    f1: np.ndarray
    kappa: np.ndarray
    lamda: np.ndarray
    c: np.ndarray
    k: np.ndarray
    theta0: np.ndarray

    def specular(self, n_l: np.ndarray, n_v: np.ndarray, n_h: np.ndarray, l_h: np.ndarray) -> np.ndarray:
        """The paper's specular term: rho_s / pi * F D G1(l) G1(v) / (n·l n·v).

        Args:
            n_l: ``[N]`` cosines n·l, over 0.
            n_v: n·v, over 0.
            n_h: n·h.
            l_h: l·h, which is v·h.

        Returns:
            ``[N, 3]`` in 1 / steradian.
        """
        masking = self._g1(n_l) * self._g1(n_v)
        below = np.maximum(n_l, GRAZING) * np.maximum(n_v, GRAZING) * np.pi
        return self.rho_s * self._fresnel(l_h) * self._distribution(n_h) * masking / below[:, None]

    def _distribution(self, n_h: np.ndarray) -> np.ndarray:
        """D: kappa e^-x / (x^p pi cos^4), x = alpha + tan^2 / alpha; kappa makes it integrate to 1."""
        cos2 = np.square(np.maximum(n_h, GRAZING))[:, None]
        x = self.alpha + (1 - cos2) / cos2 / self.alpha
        return self.kappa / np.pi * np.exp(-x - self.p * np.log(x)) / np.square(cos2)

    def _fresnel(self, l_h: np.ndarray) -> np.ndarray:
        """F: f0 - cos f1 + (1 - f0)(1 - cos)^5, a Schlick term with one more degree of freedom."""
        # Some fits dip below zero between the angles that were measured.
        cosine = l_h[:, None]
        return np.maximum(self.f0 - cosine * self.f1 + (1 - self.f0) * (1 - cosine) ** 5, 0)

    def _g1(self, cosine: np.ndarray) -> np.ndarray:
        """G1: 1 + lambda (1 - e^(c max(theta - theta0, 0)^k)), within [0, 1]."""
        angle = np.maximum(np.arccos(np.clip(cosine, 0, 1))[:, None] - self.theta0, 1e-12)
        exponent = np.exp(np.minimum(self.k * np.log(angle) + np.log(self.c), LARGE))
        return np.clip(1 + self.lamda * (1 - np.exp(exponent)), 0, 1)


@dataclass(frozen=True)
class ABC:
    """A microfacet material whose distribution is A / (1 + B (1 - cos))^C; ``rho_d`` and ``a`` ``[3]`` float32."""

    name: str
    rho_d: np.ndarray
    a: np.ndarray
    b: float
    c: float
    ior: float

    def specular(self, n_l: np.ndarray, n_v: np.ndarray, n_h: np.ndarray, l_h: np.ndarray) -> np.ndarray:
        """F D G / (pi n·l n·v) with Fresnel's equations and the V-groove G; see :meth:`SGD.specular`."""
        distribution = (1 + self.b * (1 - n_h)) ** -self.c
        # Light refracted at l_h, s and p polarised (Fresnel's equations without absorption).
        g = np.sqrt(self.ior**2 - 1 + l_h**2)
        s = ((g - l_h) / (g + l_h)) ** 2
        fresnel = s / 2 * (1 + ((l_h * (g + l_h) - 1) / (l_h * (g - l_h) + 1)) ** 2)
        groove = np.minimum(1, 2 * n_h * np.minimum(n_l, n_v) / np.maximum(l_h, GRAZING))
        below = np.pi * np.maximum(n_l, GRAZING) * np.maximum(n_v, GRAZING)
        return self.a * (distribution * fresnel * groove / below)[:, None]


@dataclass(frozen=True)
class GGX:
    """Trowbridge-Reitz microfacets over a diffuse base; ``rho_d`` and ``f0`` ``[3]`` float32, ``alpha`` roughness."""

    name: str
    rho_d: np.ndarray
    f0: np.ndarray
    alpha: float

    def specular(self, n_l: np.ndarray, n_v: np.ndarray, n_h: np.ndarray, l_h: np.ndarray) -> np.ndarray:
        """F D G / (4 n·l n·v), eqs. (20), (33), (34); see :meth:`SGD.specular`."""
        a2 = self.alpha**2
        distribution = a2 / (np.pi * np.square(np.square(n_h) * (a2 - 1) + 1))
        fresnel = self.f0 + (1 - self.f0) * ((1 - l_h) ** 5)[:, None]
        # G1(x) / x = 2 / (x + sqrt(a2 + (1 - a2) x^2)) on both sides
        visible = 1 / (n_l + np.sqrt(a2 + (1 - a2) * n_l**2)) / (n_v + np.sqrt(a2 + (1 - a2) * n_v**2))
        return fresnel * (distribution * visible)[:, None]


Material = SGD | ABC | GGX


def brdf(material: Material, n_l: np.ndarray, n_v: np.ndarray, n_h: np.ndarray, l_h: np.ndarray) -> np.ndarray:
    """The whole BRDF, ``[N, 3]`` in 1 / steradian, at ``[N]`` cosines (see :meth:`SGD.specular`)."""
    return material.rho_d / np.float32(np.pi) + material.specular(n_l, n_v, n_h, l_h)


@cache
def _fits() -> dict[str, dict[str, dict]]:
    return json.loads(resources.files("psfcn").joinpath("merl_fits.json").read_text())


def names(split: str) -> list[str]:
    """The measured materials to train on (80), or the ``test`` set (20), sorted."""
    every = sorted(_fits()["sgd"])
    return every[::5] if split == "test" else [name for i, name in enumerate(every) if i % 5]


@cache
def measured(name: str, family: str = "sgd") -> SGD | ABC:
    """The fit of a MERL material.

    Args:
        name: one of :func:`names`.
        family: ``sgd`` (closer to the measurements) or ``abc``.
    """
    fit = _fits()[family][name]
    if family == "abc":
        return ABC(f"abc:{name}", _rgb(fit["kD"]), _rgb(fit["A"]), fit["B"], fit["C"], fit["ior"])
    keys = ("rhoD", "rhoS", "alpha", "p", "f0", "f1", "kap", "lambda", "c", "k", "theta0")
    return SGD(f"sgd:{name}", *(_rgb(fit[key]) for key in keys))


def random_ggx(rng: np.random.Generator) -> GGX:
    """A diffuse (1 in 6), plastic-like (1 in 2) or metal-like material with a random colour and roughness."""
    kind = rng.choice(["diffuse", "plastic", "metal"], p=[1 / 6, 1 / 2, 1 / 3])
    alpha = float(np.exp(rng.uniform(np.log(0.03), np.log(0.6))))
    colour = random_colour(rng)
    if kind == "diffuse":
        return GGX("ggx:diffuse", colour, np.zeros(3, np.float32), 1.0)
    if kind == "metal":
        base = colour * np.float32(rng.uniform(0, 0.1))
        return GGX(f"ggx:metal-{alpha:.2f}", base, np.float32(0.3) + np.float32(0.7) * colour, alpha)
    # Dielectrics reflect 2 to 8 % head on; dark ones show little else.
    f0 = np.full(3, rng.uniform(0.02, 0.08), np.float32)
    return GGX(f"ggx:plastic-{alpha:.2f}", colour, f0, alpha)


def random_colour(rng: np.random.Generator) -> np.ndarray:
    """``[3]`` linear RGB: a grey, or a hue of any saturation; brightness 0.02 to 0.95."""
    brightness = np.exp(rng.uniform(np.log(0.02), np.log(0.95)))
    tint = 1 - rng.uniform(0, 1) * rng.uniform(0, 1, 3)
    return (brightness * tint / tint.max()).astype(np.float32)


def recoloured(rng: np.random.Generator, material: SGD | ABC) -> SGD | ABC:
    """A measured material with other paint: its diffuse colour drawn anew around its own brightness."""
    brightness = float(material.rho_d.mean()) * np.exp(rng.normal(0, 0.5))
    colour = random_colour(rng)
    rho_d = np.minimum(colour / colour.mean() * brightness, 0.95).astype(np.float32)
    return replace(material, name=f"{material.name}+paint", rho_d=rho_d)


def _rgb(values: list[float]) -> np.ndarray:
    return np.array(values, np.float32)
