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
        octaves: how many times the frequency doubles; every octave has half the last one's amplitude.
        channels: values at each point, independent of one another.
    """

    def __init__(self, rng: np.random.Generator, frequency: float, octaves: int = 1, channels: int = 1) -> None:
        shape = (octaves, channels, WAVES)
        directions = rng.standard_normal((*shape, 3))
        directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
        octave = 2.0 ** np.arange(octaves)[:, None, None]
        lengths = 2 * np.pi * frequency * octave * rng.uniform(0.7, 1.3, shape)
        amplitudes = 1 / octave / np.sqrt(np.sum(1 / octave**2) * WAVES / 2)
        self.waves = (directions * lengths[..., None]).transpose(1, 0, 2, 3).reshape(channels, -1, 3)
        self.phases = rng.uniform(0, 2 * np.pi, shape).transpose(1, 0, 2).reshape(channels, -1)
        self.amplitudes = np.broadcast_to(amplitudes, shape).transpose(1, 0, 2).reshape(channels, -1)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """``[N, 3]`` points to ``[N, channels]`` float32."""
        points = points.astype(np.float32)
        return np.stack(
            [
                np.sin(points @ waves.T.astype(np.float32) + phases.astype(np.float32)) @ amplitudes.astype(np.float32)
                for waves, phases, amplitudes in zip(self.waves, self.phases, self.amplitudes, strict=True)
            ],
            axis=1,
        )
