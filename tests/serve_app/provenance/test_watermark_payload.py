import random
from collections.abc import Iterator

import numpy as np
import pytest

from serve_app.provenance.watermark_payload import PayloadCode, SoftWord, WatermarkPayload

PAYLOADS = [WatermarkPayload(0, "00000000"), WatermarkPayload(65535, "ffffffff"), WatermarkPayload(4711, "0badcafe")]


@pytest.mark.parametrize("check_bits", [1, 13, 32])
@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_word_holds_its_payload(payload: WatermarkPayload, check_bits: int) -> None:
    code = PayloadCode(check_bits)
    word = code.word(payload)
    assert word.shape == (48 + check_bits,)
    assert set(word.tolist()) <= {0, 1}
    assert code.payload(word) == payload


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_word_with_another_bit_is_not_valid(payload: WatermarkPayload) -> None:
    code = PayloadCode()
    for bit in range(code.length):
        word = code.word(payload)
        word[bit] ^= 1
        assert code.payload(word) is None


def test_a_word_of_equal_bits_is_not_valid() -> None:
    code = PayloadCode()
    assert code.payload(np.zeros(80, np.uint8)) is None
    assert code.payload(np.ones(80, np.uint8)) is None


@pytest.mark.parametrize("check_bits", [0, 33, -1])
def test_check_bits_have_a_range(check_bits: int) -> None:
    with pytest.raises(ValueError, match=rf"check_bits must be 1 to 32, not {check_bits}"):
        PayloadCode(check_bits)


@pytest.mark.parametrize("service_id", [-1, 65536])
def test_a_service_id_has_16_bits(service_id: int) -> None:
    with pytest.raises(ValueError, match=f"service_id must be 0 to 65535, not {service_id}"):
        WatermarkPayload(service_id, "00000000")


@pytest.mark.parametrize("job_end", ["", "0000000", "000000000", "0000000G", "ABCDEF00", "0000000\n", "\uff10000000a"])
def test_a_jobs_end_has_8_digits(job_end: str) -> None:
    with pytest.raises(ValueError, match="job_end must have 8 digits of 0-9 and a-f, not "):
        WatermarkPayload(1, job_end)


def votes_of(word: np.ndarray, seed: int = 0, wrong: int = 0) -> np.ndarray:
    """Clear votes for a word, of which the `wrong` least clear ones are for the other bit."""
    sizes = np.random.default_rng(seed).uniform(2, 4, len(word)).astype(np.float32)
    sizes[np.argsort(sizes)[:wrong]] *= -0.1
    return (word * 2.0 - 1).astype(np.float32) * sizes


@pytest.mark.parametrize("bias", [0.0, 6.0, -6.0])
@pytest.mark.parametrize("wrong", [0, 1, 5])
def test_unclear_bits_are_corrected(wrong: int, bias: float) -> None:
    code = PayloadCode()
    votes = votes_of(code.word(PAYLOADS[2]), wrong=wrong) + np.float32(bias)
    assert code.nearest_payload(SoftWord(votes, corrected=10)) == PAYLOADS[2]


def test_clear_bits_are_not_corrected() -> None:
    code = PayloadCode()
    votes = votes_of(code.word(PAYLOADS[2]))
    votes[np.argmax(np.abs(votes))] *= -1
    assert code.nearest_payload(SoftWord(votes, corrected=10)) is None


@pytest.mark.parametrize("turn", [1, 40, 79])
def test_a_rotated_word_is_found_if_it_may_be_rotated(turn: int) -> None:
    code = PayloadCode()
    votes = np.roll(votes_of(code.word(PAYLOADS[2]), wrong=2), turn)
    assert code.nearest_payload(SoftWord(votes, corrected=4, rotated=True)) == PAYLOADS[2]
    assert code.nearest_payload(SoftWord(votes, corrected=4)) is None


def test_unclear_votes_are_no_word() -> None:
    code = PayloadCode()
    assert code.nearest_payload(SoftWord(votes_of(code.word(PAYLOADS[2])) / 4, corrected=4)) is None


def test_of_several_near_words_the_nearest_is_read() -> None:
    code = PayloadCode(check_bits=1)  # so few that every second word is valid
    word = code.word(PAYLOADS[2])
    flipped = [word ^ np.eye(code.length, dtype=np.uint8)[bit] for bit in range(code.length)]
    first, second, third = [bit for bit in range(code.length) if code.payload(flipped[bit]) is None][-3:]
    votes = votes_of(word)
    votes[[first, second, third]] = (word[[first, second, third]] * 2.0 - 1) * [-0.1, 0.2, 0.3]  # the first is wrong
    assert code.nearest_payload(SoftWord(votes, corrected=3)) == PAYLOADS[2]


def test_random_clear_votes_are_no_word() -> None:
    code, generator = PayloadCode(), random.Random(1)
    for _ in range(500):
        votes = np.array([generator.gauss(0, 5) for _ in range(code.length)], np.float32)
        assert code.nearest_payload(SoftWord(votes, corrected=6, rotated=True)) is None


def test_a_clear_word_is_read_before_one_that_needs_many_corrections() -> None:
    code = PayloadCode()
    unclear = SoftWord(votes_of(code.word(PAYLOADS[1]), wrong=12) / 2, corrected=16)
    clear = SoftWord(votes_of(code.word(PAYLOADS[2]), wrong=2), corrected=10)
    assert code.nearest_payload(unclear) == PAYLOADS[1]
    assert code.payload_of([unclear, clear]) == PAYLOADS[2]
    assert code.payload_of([unclear]) == PAYLOADS[1]


def test_of_words_that_need_many_corrections_the_clearest_is_read() -> None:
    code = PayloadCode()
    words = [
        SoftWord(votes_of(code.word(payload), wrong=8) * size, corrected=16)
        for payload, size in zip(PAYLOADS, (1, 3, 2), strict=True)
    ]
    assert code.payload_of(words) == PAYLOADS[1]


def test_no_more_words_are_made_than_are_needed() -> None:
    code = PayloadCode()

    def words() -> Iterator[SoftWord]:
        yield SoftWord(votes_of(code.word(PAYLOADS[2])), corrected=16)
        raise AssertionError("the picture was scaled although its word was read")

    assert code.payload_of(words()) == PAYLOADS[2]
