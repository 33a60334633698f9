"""Serves this folder to the browsers of this computer, with the two headers that threads need.

python serve.py [PORT]
"""

import contextlib
import http.server
import sys
from pathlib import Path


class Handler(http.server.SimpleHTTPRequestHandler):
    """Sends the files of this folder; the registry of Windows has no say in their types."""

    extensions_map = {  # noqa: RUF012
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def __init__(self, *args):
        super().__init__(*args, directory=str(Path(__file__).resolve().parent))

    def end_headers(self):
        """Adds the headers."""
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cache-Control", "no-cache")  # a new export is seen at once
        super().end_headers()

    def log_message(self, *args):
        """Prints nothing."""


def main():
    """Serves until Ctrl-C."""
    port = sys.argv[1] if len(sys.argv) > 1 else "8000"
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Handler)
    except (OSError, ValueError, OverflowError) as error:
        print(f"error: cannot serve on port {port} ({error}); try: python serve.py 8001", file=sys.stderr)
        return 2
    print(f"open http://127.0.0.1:{server.server_port}/ in a browser; Ctrl-C ends this", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
