"""Turn frames of high dynamic range (HDR) into the standard range (SDR) that backbones and screens expect.

Transfer functions and the light of an HLG screen are those of ITU-R BT.2100, for a screen of 1000 cd/m2; more light is
clipped. White of the standard range is 203 cd/m2 (ITU-R BT.2408). Bright light is rolled off with the curve of ITU-R
BT.2390 (5.4.1), which leaves light below 89 cd/m2 unchanged and makes white 230 of 255. The curve is applied to the
largest of R, G and B, so that a colour keeps its hue. Colours outside of BT.709 are clipped. The result is sRGB.

FFmpeg's own filters for this (zscale, libplacebo) are not in PyAV's build.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

PQ, HLG = 16, 18
"""Transfer characteristics of ITU-T H.273: SMPTE ST 2084 and ARIB STD-B67."""
_BT709 = 1  # colour primaries of H.273; HDR has those of BT.2020 unless these are stated
_PEAK, _WHITE = 1000.0, 203.0  # cd/m2
_HLG_GAMMA = 1.2  # of a screen of 1000 cd/m2
_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)  # of BT.2020
# Rows: R, G and B of BT.709 from those of BT.2020 (ITU-R BT.2087).
_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]],
    np.float32,
)


def to_sdr(rgb_HW3: npt.NDArray[Any], transfer: int, primaries: int) -> npt.NDArray[np.uint8]:
    """Return sRGB of the standard range.

    Args:
        rgb_HW3: the signal, 16 bit (uint16).
        transfer: PQ or HLG.
        primaries: colour primaries of H.273.
    """
    light: Floats = _signal_to_light(transfer)[rgb_HW3]
    if transfer == HLG:
        light *= _PEAK * np.maximum(light @ _LUMINANCE, 1e-9)[..., None] ** np.float32(_HLG_GAMMA - 1)
    np.minimum(light, _PEAK, out=light)
    brightest = light.max(axis=-1)
    steps = (brightest / np.float32(_PEAK)) ** np.float32(0.25) * (len(_roll_off()) - 1)
    light *= _roll_off()[np.rint(steps).astype(np.int32)][..., None]
    if primaries != _BT709:
        light = light @ _TO_BT709.T
    linear = np.clip(light / np.float32(_WHITE), 0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** np.float32(1 / 2.4) - 0.055)
    levels: npt.NDArray[np.uint8] = np.rint(srgb * 255).astype(np.uint8)
    return levels


@lru_cache(maxsize=2)
def _signal_to_light(transfer: int) -> Floats:
    """Return the light of each 16-bit signal: of PQ in cd/m2, of HLG that of the scene, 0 to 1."""
    signal = np.arange(2**16) / (2**16 - 1)
    if transfer == PQ:
        light: Floats = _from_pq(signal).astype(np.float32)
        return light
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    light = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12).astype(np.float32)
    return light


@lru_cache(maxsize=1)
def _roll_off() -> Floats:
    """Return the factor by which the curve of BT.2390 changes light, for steps of the fourth root of light / peak."""
    light = np.linspace(0, 1, 4097)[1:] ** 4 * _PEAK
    level, limit = _to_pq(light) / _to_pq(_PEAK), _to_pq(_WHITE) / _to_pq(_PEAK)
    knee = 1.5 * limit - 0.5
    t = np.maximum(level - knee, 0) / (1 - knee)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * limit
    rolled = _from_pq(np.where(level < knee, level, spline) * _to_pq(_PEAK))
    return np.concatenate([[1.0], rolled / light]).astype(np.float32)


_M1, _M2, _C1, _C2, _C3 = 2610 / 16384, 2523 / 4096 * 128, 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32


def _from_pq(signal: Any) -> Any:
    """Return cd/m2 of PQ signals from 0 to 1 (BT.2100, table 4)."""
    power = np.power(signal, 1 / _M2)
    return 10000 * np.power(np.maximum(power - _C1, 0) / (_C2 - _C3 * power), 1 / _M1)


def _to_pq(light: Any) -> Any:
    """Return the PQ signals of cd/m2 (BT.2100, table 4)."""
    power = np.power(np.asarray(light) / 10000, _M1)
    return np.power((_C1 + _C2 * power) / (1 + _C3 * power), _M2)
