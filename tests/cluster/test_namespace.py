"""What runs in namespaces of its own sees nothing of the machine, is reached through a relay, and ends as a whole."""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.cluster.fake_cluster import until
from tests.cluster.namespace import Namespace, NoNamespaces, namespace

pytestmark = pytest.mark.cluster


@pytest.fixture
def space() -> Iterator[Namespace]:
    with tempfile.TemporaryDirectory(prefix="dkn-", dir="/tmp") as folder:
        try:
            with namespace(Path(folder), {"WHO": "inside"}) as space:
                yield space
        except NoNamespaces as reason:
            pytest.skip(str(reason))


def test_a_command_sees_only_what_is_inside(space: Namespace) -> None:
    assert space.run("bash", "-c", "echo $WHO; ls /tmp/ray").split() == ["inside"]
    programs = space.run("ps", "-e", "-o", "comm=").split()
    assert sorted(programs) == ["bash", "ps"]
    with pytest.raises(RuntimeError, match=r"(?s)false ended with 1"):
        space.run("false")


def test_all_of_it_ends_with_its_first_process(space: Namespace) -> None:
    space.start("bash", "-c", "(sleep 1000 & sleep 1000)", log="sleep.log")
    processes = space.processes()
    assert {"bash"} <= {process.name() for process in processes}
    space.end()
    _gone, alive = psutil.wait_procs(processes, 30)
    assert not alive


async def test_a_relay_leads_in_and_out_again(space: Namespace) -> None:
    inside, socket = space.folder / "inside.sock", space.folder / "outside.sock"
    (space.folder / "page.txt").write_text("from inside")
    space.start(sys.executable, "-m", "http.server", "-b", "127.0.0.1", "-d", space.folder, "8000", log="http.log")
    relay = (sys.executable, "-m", "tests.cluster.relay")
    space.start(
        *relay, f"unix:{inside}=tcp:8000", f"tcp:8001=unix:{inside}", f"unix:{socket}=tcp:8001", log="relay.log"
    )
    transport = httpx.AsyncHTTPTransport(uds=str(socket))
    async with httpx.AsyncClient(transport=transport, base_url="http://inside") as client:

        async def page() -> str:
            return (await client.get("/page.txt")).raise_for_status().text

        assert await until(page, 60, "the page is there") == "from inside"
