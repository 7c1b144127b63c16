"""Where the lights of a capture stand: over the half sphere, in a cone of 45 degrees, or in rings.

Directions are unit vectors towards the lights, x right, y up, z to the viewer. PS-FCN was trained on lights spread
over the half sphere (section 5.1); real captures with a hand-held lamp have them close together.
"""

from __future__ import annotations

import numpy as np

LOWEST = 10.0  # degrees above the image plane: below, nothing but rims is lit
CONE = 45.0  # degrees between the axis of clustered lights and each of them
INTENSITIES = (0.2, 2.0)  # LCNet's range


def half_sphere(rng: np.random.Generator, count: int) -> np.ndarray:
    """``[count, 3]`` lights spread evenly over the half sphere in front of the object: jittered Fibonacci points."""
    lowest = np.sin(np.deg2rad(LOWEST))
    z = lowest + (1 - lowest) * (np.arange(count) + rng.uniform(0, 1, count)) / count
    golden = np.pi * (3 - np.sqrt(5))
    azimuth = golden * np.arange(count) + rng.uniform(0, 2 * np.pi) + rng.normal(0, 0.15, count)
    return _from_angles(azimuth, z)


def clustered(rng: np.random.Generator, count: int) -> np.ndarray:
    """``[count, 3]`` lights that all lie within 45 degrees of one axis, evenly over that cap."""
    axis = _from_angles(rng.uniform(0, 2 * np.pi, 1), rng.uniform(np.cos(np.deg2rad(50)), 1, 1))[0]
    lights: list[np.ndarray] = []
    while len(lights) < count:
        z = rng.uniform(np.cos(np.deg2rad(CONE)), 1)
        light = _turned_to(axis, _from_angles(rng.uniform(0, 2 * np.pi, 1), np.array([z]))[0])
        if light[2] > np.sin(np.deg2rad(LOWEST)):
            lights.append(light)
    return np.stack(lights).astype(np.float32)


def rings(rng: np.random.Generator, count: int) -> np.ndarray:
    """``[count, 3]`` lights on one to three circles around the camera, as fixed domes have them."""
    number = int(rng.integers(1, 4)) if count >= 12 else 1
    heights = np.sin(np.deg2rad(np.sort(rng.uniform(20, 70, number))))
    ring = np.arange(count) % number
    on_ring = np.arange(count) // number
    counts = np.bincount(ring, minlength=number)
    azimuth = 2 * np.pi * (on_ring / counts[ring] + rng.uniform(0, 1, number)[ring])
    return _from_angles(azimuth, heights[ring])


def spread_first(lights: np.ndarray) -> np.ndarray:
    """The same lights, ordered so that the first 8, 16 or any number of them are spread like all of them.

    Each is the farthest from those before it, beginning with the one nearest to the camera.
    """
    order = [int(lights[:, 2].argmax())]
    nearest = lights @ lights[order[0]]  # cosine to the closest one chosen
    while len(order) < len(lights):
        nearest[order[-1]] = np.inf
        order.append(int(nearest.argmin()))
        nearest = np.maximum(nearest, lights @ lights[order[-1]])
    return lights[order]


def draw_intensities(rng: np.random.Generator, count: int) -> np.ndarray:
    """``[count, 3]`` intensities as LCNet is trained on: U(0.2, 2), the same in red, green and blue."""
    return np.repeat(rng.uniform(*INTENSITIES, (count, 1)), 3, axis=1).astype(np.float32)


def _from_angles(azimuth: np.ndarray, z: np.ndarray) -> np.ndarray:
    radius = np.sqrt(np.maximum(1 - z**2, 0))
    return np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth), z], axis=1).astype(np.float32)


def _turned_to(axis: np.ndarray, light: np.ndarray) -> np.ndarray:
    """The light after the rotation that takes z to the axis (Householder's reflection through their middle)."""
    middle = axis + np.array([0, 0, 1], np.float32)
    return 2 * middle * (middle @ light) / (middle @ middle) - light
