"""An S3-compatible server for the tests: moto's, in a thread of this process, on a port of its own."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from moto.server import ThreadedMotoServer


class ObjectServer:
    """A server that can be stopped and started; what it keeps outlives that."""

    def __init__(self) -> None:
        self._server = ThreadedMotoServer("127.0.0.1", port=0)
        self._server.start()
        self.address = "http://{}:{}".format(*self._server.get_host_and_port())

    def bucket(self) -> str:
        """The URL of a new bucket's folder."""
        name = f"test-{secrets.token_hex(6)}"
        httpx.put(f"{self.address}/{name}", timeout=60).raise_for_status()
        return f"s3://{name}/some/prefix"

    def stop(self) -> None:
        self._server.stop()

    def restart(self) -> None:
        _, port = self.address.rsplit(":", 1)
        self._server = ThreadedMotoServer("127.0.0.1", port=int(port))
        self._server.start()


@contextmanager
def running_object_server() -> Iterator[ObjectServer]:
    """With the environment that its clients take their address and keys from."""
    server = ObjectServer()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", server.address)
        environment.setenv("AWS_ACCESS_KEY_ID", "test")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "test")
        environment.setenv("AWS_REGION", "us-east-1")
        try:
            yield server
        finally:
            server.stop()
