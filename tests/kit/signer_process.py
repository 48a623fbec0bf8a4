"""A signer outside: a process of its own that holds keys and signs what it is asked to, as wallets do over JSON-RPC.

It is written with eth-account alone, so that nothing of ours is held against itself. Keys come on standard input, one
in hex on a line; the port it listens on is the first line that it prints.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Refusal(Exception):
    """What this signer does not do."""


def answer(keys: dict[str, str], method: str, params: list[Any]) -> Any:
    """What a wallet answers."""
    from eth_account import Account

    if method == "eth_accounts":
        return list(keys)
    if method == "eth_signTypedData_v4":
        typed = json.loads(params[1])
        return "0x" + Account.sign_typed_data(keys[params[0].lower()], full_message=typed).signature.hex()
    if method == "eth_signTransaction":
        fields = dict(params[0])
        key = keys[fields.pop("from").lower()]
        return "0x" + bytes(Account.sign_transaction(fields, key).raw_transaction).hex()
    raise Refusal(method)


def serve(keys: dict[str, str]) -> None:
    """Answer until the process is ended."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            said: dict[str, Any] = {"jsonrpc": "2.0", "id": asked["id"]}
            try:
                said["result"] = answer(keys, asked["method"], asked["params"])
            except (Refusal, KeyError):
                said["error"] = {"code": -32601, "message": "this signer does not do that"}
            body = json.dumps(said).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - http.server's own name
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        sys.stdout.write(f"{server.server_address[1]}\n")
        sys.stdout.flush()
        server.serve_forever()


@contextmanager
def outside_signer(*secrets: bytes) -> Iterator[str]:
    """A signer in a process of its own that holds these keys; its address."""
    child = subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve())], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write("".join(f"{secret.hex()}\n" for secret in secrets))
        child.stdin.close()
        yield f"http://127.0.0.1:{int(child.stdout.readline())}"
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


if __name__ == "__main__":
    from eth_account import Account as _Account

    held = ["0x" + line.strip() for line in sys.stdin]
    serve({_Account.from_key(secret).address.lower(): secret for secret in held})
