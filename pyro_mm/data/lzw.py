"""The `.Z` files of Unix compress: Lempel-Ziv-Welch with codes that grow from 9 to at most 16 bits.

Standard Python reads gzip, bzip2 and xz but not this older format, in which some public data are still served.
"""

from __future__ import annotations

__all__ = ["MAGIC", "unlzw"]

MAGIC = b"\x1f\x9d"
CLEAR = 256  # in block mode: forget every code
LEAST = 9  # bits of the first codes


def unlzw(packed: bytes, most: int = 1 << 28) -> bytes:
    """The bytes in a `.Z` file.

    Args:
        most: refuse to unpack more bytes than this.

    Raises:
        ValueError: no such file, truncated or corrupt, or too large.
    """
    if len(packed) < 3 or packed[:2] != MAGIC:
        raise ValueError(f"not in compress format: starts with {packed[:3].hex(' ') or 'nothing'}")
    limit, block = packed[2] & 0x1F, bool(packed[2] & 0x80)
    if not LEAST <= limit <= 16:
        raise ValueError(f"corrupt: claims codes of up to {limit} bits, which are 9 to 16")
    codes = _Codes(packed, limit)
    first = [bytes([i]) for i in range(256)] + ([b""] if block else [])
    table, out, size, last = list(first), [], 0, b""
    while (code := codes.next(len(table))) is not None:
        if block and code == CLEAR:
            table, last = list(first), b""
            codes.restart()
            continue
        if code < len(table):
            entry = table[code]
        elif code == len(table) and last:
            entry = last + last[:1]  # the one code that is used before it is whole
        else:
            raise ValueError(f"corrupt: code {code} where only {len(table)} are known")
        if last and len(table) < 1 << limit:
            table.append(last + entry[:1])
        out.append(entry)
        size += len(entry)
        if size > most:
            raise ValueError(f"unpacks to more than {most} bytes")
        last = entry
    return b"".join(out)


class _Codes:
    """Numbers of `bits` bits, lowest bit first; when `bits` changes, the group of eight codes is skipped to its end."""

    def __init__(self, packed: bytes, limit: int) -> None:
        self.packed, self.limit, self.bits = packed, limit, LEAST
        self.start, self.count = 3, 0  # first byte and codes read at this width

    def next(self, known: int) -> int | None:
        """The next code, or None at the end; `known` have a meaning so far."""
        while self.bits < self.limit and known >= 1 << self.bits:
            self._turn(self.bits + 1)
        low = self.start * 8 + self.count * self.bits
        if low + self.bits > len(self.packed) * 8:
            return None
        self.count += 1
        window = int.from_bytes(self.packed[low // 8 : low // 8 + 3], "little")
        return (window >> low % 8) & ((1 << self.bits) - 1)

    def restart(self) -> None:
        self._turn(LEAST)

    def _turn(self, bits: int) -> None:
        self.start += -(-self.count // 8) * self.bits
        self.bits, self.count = bits, 0
