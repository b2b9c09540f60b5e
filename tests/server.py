"""A local HTTP server of files in memory, as a release page or a model zoo, with its faults."""

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """Serves ``files`` by path; ``requests`` are the paths asked for.

    Of those in ``cut`` only the first half comes, and of those in ``held`` nothing more until ``released`` is set.
    """

    def __init__(self, address: str):
        self.address, self.files, self.requests = address, {}, []
        self.cut, self.held, self.released = set(), set(), threading.Event()

    def url(self, path: str) -> str:
        return f'{self.address}{path}'


@contextlib.contextmanager
def serve() -> Iterator[Server]:
    """Runs a :class:`Server` within the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.requests.append(self.path)
            content = server.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header('Content-Length', str(len(content)))
            self.end_headers()
            half = self.path in server.cut or self.path in server.held
            with contextlib.suppress(ConnectionError):
                self.wfile.write(content[: len(content) // 2] if half else content)
            if self.path in server.held:
                server.released.wait(60)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(('127.0.0.1', 0), Handler) as http:
        server = Server(f'http://127.0.0.1:{http.server_address[1]}')
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield server
        finally:
            http.shutdown()
