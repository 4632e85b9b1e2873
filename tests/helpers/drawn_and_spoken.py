"""Small files in the forms of the pendigits and FSDD originals."""

import io
import wave
import zipfile

import numpy as np


def unipen(digits):
    """UNIPEN text of (label, writer, strokes), numbered as in the originals."""
    out, stroke = [".INCLUDE        dene.doc", "", '.LEXICON "0" "1"', ".HIERARCHY      DIGIT", ""], 0
    for k, (label, writer, strokes) in enumerate(digits):
        last = stroke + len(strokes) - 1
        span = f"{stroke}" if last == stroke else f"{stroke}-{last}"
        out += [f'.SEGMENT DIGIT    {span} ? "{label}"', f".COMMENT {label} {writer}  {k}"]
        for points in strokes:
            out += [".PEN_DOWN", *(f" {x}  {y}" for x, y in points), ".PEN_UP", ".DT 100"]
        out.append("")
        stroke = last + 1
    return "\n".join(out) + "\n"


def wav(samples, rate=8000):
    """Bytes of a mono 16-bit wav file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as w:
        w.setnchannels(1)
        w.setsampwidth(2)
        w.setframerate(rate)
        w.writeframes(np.asarray(samples, "<i2").tobytes())
    return file.getvalue()


def archive(path, recordings, folder="recordings/"):
    """A stored zip of {(digit, speaker, index): samples}."""
    with zipfile.ZipFile(path, "w") as z:
        z.writestr(f"{folder}readme.txt", "no recording")
        for (digit, speaker, index), samples in recordings.items():
            z.writestr(f"{folder}{digit}_{speaker}_{index}.wav", wav(samples))


def tone(digit, index, length=2000):
    """Samples that differ for every digit and index."""
    t = np.arange(length) / 8000
    return np.rint(8000 * np.sin(2 * np.pi * (200 + 150 * digit + 7 * index) * t)).astype(np.int16)
