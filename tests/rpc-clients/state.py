"""The state directory: full, read-only, wanted by two daemons. Its file system is a small one of the daemon's own, in a
mount namespace, so these checks are for root.
"""

import functools
import os
import subprocess
import tempfile

from daemon import Daemon, Refused
from wires import Persistent


class Skip(Exception):
    """Why a check cannot run here."""


def small_state(size):
    """A command under which `state` in the working directory is a file system of `size` bytes."""
    script = f'mkdir -p state && mount -t tmpfs -o size={size} tmpfs state && exec "$@"'
    wrap = ["unshare", "--mount", "sh", "-c", script, "sh"]
    with tempfile.TemporaryDirectory() as folder:
        tried = subprocess.run([*wrap, "true"], cwd=folder, capture_output=True, check=False, text=True)
    if tried.returncode != 0:
        raise Skip(f"no file system of its own can be mounted here: {tried.stderr.strip()}")
    return wrap


def create(client, name):
    return client.call("bdev_null_create", {"name": name, "num_blocks": 8, "block_size": 512})


def names(client):
    return {bdev["name"] for bdev in client.call("bdev_get_bdevs")}


def full(binary):
    """No room for another object: a clear error, what runs goes on, and what comes when there is room again works."""
    with Daemon(binary, wrap=small_state("3m")) as daemon:
        client = Persistent(daemon)
        # The daemon's own view of its folder: nobody else sees that file system.
        state = f"/proc/{daemon.process.pid}/root{daemon.path('state')}"
        expected = {create(client, "first")}
        for turn in range(3):
            filler = os.path.join(state, "filler")
            with open(filler, "wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(4096))
                except OSError:
                    pass
            for number in range(2000):
                name = f"{turn}-{number}-" + "x" * 200
                try:
                    expected.add(create(client, name))
                except Refused as refused:
                    assert refused.code == -32603 and "No space left" in refused.message, refused
                    assert "state.redb" in refused.message, refused
                    break
            else:
                raise AssertionError("a full file system takes 2,000 objects")
            assert names(client) == expected
            assert "version" in client.call("spdk_get_version")
            os.unlink(filler)
            expected.add(create(client, f"room-{turn}"))
            assert names(client) == expected


def too_small(binary):
    """No room even for an empty state: the daemon says so and ends."""
    wrap = small_state("8k")
    daemon = Daemon(binary, wrap=wrap)
    assert not daemon.serves and daemon.process.wait() == 1
    assert "state.redb" in daemon.log() and "No space left" in daemon.log(), daemon.log()


def read_only(binary):
    """A state directory that cannot be written: the daemon says so and ends."""
    small_state("1m")
    script = 'mkdir -p state && mount -t tmpfs -o ro tmpfs state && exec "$@"'
    daemon = Daemon(binary, wrap=["unshare", "--mount", "sh", "-c", script, "sh"])
    assert not daemon.serves and daemon.process.wait() == 1
    assert "state.redb" in daemon.log() and "Read-only file system" in daemon.log(), daemon.log()


def two_daemons(binary):
    """Of two daemons that want one state, the second waits, and takes over when the first is killed."""
    with Daemon(binary) as first:
        create(Persistent(first), "kept")
        command = [binary, "serve", "--banner", "json", "--rpc-socket", "other.sock", "--state", "state"]
        with open(first.path("log"), "ab") as log:
            second = subprocess.Popen(command, cwd=first.folder, stdout=subprocess.PIPE, stderr=log)
        try:
            # It is up to here, whatever it waits for, that the first is not disturbed.
            create(Persistent(first), "meanwhile")
            first.process.kill()
            first.process.wait()
            assert second.stdout.readline(), first.log()
            first.unix = first.path("other.sock")
            assert names(Persistent(first)) == {"kept", "meanwhile"}
        finally:
            second.kill()
            second.wait()
            second.stdout.close()


def checks(binary):
    """Name and function of each check."""
    for check in (full, too_small, read_only, two_daemons):
        yield f"state {check.__name__}", functools.partial(check, binary)
