"""A Hugging Face hub on this machine, as far as downloads of public repositories go: plain files, no Xet."""

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub(folder: Path, holds: Mapping[str, threading.Event] = MappingProxyType({})) -> Iterator[tuple[str, list[str]]]:
    """Serves folder/OWNER/NAME/…; its address, and the files that were asked for ("OWNER/NAME/…").

    Of a file whose name ends like one of `holds`, the second half comes after its event.
    """
    sent: list[str] = []

    def files(name: str) -> list[str]:
        paths = sorted((folder / name).rglob("*"))
        return [str(path.relative_to(folder / name)) for path in paths if path.is_file()]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            match unquote(self.path.split("?")[0])[1:].split("/"):
                case ["api", "models", owner, name, "tree", _]:
                    self._tree(f"{owner}/{name}")
                case ["api", "models", owner, name, *_]:
                    self._repository(f"{owner}/{name}")
                case [owner, name, "resolve", _, *inside]:
                    self._file(f"{owner}/{name}", "/".join(inside))
                case _:
                    self.send_error(404)

        def do_HEAD(self) -> None:
            self.do_GET()

        def _repository(self, name: str) -> None:
            siblings = [{"rfilename": path} for path in files(name)]
            self._answer(json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode(), "application/json")

        def _tree(self, name: str) -> None:
            entries = [
                {"type": "file", "path": path, "size": (folder / name / path).stat().st_size, "oid": "0" * 40}
                for path in files(name)
            ]
            self._answer(json.dumps(entries).encode(), "application/json")

        def _file(self, repository: str, inside: str) -> None:
            if self.command == "GET":
                sent.append(f"{repository}/{inside}")
            hold = next((event for end, event in holds.items() if inside.endswith(end)), None)
            self._answer((folder / repository / inside).read_bytes(), "application/octet-stream", hold)

        def _answer(self, data: bytes, kind: str, hold: threading.Event | None = None) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command != "GET":
                return
            middle = len(data) // 2
            self.wfile.write(data[:middle])
            self.wfile.flush()
            if hold is not None:
                hold.wait()
            with suppress(ConnectionError):  # who waited may have gone
                self.wfile.write(data[middle:])

        def log_message(self, *_: object) -> None:
            """Tests have their own words."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", sent
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
