"""The way into the engine's thread: nothing is lost, and nothing gets in after the end."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from deployments.engine.errors import EngineStopped
from deployments.engine.mailbox import Cancel, Mailbox, Message, Stop


def test_what_was_posted_is_read_or_given_back_once() -> None:
    mailbox = Mailbox()

    def post_until_the_end(writer: int) -> list[str]:
        posted: list[str] = []
        while True:
            lane_id = f"{writer}-{len(posted)}"
            try:
                mailbox.post(Cancel(lane_id))
            except EngineStopped:
                return posted
            posted.append(lane_id)

    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(post_until_the_end, writer) for writer in range(4)]
        read: list[Message | None] = [mailbox.take(timeout_s=10.0) for _ in range(500)]
        read += mailbox.close("enough")
        posted = [lane_id for writer in writers for lane_id in writer.result()]
    assert sorted(message.lane_id for message in read if isinstance(message, Cancel)) == sorted(posted)


def test_after_the_end() -> None:
    mailbox = Mailbox()
    mailbox.check()
    assert mailbox.close("the device was lost") == []
    mailbox.tell(Stop())
    assert mailbox.take(timeout_s=0.0) is None
    with pytest.raises(EngineStopped, match="the device was lost"):
        mailbox.post(Stop())
    with pytest.raises(EngineStopped, match="the device was lost"):
        mailbox.check()
