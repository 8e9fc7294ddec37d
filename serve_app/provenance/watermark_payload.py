"""The payload of a watermark as a word of bits: which service drew an image, for which job, and check bits."""

import hashlib
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

SERVICE_BITS = 16
JOB_DIGITS = 8
DATA_BITS = SERVICE_BITS + 4 * JOB_DIGITS
MOST_CHECK_BITS = 32

# Whitens the words, so that a flat or regular picture, which says the same for many bits, holds no valid one.
_WHITENING = np.unpackbits(np.frombuffer(hashlib.sha256(b"darkroom watermark 1").digest(), np.uint8))
# Mean size of the votes, without their own mean, from which a word is looked at. Unmarked pictures have 0.2 to 0.9.
_CLEAR = 1.1
# Bits of a word that are corrected before it is known how clear the other words of a picture are. A random word is made
# valid by so few once in 2 to the power of 28.
_CORRECTED_AT_FIRST = 4
_JOB_END = re.compile(rf"[0-9a-f]{{{JOB_DIGITS}}}", re.ASCII)

Bits = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class WatermarkPayload:
    """What a watermark says.

    Attributes:
        service_id: of the service that drew the image, 0 to 65535.
        job_end: the last 8 hexadecimal digits of the id of the image's job.
    """

    service_id: int
    job_end: str

    def __post_init__(self) -> None:
        if not 0 <= self.service_id < 1 << SERVICE_BITS:
            raise ValueError(f"service_id must be 0 to {(1 << SERVICE_BITS) - 1}, not {self.service_id}")
        if _JOB_END.fullmatch(self.job_end) is None:
            raise ValueError(f"job_end must have {JOB_DIGITS} digits of 0-9 and a-f, not {self.job_end!r}")


@dataclass(frozen=True, slots=True)
class SoftWord:
    """A word as a reader of pixels sees it.

    Attributes:
        votes: one number a bit, (length,), float32. Its sign is the bit (positive is 1), its size says how clear that
            is: 1 is the standard deviation that an unmarked picture has.
        corrected: how many bits may be corrected, those with the smallest votes. Each doubles the words that are tried.
        rotated: whether the votes may begin with any bit of the word.
    """

    votes: NDArray[np.float32]
    corrected: int
    rotated: bool = False

    @property
    def differences(self) -> NDArray[np.float32]:
        """The votes without their mean."""
        return np.asarray(self.votes - self.votes.mean(), np.float32)

    @property
    def clearness(self) -> float:
        """Mean size of the differences."""
        return float(np.abs(self.differences).mean())


class PayloadCode:
    """Payloads as words: 48 bits of data, then the first bits of their CRC-32.

    Args:
        check_bits: of a word, 1 to 32. A random word is valid once in 2 to the power of it.
    """

    def __init__(self, check_bits: int = MOST_CHECK_BITS) -> None:
        if not 1 <= check_bits <= MOST_CHECK_BITS:
            raise ValueError(f"check_bits must be 1 to {MOST_CHECK_BITS}, not {check_bits}")
        self.length = DATA_BITS + check_bits
        self._check_bits = check_bits
        # A CRC is linear: the syndrome of a word, zero if valid, is the sum of its bits' syndromes and a constant.
        zero = self._checks(np.zeros(DATA_BITS, np.uint8))
        units = np.eye(self.length, dtype=np.uint8)
        syndromes = [self._checks(unit[:DATA_BITS]) ^ zero ^ unit[DATA_BITS:] for unit in units]
        self._constant = np.uint32(_number(zero))
        self._syndromes = np.array([_number(syndrome) for syndrome in syndromes], np.uint32)

    def word(self, payload: WatermarkPayload) -> Bits:
        """The word of a payload, (length,), 0 or 1."""
        number = payload.service_id << 4 * JOB_DIGITS | int(payload.job_end, 16)
        data = np.unpackbits(np.frombuffer(number.to_bytes(DATA_BITS // 8, "big"), np.uint8))
        return np.concatenate([data, self._checks(data)]) ^ _WHITENING[: self.length]

    def payload(self, word: Bits) -> WatermarkPayload | None:
        """The payload of a word; None if it isn't valid."""
        plain = word ^ _WHITENING[: self.length]
        if (plain[DATA_BITS:] != self._checks(plain[:DATA_BITS])).any():
            return None
        number = _number(plain[:DATA_BITS])
        return WatermarkPayload(number >> 4 * JOB_DIGITS, f"{number:0{DATA_BITS // 4}x}"[-JOB_DIGITS:])

    def payload_of(self, words: Iterable[SoftWord]) -> WatermarkPayload | None:
        """What a picture says that may be read as any of several words; no more of them are taken than needed.

        All are tried with few corrections before one is with many, the clearest first: many make a valid word of a
        random one once in some ten thousand, which a scaled picture holds beside the word that is scaled back.
        """
        unread: list[SoftWord] = []
        for word in words:
            few = replace(word, corrected=min(word.corrected, _CORRECTED_AT_FIRST))
            if (payload := self.nearest_payload(few)) is not None:
                return payload
            unread.append(word)
        unread.sort(key=lambda word: word.clearness, reverse=True)
        return next(filter(None, map(self.nearest_payload, unread)), None)

    def nearest_payload(self, word: SoftWord) -> WatermarkPayload | None:
        """The payload of the valid word that is nearest to what was read, if one is near."""
        if word.clearness < _CLEAR:
            return None
        # Where compression has moved all blocks of a flat picture to one side, the differences still tell the bits.
        for votes in (word.votes, word.differences):
            if (payload := self._nearest(votes, word)) is not None:
                return payload
        return None

    def _nearest(self, votes: NDArray[np.float32], word: SoftWord) -> WatermarkPayload | None:
        turned = np.stack([np.roll(votes, turn) for turn in range(self.length if word.rotated else 1)])
        words = (turned > 0).astype(np.uint8)
        whitened = words ^ _WHITENING[: self.length]
        syndromes = np.bitwise_xor.reduce(whitened * self._syndromes, axis=1) ^ self._constant
        weakest = np.argsort(np.abs(turned), axis=1)[:, : word.corrected]
        # the sums of all sets of the weakest bits' syndromes; the number of a set has its bits
        sums = np.zeros((len(turned), 1), np.uint32)
        for column in range(word.corrected):
            sums = np.concatenate([sums, sums ^ self._syndromes[weakest[:, column], None]], axis=1)
        nearest: tuple[float, Bits] | None = None
        for turn, flips in np.argwhere(sums == syndromes[:, None]):
            flipped = [bit for column, bit in enumerate(weakest[turn]) if flips >> column & 1]
            distance = float(np.abs(turned[turn, flipped]).sum())
            if nearest is None or distance < nearest[0]:
                corrected = words[turn].copy()
                corrected[flipped] ^= 1
                nearest = distance, corrected
        return None if nearest is None else self.payload(nearest[1])

    def _checks(self, data: Bits) -> Bits:
        crc = zlib.crc32(np.packbits(data).tobytes())
        return np.unpackbits(np.frombuffer(crc.to_bytes(4, "big"), np.uint8))[: self._check_bits]


def _number(bits: Bits) -> int:
    """The bits as a binary number, the first one highest."""
    return int("".join(map(str, bits.tolist())), 2)
