"""A daemon in a folder of its own, reachable on every socket that it can have."""

import json
import os
import socket
import subprocess
import tempfile

USER, PASSWORD = "csi", "a pass:word"


def free_port():
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Daemon:
    """`serve` without a configuration of its own; `wrap` is a command to run it under."""

    def __init__(self, binary, folder=None, wrap=()):
        self._own = None if folder else tempfile.TemporaryDirectory(prefix="tidegate-rpc-")
        self.folder = folder or self._own.name
        self.unix = os.path.join(self.folder, "rpc.sock")
        self.tcp, self.http = free_port(), free_port()
        with open(self.path("credentials"), "w", encoding="utf-8") as file:
            file.write(f"{USER}:{PASSWORD}\n")
        os.chmod(self.path("credentials"), 0o600)
        with open(self.path("tidegate.toml"), "w", encoding="utf-8") as file:
            file.write(
                f"[rpc]\nsocket = 'rpc.sock'\n"
                f"[rpc.tcp]\nport = {self.tcp}\n"
                f"[rpc.http]\nport = {self.http}\ncredentials = 'credentials'\n"
                f"[state]\ndirectory = 'state'\n"
            )
        with open(self.path("log"), "ab") as log:
            command = [*wrap, binary, "serve", "--banner", "json", "--config", "tidegate.toml"]
            self.process = subprocess.Popen(
                command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log
            )
        # One line, once it serves; none if it gives up.
        self.serves = bool(self.process.stdout.readline())

    def path(self, name):
        return os.path.join(self.folder, name)

    def log(self):
        with open(self.path("log"), encoding="utf-8", errors="replace") as file:
            return file.read()

    def file(self, name, size):
        """A sparse file for a device."""
        with open(self.path(name), "wb") as file:
            file.truncate(size)
        return self.path(name)

    def kill(self):
        """As `kill -9` does; the folder stays for the next daemon."""
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def __enter__(self):
        assert self.serves, self.log()
        return self

    def __exit__(self, *_):
        self.kill()
        if self._own:
            self._own.cleanup()


class Refused(Exception):
    """The error in an answer."""

    def __init__(self, error):
        super().__init__(json.dumps(error))
        self.code, self.message = error["code"], error["message"]


def result_of(answer, number):
    """What an answer says, which has to be of the shape that the strictest client wants."""
    assert answer["jsonrpc"] == "2.0" and answer["id"] == number, answer
    assert set(answer) in ({"jsonrpc", "id", "result"}, {"jsonrpc", "id", "error"}), answer
    if "error" in answer:
        assert set(answer["error"]) == {"code", "message"}, answer
        raise Refused(answer["error"])
    return answer["result"]


def refusal(call, *arguments, **parameters):
    """The error that a call has to end with."""
    try:
        result = call(*arguments, **parameters)
    except Refused as refused:
        return refused
    raise AssertionError(f"{arguments} {parameters} succeeded: {result}")
