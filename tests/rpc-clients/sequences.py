"""The sequences of calls of programs that are written for SPDK, with the errors that they rely on.

Facts about them: what each sends and reads, and which codes and texts it looks for. Where a program works on logical
volumes, memory stands in for them, as long as there are none.
"""

import functools
import re
import socket
import threading

from daemon import Daemon, free_port, refusal
from wires import HttpPost, PerCall, Persistent

# What these programs call, too, and is not there yet. A check fails for one that has come: then it is to be replayed.
NOT_YET = {
    "spdk-csi": [
        "bdev_lvol_get_lvstores", "bdev_lvol_create", "bdev_lvol_snapshot", "bdev_lvol_clone", "bdev_lvol_delete",
        "iscsi_get_portal_groups", "iscsi_create_portal_group", "iscsi_get_initiator_groups",
        "iscsi_create_initiator_group", "iscsi_create_target_node", "iscsi_get_target_nodes", "iscsi_delete_target_node",
    ],
    "longhorn": [
        "bdev_lvol_create_lvstore", "bdev_lvol_get_lvstores", "bdev_lvol_get_lvols", "bdev_lvol_get_xattr",
        "bdev_lvol_set_xattr", "bdev_lvol_get_fragmap", "bdev_lvol_register_snapshot_checksum", "bdev_raid_create",
        "bdev_raid_delete", "bdev_virtio_attach_controller", "ublk_create_target", "ublk_start_disk",
    ],
    "ceph-nvmeof": [
        "bdev_rbd_register_cluster", "bdev_rbd_create", "bdev_rbd_resize", "bdev_rbd_delete", "keyring_file_add_key",
        "keyring_file_remove_key", "keyring_get_keys",
    ],
    "opi": [
        "vhost_create_blk_controller", "vhost_delete_controller", "vhost_get_controllers", "accel_crypto_key_create",
        "accel_crypto_key_destroy", "bdev_crypto_create", "bdev_crypto_delete",
    ],
}



def methods(daemon):
    return set(Persistent(daemon).call("rpc_get_methods"))


def one(found, **fields):
    """The only one of a list with these fields."""
    [it] = [it for it in found if all(it.get(key) == value for key, value in fields.items())]
    return it


def connects(port):
    with socket.socket() as stream:
        return stream.connect_ex(("127.0.0.1", port)) == 0


def spdk_csi(binary):
    """Publishes and withdraws a volume, as its controller does, and asks what its node asks."""
    with Daemon(binary) as daemon:
        csi = HttpPost(daemon)
        csi.call("bdev_malloc_create", {"num_blocks": 4096, "block_size": 4096, "name": "volume"})
        # It knows a volume by the UUID alone.
        volume = csi.call("bdev_get_bdevs", {"name": "volume"})[0]["uuid"]
        assert csi.call("bdev_get_bdevs", {"name": volume})[0]["num_blocks"] == 4096
        nqn = f"nqn.2020-04.io.spdk.csi:uuid:{volume}"
        port = free_port()
        address = {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": str(port)}
        for publication in range(2):
            if publication == 0:
                csi.call("nvmf_create_transport", {"trtype": "TCP"})
            else:
                assert "already exists" in refusal(csi.call, "nvmf_create_transport", {"trtype": "TCP"}).message
            subsystem = {
                "nqn": nqn, "allow_any_host": True, "serial_number": "spdkcsi-sn", "model_number": volume,
            }
            assert csi.call("nvmf_create_subsystem", subsystem) is True
            nsid = csi.call("nvmf_subsystem_add_ns", {"nqn": nqn, "namespace": {"bdev_name": volume}})
            assert nsid == 1
            assert csi.call("nvmf_subsystem_add_listener", {"nqn": nqn, "listen_address": address}) is True
            # Its tests look whether it is published.
            listeners = csi.call("nvmf_subsystem_get_listeners", {"nqn": nqn})
            assert [listener["address"] for listener in listeners] == [address]
            found = one(csi.call("nvmf_get_subsystems"), nqn=nqn)
            namespace = one(found["namespaces"], nsid=nsid)
            # The node finds the disk by either of them.
            assert found["model_number"] == volume and namespace["uuid"] == volume, found
            assert connects(port)
            assert csi.call("nvmf_subsystem_remove_ns", {"nqn": nqn, "nsid": nsid}) is True
            assert csi.call("nvmf_delete_subsystem", {"nqn": nqn}) is True
            assert not any(it["nqn"] == nqn for it in csi.call("nvmf_get_subsystems"))
        # It deletes what somebody else may have deleted, and reads the text in any case of letters.
        csi.call("bdev_malloc_delete", {"name": volume})
        for method in ("bdev_malloc_delete", "bdev_get_bdevs"):
            assert "no such device" in refusal(csi.call, method, {"name": volume}).message.lower()
        assert refusal(csi.call, "nvmf_subsystem_get_listeners", {"nqn": nqn}).message.startswith("Invalid parameters")
        refusal(csi.call, "nvmf_subsystem_remove_ns", {"nqn": nqn, "nsid": 1})
        refusal(csi.call, "nvmf_delete_subsystem", {"nqn": nqn})


def spdk_csi_failed_publications(binary):
    """What it undoes by itself when a step of a publication fails."""
    with Daemon(binary) as daemon:
        csi = HttpPost(daemon)
        nqn = "nqn.2020-04.io.spdk.csi:uuid:0"
        csi.call("nvmf_create_transport", {"trtype": "TCP"})
        csi.call("nvmf_create_subsystem", {"nqn": nqn, "allow_any_host": True, "serial_number": "spdkcsi-sn"})
        refusal(csi.call, "nvmf_subsystem_add_ns", {"nqn": nqn, "namespace": {"bdev_name": "gone"}})
        assert csi.call("nvmf_delete_subsystem", {"nqn": nqn}) is True
        # Its transport is a matter of configuration; what the target has not is refused before anything is made.
        assert refusal(csi.call, "nvmf_create_transport", {"trtype": "FC"}).code == -32602


def spdk_csi_authentication(binary):
    """401 to whoever does not know the password, and everything works for the others at the same time."""
    with Daemon(binary) as daemon:
        body = '{"jsonrpc":"2.0","id":1,"method":"spdk_get_version"}'
        for user, password in (("csi", "wrong"), ("other", "a pass:word"), ("", ""), ("csi", "a pass")):
            status, _ = HttpPost(daemon, user, password).post(body)
            assert status == 401, (user, password, status)
        assert "version" in HttpPost(daemon).call("spdk_get_version")
        for broken in ("", "nonsense", body + body):
            status, answer = HttpPost(daemon).post(broken)
            assert status == 200 and b"-32700" in answer, (broken, status, answer)
        # Several controllers at once, each for volumes of its own.
        failures = []

        def publish(number):
            try:
                csi, nqn = HttpPost(daemon), f"nqn.2020-04.io.spdk.csi:uuid:{number}"
                for _ in range(10):
                    csi.call("bdev_null_create", {"name": f"null{number}", "num_blocks": 8, "block_size": 512})
                    csi.call("nvmf_create_subsystem", {"nqn": nqn, "allow_any_host": True})
                    csi.call("nvmf_subsystem_add_ns", {"nqn": nqn, "namespace": {"bdev_name": f"null{number}"}})
                    csi.call("nvmf_delete_subsystem", {"nqn": nqn})
                    csi.call("bdev_null_delete", {"name": f"null{number}"})
            except Exception as error:  # pylint: disable=broad-except
                failures.append(error)

        threads = [threading.Thread(target=publish, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures, failures


def longhorn(binary):
    """Exposes a device and stops exposing it, as its helper does, ANA states included."""
    with Daemon(binary) as daemon:
        helper = Persistent(daemon)
        path = daemon.file("disk.img", 16 << 20)
        disk = {"name": "disk", "filename": path, "block_size": 4096}
        assert helper.call("bdev_aio_create", disk) == "disk"
        assert refusal(helper.call, "bdev_aio_create", disk).code == -17
        bdev = one(helper.call("bdev_get_bdevs", {"name": "disk"}), name="disk")
        assert bdev["product_name"] == "AIO disk" and bdev["driver_specific"]["aio"]["filename"] == path
        assert "memory_domains" not in bdev
        nqn, port = "nqn.2023-01.io.longhorn.spdk:volume-r-1", free_port()
        nguid = "0123456789abcdef0123456789abcdef"
        address = {"trtype": "tcp", "adrfam": "ipv4", "traddr": "127.0.0.1", "trsvcid": str(port)}
        for exposure in range(2):
            if helper.call("nvmf_get_transports", {}) == []:
                helper.call("nvmf_create_transport", {"trtype": "tcp"})
            else:
                assert exposure == 1
            message = refusal(helper.call, "nvmf_create_transport", {"trtype": "tcp"}).message
            assert re.search("Transport type .* already exists", message), message
            subsystem = {"nqn": nqn, "allow_any_host": True, "ana_reporting": True, "min_cntlid": 1, "max_cntlid": 999}
            assert helper.call("nvmf_create_subsystem", subsystem) is True
            namespace = {"bdev_name": "disk", "nguid": nguid, "uuid": "c8a7ed1c-5b3a-45a0-a5c2-dd2b2a2d4e9e"}
            assert helper.call("nvmf_subsystem_add_ns", {"nqn": nqn, "namespace": namespace}) == 1
            listener = {"nqn": nqn, "listen_address": address}
            assert helper.call("nvmf_subsystem_add_listener", listener) is True
            for state in ("inaccessible", "non_optimized", "optimized"):
                wanted = {**listener, "ana_state": state, "anagrpid": 1}
                assert helper.call("nvmf_subsystem_listener_set_ana_state", wanted) is True
                [only] = helper.call("nvmf_subsystem_get_listeners", {"nqn": nqn})
                assert one(only["ana_states"], ana_group=1)["ana_state"] == state
            assert connects(port)
            # To stop it, it reads everything, and removes what it finds in the form in which it finds it.
            found = one(helper.call("nvmf_get_subsystems", {}), nqn=nqn)
            assert isinstance(found["min_cntlid"], int) and found["max_cntlid"] == 999
            [only] = helper.call("nvmf_subsystem_get_listeners", {"nqn": nqn})
            removal = {"nqn": nqn, "listen_address": only["address"]}
            assert helper.call("nvmf_subsystem_remove_listener", removal) is True
            [namespace] = found["namespaces"]
            assert namespace["bdev_name"] == "disk" and namespace["nguid"] == nguid.upper()
            assert helper.call("nvmf_subsystem_remove_ns", {"nqn": nqn, "nsid": namespace["nsid"]}) is True
            assert helper.call("nvmf_delete_subsystem", {"nqn": nqn}) is True
        # Whatever it deletes may be gone already: then the code says so.
        assert helper.call("bdev_aio_delete", {"name": "disk"}) is True
        for method in ("bdev_aio_delete", "bdev_get_bdevs"):
            assert refusal(helper.call, method, {"name": "disk"}).code == -19
        assert helper.call("nvmf_get_subsystems", None) == helper.call("nvmf_get_subsystems", {})
        # A disk of its own is a local controller, which this machine has not; whatever it detaches may be gone already.
        local = {"name": "disk", "trtype": "PCIe", "traddr": "ffff:ff:1f.7"}
        assert refusal(helper.call, "bdev_nvme_attach_controller", local).code < 0
        assert helper.call("bdev_nvme_get_controllers") == []
        assert refusal(helper.call, "bdev_nvme_detach_controller", {"name": "disk"}).code == -19


def longhorn_in_flight(binary):
    """1,024 requests in flight on one connection, reading and changing: every one is answered, once, by its id."""
    with Daemon(binary) as daemon:
        helper = Persistent(daemon)
        numbers, created = set(), set()
        for number in range(1024):
            if number % 8 == 0:
                params = {"name": f"null{number}", "num_blocks": 8, "block_size": 512}
                created.add(helper.send("bdev_null_create", params))
            else:
                numbers.add(helper.send("bdev_get_bdevs" if number % 2 else "nvmf_get_subsystems"))
        for _ in range(1024):
            answer = helper.answer()
            assert "error" not in answer, answer
            (created if answer["id"] in created else numbers).remove(answer["id"])
        assert not numbers and not created
        assert len(helper.call("bdev_get_bdevs")) == 128


def ceph_nvmeof(binary):
    """A gateway: three connections, a ping, a subsystem with its range of controllers, namespaces, hosts, listeners."""
    with Daemon(binary) as daemon:
        gateway, watcher, pinger = (Persistent(daemon) for _ in range(3))
        known = methods(daemon)
        gateway.call("nvmf_create_transport", {"trtype": "TCP", "in_capsule_data_size": 8192, "max_io_qpairs_per_ctrlr": 7})
        nqn, host = "nqn.2016-06.io.spdk:cnode1.group1", "nqn.2016-06.io.spdk:host1"
        subsystem = {
            "nqn": nqn, "serial_number": "Ceph12345678901234", "model_number": "Ceph bdev Controller",
            "max_namespaces": 256, "min_cntlid": 2041, "max_cntlid": 4080, "ana_reporting": True,
            "allow_any_host": False,
        }
        assert gateway.call("nvmf_create_subsystem", subsystem) is True
        assert refusal(gateway.call, "nvmf_create_subsystem", subsystem).code < 0
        uuids = [f"0b1e6f0e-0000-4000-8000-{number:012d}" for number in range(3)]
        for number, uuid in enumerate(uuids, start=1):
            params = {"name": f"rbd{number}", "num_blocks": 256, "block_size": 4096, "uuid": uuid}
            gateway.call("bdev_malloc_create", params)
            namespace = {"bdev_name": f"rbd{number}", "nsid": number, "anagrpid": 1, "uuid": uuid, "no_auto_visible": False}
            assert gateway.call("nvmf_subsystem_add_ns", {"nqn": nqn, "namespace": namespace}) == number
        [found] = watcher.call("nvmf_get_subsystems", {"nqn": nqn})
        assert [namespace["uuid"] for namespace in found["namespaces"]] == uuids
        assert (found["min_cntlid"], found["max_cntlid"], found["max_namespaces"]) == (2041, 4080, 256)
        # "*" is any host, in the words of older clients.
        for disable in (False, True):
            assert gateway.call("nvmf_subsystem_allow_any_host", {"nqn": nqn, "disable": disable}) is True
            assert watcher.call("nvmf_get_subsystems", {"nqn": nqn})[0]["allow_any_host"] is not disable
        assert gateway.call("nvmf_subsystem_add_host", {"nqn": nqn, "host": host}) is True
        port = free_port()
        listener = {
            "nqn": nqn,
            "listen_address": {"trtype": "TCP", "traddr": "127.0.0.1", "trsvcid": str(port), "adrfam": "ipv4"},
        }
        assert gateway.call("nvmf_subsystem_add_listener", {**listener, "secure_channel": False}) is True
        for state in ("inaccessible", "optimized"):
            # Without a group: of all groups.
            assert gateway.call("nvmf_subsystem_listener_set_ana_state", {**listener, "ana_state": state}) is True
            [only] = watcher.call("nvmf_subsystem_get_listeners", {"nqn": nqn})
            assert {each["ana_state"] for each in only["ana_states"]} == {state} and len(only["ana_states"]) == 256
        # A gateway of the group has failed: this one takes its ANA group over; and load is balanced by moving a namespace.
        takeover = {**listener, "ana_state": "optimized", "anagrpid": 2}
        assert gateway.call("nvmf_subsystem_listener_set_ana_state", takeover) is True
        for extra in ({}, {"transit_anagrpid": 3}):
            move = {"nqn": nqn, "nsid": 3, "anagrpid": 2, **extra}
            assert gateway.call("nvmf_subsystem_set_ns_ana_group", move) is True
        [found] = watcher.call("nvmf_get_subsystems", {"nqn": nqn})
        assert [namespace["anagrpid"] for namespace in found["namespaces"]] == [1, 1, 2]
        # A namespace of a volume that only some hosts are to see.
        gateway.call("bdev_malloc_create", {"name": "rbd4", "num_blocks": 256, "block_size": 4096})
        masked = {"bdev_name": "rbd4", "nsid": 4, "anagrpid": 1, "no_auto_visible": True}
        assert gateway.call("nvmf_subsystem_add_ns", {"nqn": nqn, "namespace": masked}) == 4
        visible = {"nqn": nqn, "nsid": 4, "host": host}
        assert gateway.call("nvmf_ns_add_host", visible) is True
        assert gateway.call("nvmf_ns_remove_host", visible) is True
        assert refusal(gateway.call, "nvmf_ns_add_host", {**visible, "nsid": 1}).code < 0
        assert gateway.call("nvmf_subsystem_remove_ns", {"nqn": nqn, "nsid": 4}) is True
        if "bdev_get_iostat" in known:
            assert "tick_rate" in gateway.call("bdev_get_iostat", {"name": "rbd1"})
        # Only what changes is named.
        for limits in ({"rw_ios_per_sec": 2000}, {"r_mbytes_per_sec": 10, "w_mbytes_per_sec": 0}):
            assert gateway.call("bdev_set_qos_limit", {"name": "rbd1", **limits}) is True
        [bdev] = watcher.call("bdev_get_bdevs", {"name": "rbd1"})
        assert bdev["assigned_rate_limits"] == {
            "rw_ios_per_sec": 2000, "rw_mbytes_per_sec": 0, "r_mbytes_per_sec": 10, "w_mbytes_per_sec": 0,
        }
        assert "version" in pinger.call("spdk_get_version")
        assert gateway.call("nvmf_subsystem_remove_listener", listener) is True
        assert gateway.call("nvmf_subsystem_remove_host", {"nqn": nqn, "host": host}) is True
        assert refusal(gateway.call, "nvmf_subsystem_remove_host", {"nqn": nqn, "host": host}).code < 0
        assert gateway.call("nvmf_subsystem_remove_ns", {"nqn": nqn, "nsid": 2}) is True
        assert gateway.call("bdev_malloc_delete", {"name": "rbd2"}) is True
        assert gateway.call("nvmf_delete_subsystem", {"nqn": nqn}) is True
        error = refusal(gateway.call, "bdev_get_bdevs", {"name": "rbd2"})
        # It takes the negated code for an errno; "timeout" in a text would be another.
        assert error.code == -19 and "timeout" not in error.message.lower()


def opi(binary, over):
    """A bridge between gRPC and SPDK: devices, a subsystem with a host of its own, a namespace, a controller."""
    with Daemon(binary) as daemon:
        bridge = PerCall(daemon, over)
        known = methods(daemon)
        version = bridge.call("spdk_get_version")
        assert isinstance(version["version"], str) and isinstance(version["fields"]["suffix"], str)
        path = daemon.file("disk.img", 1 << 20)
        kinds = {
            "malloc": {"num_blocks": 64, "block_size": 512, "md_interleave": True},
            "null": {"num_blocks": 64, "block_size": 512},
            "aio": {"filename": path, "block_size": 512},
        }
        for kind, params in kinds.items():
            assert bridge.call(f"bdev_{kind}_create", {"name": kind, **params}) == kind
            # It changes a volume by making it again.
            assert bridge.call(f"bdev_{kind}_delete", {"name": kind}) is True
            assert bridge.call(f"bdev_{kind}_create", {"name": kind, **params}) == kind
            [bdev] = bridge.call("bdev_get_bdevs", {"name": kind})
            assert isinstance(bdev["uuid"], str) and bdev["block_size"] == 512
        assert len(bridge.call("bdev_get_bdevs")) == 3
        nqn, port = "nqn.2022-09.io.spdk:opi3", free_port()
        bridge.call("nvmf_create_transport", {"trtype": "TCP"})
        # What its caller did not say, it sends empty.
        subsystem = {"nqn": nqn, "serial_number": "", "model_number": "", "allow_any_host": False, "max_namespaces": 0}
        assert bridge.call("nvmf_create_subsystem", subsystem) is True
        assert bridge.call("nvmf_subsystem_add_host", {"nqn": nqn, "host": "nqn.2014-08.org.nvmexpress:opi"}) is True
        namespace = {"nqn": nqn, "namespace": {"nsid": 0, "bdev_name": "malloc"}}
        nsid = bridge.call("nvmf_subsystem_add_ns", namespace)
        assert isinstance(nsid, int) and nsid == 1
        listener = {
            "nqn": nqn, "listen_address": {"trtype": "tcp", "traddr": "127.0.0.1", "trsvcid": str(port), "adrfam": "ipv4"},
        }
        assert bridge.call("nvmf_subsystem_add_listener", listener) is True
        found = one(bridge.call("nvmf_get_subsystems"), nqn=nqn)
        assert found["namespaces"][0]["name"] == "malloc" and found["serial_number"]
        for method, params in (("nvmf_get_stats", {}), ("bdev_get_iostat", {"name": "malloc"})):
            if method in known:
                assert "tick_rate" in bridge.call(method, params)
        # It names the channel here, too, which SPDK refuses.
        assert bridge.call("nvmf_subsystem_remove_listener", {**listener, "secure_channel": False}) is True
        assert bridge.call("nvmf_subsystem_remove_ns", {"nqn": nqn, "nsid": nsid}) is True
        assert bridge.call("nvmf_delete_subsystem", {"nqn": nqn}) is True
        for kind in kinds:
            assert bridge.call(f"bdev_{kind}_delete", {"name": kind}) is True
            assert refusal(bridge.call, f"bdev_{kind}_delete", {"name": kind}).code == -19
        assert refusal(bridge.call, "nvmf_delete_subsystem", {"nqn": nqn}).code == -32602
        assert bridge.call("bdev_nvme_get_controllers") == []


def not_yet(binary):
    """A method of these programs that has come since is to be replayed; until then it is refused as SPDK refuses."""
    with Daemon(binary) as daemon:
        client, known = Persistent(daemon), methods(daemon)
        for program, names in NOT_YET.items():
            for name in names:
                assert name not in known, f"{program}: {name} is there now: replay it, and take it off the list"
                error = refusal(client.call, name)
                assert (error.code, error.message) == (-32601, "Method not found")


def checks(binary):
    """Name and function of each check."""
    for check in (
        spdk_csi, spdk_csi_failed_publications, spdk_csi_authentication, longhorn, longhorn_in_flight, ceph_nvmeof, not_yet,
    ):
        yield f"replay {check.__name__}", functools.partial(check, binary)
    for over in ("unix", "tcp"):
        yield f"replay opi over {over}", functools.partial(opi, binary, over)
