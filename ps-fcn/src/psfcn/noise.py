"""Smooth random functions of space: sums of plane waves, as in shapes' bumps and materials' patterns.

A wave sin(w · x + phase) with w of length 2 pi f runs through f periods in a unit of length. Summed over random
directions and phases, with frequencies around f, waves give noise without a grid, cheap at the few points of a mesh.
"""

from __future__ import annotations

import numpy as np

WAVES = 12  # of one octave; fewer show as stripes


class Noise:
    """A smooth random function R^3 -> R^channels of about unit variance, fixed by the generator's state.

    Args:
        rng: what it is drawn from.
        frequency: periods in a unit of length.
        octaves: the sum of so many, each with twice the frequency of the last one.
        falloff: what each octave's amplitude is of the last one's.
        channels: values at each point, independent of one another.
    """

    def __init__(
        self, rng: np.random.Generator, frequency: float, octaves: int = 1, falloff: float = 0.5, channels: int = 1
    ) -> None:
        shape = (octaves, channels, WAVES)
        directions = rng.standard_normal((*shape, 3))
        directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
        octave = np.arange(octaves)[:, None, None]
        lengths = 2 * np.pi * frequency * 2.0**octave * rng.uniform(0.7, 1.3, shape)
        amplitudes = falloff**octave / np.sqrt(np.sum(falloff ** (2 * octave)) * WAVES / 2)
        waves = (directions * lengths[..., None]).transpose(1, 3, 0, 2).reshape(channels, 3, -1)
        self.waves = waves.astype(np.float32)
        self.phases = rng.uniform(0, 2 * np.pi, (channels, waves.shape[2])).astype(np.float32)
        self.amplitudes = np.repeat(amplitudes.ravel(), WAVES).astype(np.float32)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """``[N, 3]`` points to ``[N, channels]`` float32."""
        points = points.astype(np.float32)
        return np.stack(
            [np.sin(points @ w + p) @ self.amplitudes for w, p in zip(self.waves, self.phases, strict=True)], axis=1
        )
