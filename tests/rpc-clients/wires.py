"""How clients carry their calls: each class is one client's way, down to what it writes on the wire."""

import base64
import http.client
import json
import socket

from daemon import PASSWORD, USER, result_of

ABSENT = object()


def read_value(stream, received):
    """The next JSON value of a stream without framing, and what came behind it."""
    while True:
        text = received.decode().lstrip()
        try:
            value, used = json.JSONDecoder().raw_decode(text)
            return value, text[used:].encode()
        except ValueError:
            piece = stream.recv(65536)
            if not piece:
                raise EOFError(f"the connection ends after {received!r}") from None
            received += piece


class HttpPost:
    """spdk-csi: a POST for each call over a connection that is kept, Basic authentication, `params` left out if there
    are none. A status from 400 on would be a failure of the server."""

    def __init__(self, daemon, user=USER, password=PASSWORD):
        self.connection = http.client.HTTPConnection("127.0.0.1", daemon.http, timeout=20)
        self.authorization = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        self.number = 0

    def post(self, body):
        headers = {"Authorization": self.authorization, "Content-Type": "application/json"}
        self.connection.request("POST", "/", body, headers)
        response = self.connection.getresponse()
        return response.status, response.read()

    def call(self, method, params=ABSENT):
        self.number += 1
        request = {"jsonrpc": "2.0", "id": self.number, "method": method}
        if params is not ABSENT:
            request["params"] = params
        status, body = self.post(json.dumps(request))
        assert status == 200, (status, body)
        return result_of(json.loads(body), self.number)


class Persistent:
    """go-spdk-helper: one Unix connection, tabs for indentation, `params` null if there are none, a newline behind each
    request, and up to 1,024 of them in flight, whose answers may come in any order."""

    def __init__(self, daemon):
        self.stream = socket.socket(socket.AF_UNIX)
        self.stream.settimeout(60)
        self.stream.connect(daemon.unix)
        self.received = b""
        self.number = 0

    def send(self, method, params=None):
        self.number += 1
        request = {"id": self.number, "jsonrpc": "2.0", "method": method, "params": params}
        self.stream.sendall(json.dumps(request, indent="\t").encode() + b"\n")
        return self.number

    def answer(self):
        value, self.received = read_value(self.stream, self.received)
        return value

    def call(self, method, params=None):
        number = self.send(method, params)
        return result_of(self.answer(), number)


class PerCall:
    """gospdk, the client of opi-spdk-bridge: a new connection for each call, to a path or to an address and port, and
    no more to write after the request. It reads one value, and never closes: the daemon has to."""

    def __init__(self, daemon, over):
        self.family, self.address = {
            "unix": (socket.AF_UNIX, daemon.unix),
            "tcp": (socket.AF_INET, ("127.0.0.1", daemon.tcp)),
        }[over]
        self.number = 0

    def call(self, method, params=ABSENT):
        self.number += 1
        request = {"jsonrpc": "2.0", "id": self.number, "method": method}
        if params is not ABSENT:
            request["params"] = params
        with socket.socket(self.family) as stream:
            stream.settimeout(60)
            stream.connect(self.address)
            stream.sendall(json.dumps(request).encode())
            stream.shutdown(socket.SHUT_WR)
            value, rest = read_value(stream, b"")
            while piece := stream.recv(65536):
                rest += piece
        assert rest.strip() == b"", rest
        return result_of(value, self.number)
