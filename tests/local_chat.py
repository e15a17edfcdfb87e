"""A server on this machine that speaks OpenAI's protocol and says what a test gives it to say."""

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def local_chat(
    *replies, default: str = "", usage: dict | None = None
) -> Iterator[tuple[str, list]]:
    """Serve chats; yield the address and the requests: (path, key, body) each.

    Args:
      *replies: texts, a number for an HTTP error, a dict for other JSON than a chat's, or bytes
        for a page, in order.
      default: said behind the last one.
      usage: the tokens that each reply reports; None: it reports none.
    """
    asked, left = [], list(replies)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked.append((self.path, self.headers["Authorization"], json.loads(body)))
            reply = left.pop(0) if left else default
            status = reply if isinstance(reply, int) else 200
            is_other = isinstance(reply, dict)
            reply = json.dumps(reply).encode() if is_other else reply
            is_page = isinstance(reply, bytes)
            message = {"role": "assistant", "content": None if is_page else reply}
            choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
            about = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
            about |= {"usage": usage} if usage else {}
            content = reply if is_page else json.dumps(about | {"choices": choices}).encode()
            self.send_response(status)
            kind = "text/html" if is_page and not is_other else "application/json"
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        server.server_close()
