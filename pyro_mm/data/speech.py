"""Sounds like spoken digits, from a model of the voice: no recording, any number, every one different.

A word is a chain of phones.  Voiced ones start at the glottis, whose flow opens and closes once per period (Rosenberg
1971), and pass through the vocal tract: one two-pole resonator for each of the formants F1 to F3, whose frequencies
glide from phone to phone (Klatt 1980).  Hisses and bursts are white noise through one broad resonator; the stop before
a burst is silence.  A resonator of centre F and bandwidth B, at r samples per second, is

    y[n] = a x[n] + b y[n-1] + c y[n-2],    c = -exp(-2 pi B / r),    b = 2 exp(-pi B / r) cos(2 pi F / r),

with a = 1 - b - c, so that a constant passes unchanged.  Every sound has a speaker of its own: pitch and its melody,
length of the vocal tract (which scales all formants), tempo, loudness, and when the word begins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["PHONES", "WORDS", "Phone", "glottis", "resonator", "spoken_digits", "vowel"]


@dataclass(frozen=True)
class Phone:
    """One sound of speech.

    Attributes:
        formants: F1, F2, F3 in Hz, of a middling voice; none if the voice is silent.
        voice: amplitude of the voice.
        noise: amplitude of the noise.
        centre, width: of the noise, in Hz.
    """

    formants: tuple[float, float, float] | None
    voice: float = 1.0
    noise: float = 0.0
    centre: float = 2500.0
    width: float = 3000.0


PHONES = {
    "ee": Phone((280, 2250, 2900)),
    "i": Phone((400, 1980, 2550)),
    "e": Phone((530, 1840, 2480)),
    "a": Phone((740, 1150, 2440)),
    "u": Phone((640, 1190, 2390)),
    "aw": Phone((570, 840, 2410)),
    "oo": Phone((310, 870, 2240)),
    "ew": Phone((330, 1600, 2300), 0.9),
    "w": Phone((300, 650, 2200), 0.6),
    "r": Phone((340, 1150, 1500), 0.7),
    "n": Phone((270, 1500, 2500), 0.45),
    "v": Phone((260, 1100, 2100), 0.35, 0.03),
    "z": Phone((270, 1700, 2550), 0.3, 0.2, 3500, 700),
    "s": Phone(None, 0, 0.3, 3500, 900),
    "f": Phone(None, 0, 0.07),
    "th": Phone(None, 0, 0.05, 3000, 1800),
    "t": Phone(None, 0, 0.3, 3300, 1200),
    "k": Phone(None, 0, 0.3, 1900, 500),
    "-": Phone(None, 0),
}
WORDS = (
    "z 70 i 60 r 70 aw 120 oo 100",
    "w 70 u 120 n 110",
    "t 30 ew 50 oo 190",
    "th 90 r 70 ee 200",
    "f 100 aw 160 r 110",
    "f 100 a 140 i 90 v 80",
    "s 120 i 90 - 55 k 25 s 130",
    "s 110 e 100 v 55 u 60 n 100",
    "e 100 ee 90 - 65 t 45",
    "n 80 a 150 i 90 n 100",
)
"""The digits 0 to 9: phones and their milliseconds."""

BANDWIDTHS = (70.0, 100.0, 160.0)
CONTROL = 200  # settings of the resonators per second
AT_ONCE = 250  # sounds: bounds the memory
PITCH, TRACT = (85.0, 240.0), (0.9, 1.18)
"""Hz of the lowest and the highest voice, and the factors on the formants of the longest and the shortest tract."""
TEMPO, LENGTHS, SHIFT = (0.8, 1.25), 0.2, 0.06
"""Factors on a word's duration, the most a phone's share of it changes, and the most seconds it lies off the middle."""
LOUDNESS = (0.2, 0.95)  # of the largest sample


@dataclass(frozen=True)
class _Tracks:
    """Settings at `CONTROL` per second, `(CONTROL, N)` each, formants and bandwidths `(3, CONTROL, N)`."""

    pitch: np.ndarray
    formants: np.ndarray
    bandwidths: np.ndarray
    voice: np.ndarray
    noise: np.ndarray
    centre: np.ndarray
    width: np.ndarray


def spoken_digits(labels: np.ndarray, seed: int, rate: int = 8000) -> np.ndarray:
    """A second of sound for each of the classes `labels` (N,), each by another voice: `(N, rate)` float32 in [-1, 1].

    The same labels, seed and rate give the same sounds.

    Raises:
        ValueError: `labels` is not (N,) of integers 0 to 9, or the rate is unfit.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not np.isin(labels, range(10)).all():
        raise ValueError(f"sound: labels must be (N,) integers 0..9, got {labels.dtype} of shape {labels.shape}")
    _check(rate)
    random = np.random.RandomState((seed, 2))  # whose streams are the same in every version of numpy
    parts = [labels[i : i + AT_ONCE] for i in range(0, len(labels), AT_ONCE)]
    return np.concatenate([np.zeros((0, rate), np.float32), *(_spoken(part, random, rate) for part in parts)])


def vowel(formants: tuple[float, float, float], pitch: float, rate: int = 8000) -> np.ndarray:
    """One second `(rate,)` of a voice that holds these formants and this pitch, both in Hz, with power 1."""
    _check(rate)
    steady = np.ones((CONTROL, 1))
    return _voiced(pitch * steady, _over(formants, steady), _over(BANDWIDTHS, steady), rate)[:, 0]


def glottis(pitch: np.ndarray, rate: int) -> np.ndarray:
    """The change of the glottis' flow from sample to sample, `(T, N)`, at a pitch `(T, N)` in Hz.

    In each period the flow rises for 0.4 of it, falls for 0.16, and then rests.
    """
    phase = np.cumsum(pitch / rate, 0) % 1
    rise, fall = 0.5 - 0.5 * np.cos(np.pi / 0.4 * phase), np.cos(np.pi / 0.32 * (phase - 0.4))
    flow = np.where(phase < 0.4, rise, np.where(phase < 0.56, fall, 0))
    return np.diff(flow, axis=0, prepend=0)


def resonator(x: np.ndarray, centre: np.ndarray, width: np.ndarray, rate: int) -> np.ndarray:
    """The waves x `(T, N)` through resonators with centres and bandwidths `(F, N)` Hz, held for T / F samples each."""
    a, b, c = _coefficients(centre, width, rate)
    hold = len(x) // len(centre)
    y = np.repeat(a, hold, 0) * x
    last = before = np.zeros(x.shape[1])
    for f in range(len(centre)):
        for now in y[f * hold : (f + 1) * hold]:  # rows of y itself
            now += b[f] * last + c[f] * before
            last, before = now, last
    return y


def _coefficients(centre: np.ndarray, width: np.ndarray, rate: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    c = -np.exp(-2 * np.pi * width / rate)
    b = 2 * np.exp(-np.pi * width / rate) * np.cos(2 * np.pi * centre / rate)
    return 1 - b - c, b, c


def _spoken(labels: np.ndarray, random: np.random.RandomState, rate: int) -> np.ndarray:
    tracks = _tracks(labels, random)
    voice = _voiced(tracks.pitch, tracks.formants, tracks.bandwidths, rate)
    noise = resonator(random.standard_normal((rate, len(labels))), tracks.centre, tracks.width, rate)
    noise /= np.repeat(_deviation(tracks.centre, tracks.width, rate), rate // CONTROL, 0)
    wave = _fine(tracks.voice, rate) * voice + _fine(tracks.noise, rate) * noise
    wave *= random.uniform(*LOUDNESS, len(labels)) / np.abs(wave).max(0)
    return np.ascontiguousarray(wave.T, np.float32)


def _voiced(pitch: np.ndarray, formants: np.ndarray, bandwidths: np.ndarray, rate: int) -> np.ndarray:
    """A voice `(rate, N)` that never rests, with power 1."""
    wave = glottis(_fine(pitch, rate), rate)
    for centre, width in zip(formants, bandwidths, strict=True):
        wave = resonator(wave, centre, width, rate)
    return wave / np.sqrt((wave**2).mean(0))


def _deviation(centre: np.ndarray, width: np.ndarray, rate: int) -> np.ndarray:
    """The standard deviation of white noise of power 1 behind a resonator."""
    a, b, c = _coefficients(centre, width, rate)
    return a * np.sqrt((1 - c) / ((1 + c) * ((1 - c) ** 2 - b**2)))


def _tracks(labels: np.ndarray, random: np.random.RandomState) -> _Tracks:
    """A speaker and a way to say it for every word."""
    n = len(labels)

    def drawn(low: float, high: float, *more: int) -> np.ndarray:
        return random.uniform(low, high, (*more, n))

    high = drawn(0, 1)  # a high voice has a short tract, on the whole
    base = PITCH[0] * (PITCH[1] / PITCH[0]) ** high
    tract = TRACT[0] + (TRACT[1] - TRACT[0]) * (0.7 * high + 0.3 * drawn(0, 1))
    tempo, shift = drawn(*TEMPO), drawn(-SHIFT, SHIFT)
    lengths = drawn(1 - LENGTHS, 1 + LENGTHS, max(len(w.split()) // 2 for w in WORDS))
    columns = [_word(c, *how) for c, *how in zip(labels.tolist(), tempo, shift, lengths.T, strict=True)]
    place, *settings = (np.stack(c, -1) for c in zip(*columns, strict=True))
    formants, voice, noise, centre, width = settings
    fall, hump = drawn(1, 7), drawn(-2, 3)  # semitones
    pitch = base * 2 ** ((fall * (0.5 - place) + hump * np.sin(np.pi * place)) / 12)
    formants = formants * tract * drawn(0.95, 1.05, 3, 1)
    bandwidths = _over(BANDWIDTHS, np.ones((CONTROL, n))) * drawn(0.8, 1.5, 3, 1)
    return _Tracks(pitch, formants, bandwidths, voice, noise * np.exp(drawn(-0.5, 0.5)), centre, width)


def _word(label: int, tempo: float, shift: float, lengths: np.ndarray) -> tuple[np.ndarray, ...]:
    """Place in the word (0 to 1) `(CONTROL,)`, formants `(3, CONTROL)`, and the four other settings `(CONTROL,)`."""
    parts = WORDS[label].split()
    phones = [PHONES[name] for name in parts[::2]]
    seconds = np.array(parts[1::2], float) / 1000 * tempo * lengths[: len(phones)]
    ends = np.cumsum(seconds) + (1 - seconds.sum()) / 2 + shift
    t = (np.arange(CONTROL) + 0.5) / CONTROL
    begin = ends[0] - seconds[0]
    place = np.clip((t - begin) / (ends[-1] - begin), 0, 1)
    # Formants stand still in the middle half of a voiced phone and move evenly from one to the next.
    sung = [i for i, p in enumerate(phones) if p.formants is not None]
    knots = (ends[sung, None] - seconds[sung, None] * [0.75, 0.25]).ravel()
    targets = np.repeat([phones[i].formants for i in sung], 2, 0)
    formants = np.stack([np.interp(t, knots, targets[:, k]) for k in range(3)])
    table = np.array([(0, 0, 2500, 3000), *((p.voice, p.noise, p.centre, p.width) for p in phones), (0, 0, 2500, 3000)])
    voice, noise, centre, width = table[np.searchsorted(np.array([begin, *ends]), t)].T
    return place, formants, _smooth(voice), _smooth(noise), centre, width


def _smooth(x: np.ndarray) -> np.ndarray:
    """Edges spread over 15 ms; a stop stays silent in its middle."""
    return np.convolve(x, np.array([0.25, 0.5, 0.25]), "same")


def _fine(x: np.ndarray, rate: int) -> np.ndarray:
    """`(CONTROL, N)` as `(rate, N)` by straight lines between the settings, each reached at its interval's end."""
    hold = rate // CONTROL
    share = (np.arange(1, hold + 1) / hold)[None, :, None]
    before = np.concatenate([x[:1], x[:-1]])
    return (before[:, None] * (1 - share) + x[:, None] * share).reshape(rate, x.shape[1])


def _over(values: tuple[float, ...], x: np.ndarray) -> np.ndarray:
    return np.array(values)[:, None, None] * x


def _check(rate: int) -> None:
    if rate < 8000 or rate % CONTROL:
        raise ValueError(f"sound: the rate must be a multiple of {CONTROL} from 8000 Hz, got {rate}")
