"""SPDK's own Python client, as its package `spdk` on PyPI has it: every method that the daemon lists is called by it,
by the command line that its users type and by the calls that programs make.

`TABLE` has an entry for each method: how it is called and what is checked. A method without an entry fails, and so
does an entry without a method.
"""

import base64
import contextlib
import functools
import io
import json
import re
import shlex

from spdk.rpc.client import JSONRPCClient, JSONRPCException
from spdk.spdk_rpc import call_rpc_func, create_parser

from daemon import Daemon, Refused, free_port

TABLE = {}
NQN = "nqn.2016-06.io.spdk:cnode1"
HOST = "nqn.2014-08.org.nvmexpress:uuid:0b7a3b4e-9d4f-4d58-a8f2-5a63c1a53ae6"
UUID = "5e0d6ddd-9a4b-4e7c-8a52-2f1cf5b1b5e2"
MIB = 1 << 20

parser = functools.cache(lambda: create_parser()[0])


def drives(method):
    """Enters a function into the table; it is given an `Operator` of a daemon that nothing is configured in."""

    def enter(check):
        assert method not in TABLE, method
        TABLE[method] = check
        return check

    return enter


class Recording(JSONRPCClient):
    """Remembers what the command line made of its arguments."""

    last = None

    def call(self, method, params=None):
        try:
            result = super().call(method, params)
        except JSONRPCException as error:
            # The text ends with the error as JSON.
            found = re.search(r'\{[^{}]*"code"[^{}]*\}\s*$', error.message)
            if found is None:
                raise
            raise Refused(json.loads(found.group())) from error
        self.last = (method, params, result)
        return result


class Operator:
    """Somebody with SPDK's tools and a daemon."""

    def __init__(self, daemon):
        self.daemon = daemon
        self.client = Recording(daemon.unix, timeout=30.0)

    def types(self, line):
        """A line of SPDK's command line tool: what the daemon said, and what was sent as `self.sent`."""
        args = parser().parse_args(shlex.split(line))
        args.client = self.client
        self.client.last = None
        with contextlib.redirect_stdout(io.StringIO()):
            call_rpc_func(args)
        method, self.sent, result = self.client.last
        assert method == line.split()[0], (method, line)
        return result

    def is_refused(self, line, code, *texts):
        """A line that has to fail, with an error that clients and people understand."""
        try:
            result = self.types(line)
        except Refused as refused:
            assert refused.code == code, (line, refused)
            for text in texts:
                assert text in refused.message, (line, refused)
            return
        raise AssertionError(f"{line} succeeded: {result}")

    def bdev(self, name):
        [bdev] = self.types(f"bdev_get_bdevs -b {name}")
        return bdev

    def subsystem(self, nqn=NQN):
        [subsystem] = self.types(f"nvmf_get_subsystems {nqn}")
        return subsystem

    def with_subsystem(self):
        assert self.types("nvmf_create_transport -t TCP") is True
        assert self.types(f"nvmf_create_subsystem {NQN}") is True


def same(found, **expected):
    """Some fields of an object."""
    for key, value in expected.items():
        assert found.get(key) == value, f"{key} is {found.get(key)!r}, expected {value!r}: {found}"


# About the process


@drives("spdk_get_version")
def _(it):
    version = it.types("spdk_get_version")
    assert set(version) >= {"version", "fields"} and isinstance(version["version"], str)
    assert all(isinstance(version["fields"][key], int) for key in ("major", "minor", "patch")), version
    assert isinstance(version["fields"]["suffix"], str)


@drives("rpc_get_methods")
def _(it):
    methods = it.types("rpc_get_methods")
    assert len(set(methods)) == len(methods) and "nvmf_get_subsystems" in methods
    assert it.types("rpc_get_methods -c") == methods
    assert set(it.types("rpc_get_methods -i")) >= set(methods)


@drives("framework_start_init")
def _(it):
    assert it.types("framework_start_init") is True


@drives("framework_wait_init")
def _(it):
    assert it.types("framework_wait_init") is True


@drives("bdev_wait_for_examine")
def _(it):
    assert it.types("bdev_wait_for_examine") is True


# Block devices


@drives("bdev_malloc_create")
def _(it):
    assert it.types(f"bdev_malloc_create -b ram -u {UUID} 16 4096") == "ram"
    assert it.sent["num_blocks"] == 4096
    same(it.bdev("ram"), product_name="Malloc disk", block_size=4096, num_blocks=4096, uuid=UUID, claimed=False)
    assert UUID in it.bdev("ram")["aliases"]
    assert it.types("bdev_malloc_create 1 512") == "Malloc0"
    assert it.types("bdev_malloc_create -p 4096 -o 8 -n -1 1 512") == "Malloc1"
    it.is_refused("bdev_malloc_create -b ram 1 512", -17, "File exists", "ram")
    it.is_refused(f"bdev_malloc_create -b other -u {UUID} 1 512", -17, "File exists", UUID)
    it.is_refused("bdev_malloc_create -b odd 1 1024", -32602, "Invalid parameters", "1024")
    it.is_refused("bdev_malloc_create -b meta -m 8 -t 1 1 512", -32602, "md_size")


@drives("bdev_malloc_delete")
def _(it):
    it.types("bdev_malloc_create -b ram 1 512")
    assert it.types("bdev_malloc_delete ram") is True
    it.is_refused("bdev_malloc_delete ram", -19, "No such device")
    it.types("bdev_null_create null 1 512")
    it.is_refused("bdev_malloc_delete null", -19, "No such device")


@drives("bdev_null_create")
def _(it):
    assert it.types(f"bdev_null_create null -u {UUID} 100 512") == "null"
    same(it.bdev("null"), product_name="Null disk", block_size=512, num_blocks=100 * MIB // 512, uuid=UUID)
    assert it.types("bdev_null_create hints -p 4096 -a 8 -g 8 -s 8 -c 8 -r 8 1 512") == "hints"
    it.is_refused("bdev_null_create null 1 512", -17, "File exists")
    it.is_refused("bdev_null_create meta -m 8 1 512", -32602, "md_size")


@drives("bdev_null_delete")
def _(it):
    it.types("bdev_null_create null 1 512")
    assert it.types("bdev_null_delete null") is True
    it.is_refused("bdev_null_delete null", -19, "No such device")


def file_device(it, kind, product):
    path = it.daemon.file("disk.img", 8 * MIB)
    assert it.types(f"bdev_{kind}_create {path} disk 4096 -u {UUID}") == "disk"
    bdev = it.bdev("disk")
    same(bdev, product_name=product, block_size=4096, num_blocks=8 * MIB // 4096, uuid=UUID)
    same(bdev["driver_specific"][kind], filename=path)
    other = it.daemon.file("other.img", MIB)
    assert it.types(f"bdev_{kind}_create {other} other") == "other"
    it.is_refused(f"bdev_{kind}_create {other} disk", -17, "File exists")
    it.is_refused(f"bdev_{kind}_create {other} again", -16, "Device or resource busy", "other.img")
    it.is_refused(f"bdev_{kind}_create {it.daemon.path('none')} none", -2, "No such file or directory", "none")
    it.is_refused(f"bdev_{kind}_create /tmp folder", -32602, "/tmp")
    it.is_refused(f"bdev_{kind}_create {it.daemon.file('odd', MIB)} odd 3", -32602, "3")


def file_device_deleted(it, kind):
    path = it.daemon.file("disk.img", MIB)
    it.types(f"bdev_{kind}_create {path} disk")
    assert it.types(f"bdev_{kind}_delete disk") is True
    it.is_refused(f"bdev_{kind}_delete disk", -19, "No such device")
    # The file is free again at once.
    assert it.types(f"bdev_{kind}_create {path} disk") == "disk"
    it.is_refused(f"bdev_{'uring' if kind == 'aio' else 'aio'}_delete disk", -19, "No such device")


@drives("bdev_aio_create")
def _(it):
    file_device(it, "aio", "AIO disk")
    path = it.daemon.file("protected.img", MIB)
    assert it.types(f"bdev_aio_create {path} protected 512 --readonly --fallocate --no-wait") == "protected"
    assert it.bdev("protected")["driver_specific"]["aio"]["readonly"] is True
    assert it.bdev("protected")["supported_io_types"]["write"] is False


@drives("bdev_aio_delete")
def _(it):
    file_device_deleted(it, "aio")


@drives("bdev_uring_create")
def _(it):
    file_device(it, "uring", "URING bdev")


@drives("bdev_uring_delete")
def _(it):
    file_device_deleted(it, "uring")


@drives("bdev_xnvme_create")
def _(it):
    path = it.daemon.file("disk.img", 8 * MIB)
    assert it.types(f"bdev_xnvme_create {path} disk io_uring -c") == "disk"
    same(it.bdev("disk"), product_name="xNVMe bdev", block_size=512, num_blocks=8 * MIB // 512)
    other = it.daemon.file("other.img", MIB)
    assert it.types(f"bdev_xnvme_create {other} other libaio") == "other"
    # Commands are for generic devices, which no machine is sure to have.
    plain = it.daemon.file("plain.img", MIB)
    it.is_refused(f"bdev_xnvme_create {plain} plain io_uring_cmd", -32602, "plain.img", "io_uring_cmd")
    it.is_refused(f"bdev_xnvme_create {plain} plain thrpool", -32602, "thrpool")
    it.is_refused(f"bdev_xnvme_create {it.daemon.path('none')} none io_uring_cmd", -2, "No such file or directory", "none")


@drives("bdev_xnvme_delete")
def _(it):
    path = it.daemon.file("disk.img", MIB)
    it.types(f"bdev_xnvme_create {path} disk io_uring")
    it.is_refused("bdev_uring_delete disk", -19, "No such device")
    assert it.types("bdev_xnvme_delete disk") is True
    it.is_refused("bdev_xnvme_delete disk", -19, "No such device")


@drives("bdev_get_bdevs")
def _(it):
    assert it.types("bdev_get_bdevs") == []
    it.types(f"bdev_malloc_create -b ram -u {UUID} 1 512")
    it.types("bdev_null_create null 1 512")
    assert {bdev["name"] for bdev in it.types("bdev_get_bdevs")} == {"ram", "null"}
    assert it.bdev(UUID)["name"] == "ram"
    assert it.types("bdev_get_bdevs -b ram -t 1000")[0]["name"] == "ram"
    it.is_refused("bdev_get_bdevs -b none", -19, "No such device", "none")
    bdev = it.bdev("ram")
    kinds = {
        "name": str, "aliases": list, "product_name": str, "block_size": int, "num_blocks": int, "uuid": str,
        "assigned_rate_limits": dict, "claimed": bool, "zoned": bool, "supported_io_types": dict, "driver_specific": dict,
    }
    for key, kind in kinds.items():
        assert isinstance(bdev[key], kind), f"{key}: {bdev}"
    assert bdev["supported_io_types"]["read"] is True
    assert "memory_domains" not in bdev, "Longhorn's client cannot read them"



# Devices that stand on others


def with_base(it):
    assert it.types("bdev_malloc_create -b ram 1 512") == "ram"


@drives("bdev_delay_create")
def _(it):
    with_base(it)
    line = f"bdev_delay_create -b ram -d slow -u {UUID} -r 10 -t 1000 -w 20 -n 2000"
    assert it.types(line) == "slow"
    bdev = it.bdev("slow")
    same(bdev, product_name="delay", block_size=512, num_blocks=MIB // 512, uuid=UUID, claimed=False)
    expected = {
        "name": "slow", "base_bdev_name": "ram", "uuid": UUID, "avg_read_latency": 10, "p99_read_latency": 1000,
        "avg_write_latency": 20, "p99_write_latency": 2000,
    }
    assert bdev["driver_specific"] == {"delay": expected}, bdev
    same(it.bdev("ram"), claimed=True, claim_type="exclusive_write")
    it.is_refused(line, -17, "File exists")
    it.is_refused("bdev_delay_create -b slow -d fast -r 10 -t 1 -w 0 -n 0", -22, "Invalid argument")
    it.is_refused("bdev_delay_create -b ram -d other -r 0 -t 0 -w 0 -n 0", -1, "Operation not permitted")
    # SPDK defers it, too.
    assert it.types("bdev_delay_create -b none -d early -r 0 -t 0 -w 0 -n 0") == "early"
    assert [each["method"] for each in it.types("framework_get_config bdev")].count("bdev_delay_create") == 2


@drives("bdev_delay_delete")
def _(it):
    with_base(it)
    it.types("bdev_delay_create -b ram -d slow -r 0 -t 0 -w 0 -n 0")
    it.is_refused("bdev_malloc_delete ram", -16, "slow stands on ram")
    it.is_refused("bdev_delay_delete ram", -19, "No such device")
    assert it.types("bdev_delay_delete slow") is True
    same(it.bdev("ram"), claimed=False)
    it.is_refused("bdev_delay_delete slow", -19, "No such device")


@drives("bdev_delay_update_latency")
def _(it):
    with_base(it)
    it.types("bdev_delay_create -b ram -d slow -r 0 -t 0 -w 0 -n 0")
    for latency in ("avg_read", "avg_write", "p99_read", "p99_write"):
        assert it.types(f"bdev_delay_update_latency slow {latency} 77") is True
        same(it.bdev("slow")["driver_specific"]["delay"], **{f"{latency}_latency": 77})
    it.is_refused("bdev_delay_update_latency ram avg_read 1", -32602, "The requested bdev does not exist.")


@drives("bdev_error_create")
def _(it):
    with_base(it)
    assert it.types(f"bdev_error_create ram --uuid {UUID}") is True
    bdev = it.bdev("EE_ram")
    same(bdev, product_name="Error Injection Disk", num_blocks=MIB // 512, uuid=UUID)
    assert bdev["driver_specific"] == {"error_disk": {"base_bdev": "ram"}}, bdev
    it.is_refused("bdev_error_create ram", -17, "File exists")
    assert it.types("bdev_error_create none") is True


@drives("bdev_error_delete")
def _(it):
    with_base(it)
    it.types("bdev_error_create ram")
    assert it.types("bdev_error_delete EE_ram") is True
    it.is_refused("bdev_error_delete EE_ram", -19, "No such device")
    it.is_refused("bdev_error_delete ram", -19, "No such device")


@drives("bdev_error_inject_error")
def _(it):
    with_base(it)
    it.types("bdev_error_create ram")
    for io_type in ("clear", "read", "write", "unmap", "flush", "all"):
        assert it.types(f"bdev_error_inject_error EE_ram {io_type} failure -n 3 -q 2") is True
    for error_type in ("pending", "nomem", "nvme_failure --nvme-sct 2 --nvme-sc 129", "corrupt_data -o 3 -v 255"):
        assert it.types(f"bdev_error_inject_error EE_ram read {error_type}") is True
    it.is_refused("bdev_error_inject_error EE_ram read corrupt_data", -22, "corrupt_value")
    it.is_refused("bdev_error_inject_error EE_ram read nvme_failure", -22, "nvme_sct or nvme_sc should be specified")
    it.is_refused("bdev_error_inject_error ram read failure", -19, "No such device")


@drives("bdev_error_resume_pending")
def _(it):
    with_base(it)
    it.types("bdev_error_create ram")
    assert it.types("bdev_error_resume_pending EE_ram") is True
    it.is_refused("bdev_error_resume_pending ram", -19, "No such device")


# Sizes


@drives("bdev_null_resize")
def _(it):
    it.types("bdev_null_create nothing 1 512")
    assert it.types("bdev_null_resize nothing 3") is True
    same(it.bdev("nothing"), num_blocks=3 * MIB // 512)
    it.is_refused("bdev_null_resize nothing 1", -32602, "Invalid parameters", "shrink")
    it.is_refused("bdev_null_resize none 3", -19, "No such device", "none")


@drives("bdev_set_qos_limit")
def _(it):
    it.types("bdev_malloc_create 1 512 -b limited")
    assert it.types("bdev_set_qos_limit limited --rw-ios-per-sec 2000 --w-mbytes-per-sec 10") is True
    assert it.types("bdev_set_qos_limit limited --r-mbytes-per-sec 5 --w-mbytes-per-sec 0") is True
    same(it.bdev("limited")["assigned_rate_limits"], rw_ios_per_sec=2000, rw_mbytes_per_sec=0,
         r_mbytes_per_sec=5, w_mbytes_per_sec=0)
    it.is_refused("bdev_set_qos_limit limited", -22, "No rate limits specified")
    it.is_refused("bdev_set_qos_limit none --rw-ios-per-sec 1", -19, "No such device", "none")


def grows(it, kind):
    path = it.daemon.file("disk", MIB)
    it.types(f"bdev_{kind}_create {path} disk 512")
    it.daemon.file("disk", 2 * MIB)
    assert it.types(f"bdev_{kind}_rescan disk") is True
    same(it.bdev("disk"), num_blocks=2 * MIB // 512)
    it.is_refused(f"bdev_{kind}_rescan none", -19, "No such device", "none")


drives("bdev_aio_rescan")(lambda it: grows(it, "aio"))
drives("bdev_uring_rescan")(lambda it: grows(it, "uring"))


# Documents


def configured(it):
    it.types("bdev_null_create nothing 1 512")
    it.with_subsystem()
    it.types(f"nvmf_subsystem_add_ns {NQN} nothing")


@drives("framework_get_subsystems")
def _(it):
    names = [each["subsystem"] for each in it.types("framework_get_subsystems")]
    assert names.index("bdev") < names.index("nvmf"), names


@drives("framework_get_config")
def _(it):
    configured(it)
    assert [each["method"] for each in it.types("framework_get_config bdev")] == ["bdev_null_create"]
    it.is_refused("framework_get_config nonsense", -32602, "Invalid parameters", "nonsense")


@drives("save_config")
def _(it):
    configured(it)
    document = it.client.call("save_config")
    assert {each["subsystem"] for each in document["subsystems"]} >= {"bdev", "nvmf"}


@drives("save_subsystem_config")
def _(it):
    configured(it)
    part = it.client.call("save_subsystem_config", {"name": "bdev"})
    assert part["subsystem"] == "bdev" and len(part["config"]) == 1, part


@drives("load_config")
def _(it):
    configured(it)
    document = it.client.call("save_config")
    subsystem = it.subsystem()
    assert it.types(f"nvmf_delete_subsystem {NQN}") is True and it.types("bdev_null_delete nothing") is True
    document["subsystems"][-1]["config"] = [
        each for each in document["subsystems"][-1]["config"] if each["method"] != "nvmf_create_transport"
    ]
    assert it.client.call("load_config", document) is True
    assert it.subsystem() == subsystem


@drives("load_subsystem_config")
def _(it):
    create = {"method": "bdev_null_create", "params": {"name": "nothing", "num_blocks": 8, "block_size": 512}}
    assert it.client.call("load_subsystem_config", {"subsystem": "bdev", "config": [create]}) is True
    same(it.bdev("nothing"), num_blocks=8)


@drives("tidegate_bdev_create")
def _(it):
    path = it.daemon.file("disk", MIB)
    params = {"name": "disk", "kind": {"file": {"path": path, "block_size": 512, "made_as": "aio"}}}
    assert it.client.call("tidegate_bdev_create", params) == "disk"
    same(it.bdev("disk"), num_blocks=MIB // 512)


# Process settings of SPDK, which mean nothing here

ACCEPTED = {
    "accel_set_options": "--task-count 8",
    "bdev_examine": "-b ram",
    "bdev_iscsi_set_options": "-t 3",
    "bdev_nvme_set_hotplug": "--no-hotplug",
    "bdev_raid_set_options": "-w 1024",
    "bdev_set_options": "-p 65535",
    "framework_set_scheduler": "static",
    "fsdev_set_opts": "1 1",
    "iobuf_set_options": "--small-pool-count 8192",
    "iscsi_set_options": "-q 64",
    "keyring_linux_set_options": "-e",
    "log_enable_timestamps": "--timestamps",
    "nvmf_set_config": "-m 0x1",
    "nvmf_set_crdt": "-t1 1",
    "nvmf_set_max_subsystems": "-x 8",
    "scheduler_set_options": "-s 0",
    "sock_impl_set_options": "-i posix",
    "sock_set_default_impl": "-i posix",
}


NOWHERE = "fffe:00:1f.7"


@drives("bdev_nvme_attach_controller")
def _(it):
    line = "bdev_nvme_attach_controller -b Nvme0 -t PCIe"
    it.is_refused(f"{line} -a {NOWHERE}", -19, "No such device", NOWHERE)
    sent = "-f ipv4 -s 4420 -n nqn -q nqn -x failover --num-io-queues 2 -l 10 -o 2 -u 5 -m 64 --policy active_passive"
    it.is_refused(f"{line} -a {NOWHERE} {sent}", -19, NOWHERE)
    it.is_refused(f"{line} -a nowhere", -32602, "traddr")
    it.is_refused("bdev_nvme_attach_controller -b Nvme0 -t tcp -a 192.0.2.1", -32602, "trtype")
    it.is_refused(f"{line} -a {NOWHERE} -l 1 -o 2", -22, "reconnect_delay_sec")
    it.is_refused(f"{line} -a {NOWHERE} -k key", -32602, "psk")
    it.is_refused(f"{line} -a {NOWHERE} -r", -32602, "prchk_reftag")
    it.is_refused(f"{line} -a {NOWHERE} -m 0", -22, "max_bdevs cannot be zero")
    assert it.types("bdev_get_bdevs") == []


@drives("bdev_nvme_detach_controller")
def _(it):
    it.is_refused("bdev_nvme_detach_controller Nvme0", -19, "No such device", "Nvme0")
    it.is_refused(f"bdev_nvme_detach_controller Nvme0 -t PCIe -a {NOWHERE}", -19, "No such device")


@drives("bdev_nvme_get_controllers")
def _(it):
    assert it.types("bdev_nvme_get_controllers") == []
    it.is_refused("bdev_nvme_get_controllers -n Nvme0", -22, "Controller Nvme0 does not exist")


@drives("bdev_nvme_get_controller_health_info")
def _(it):
    it.is_refused("bdev_nvme_get_controller_health_info -c Nvme0", -32603, "Device not found")


@drives("bdev_nvme_get_io_paths")
def _(it):
    for line in ("bdev_nvme_get_io_paths", "bdev_nvme_get_io_paths -n Nvme0n1"):
        groups = it.types(line)["poll_groups"]
        assert groups and all(group["io_paths"] == [] and group["thread"] for group in groups), groups


@drives("bdev_nvme_reset_controller")
def _(it):
    it.is_refused("bdev_nvme_reset_controller Nvme0", -19, "No such device", "Nvme0")


@drives("bdev_nvme_send_cmd")
def _(it):
    identify = base64.urlsafe_b64encode(bytes([6]) + bytes(63)).decode()
    line = f"bdev_nvme_send_cmd -n Nvme0 -t admin -r c2h -c {identify} -D 4096 -T 1000"
    it.is_refused(line, -32602, "Nvme0")
    it.is_refused(line.replace("-t admin", "-t io"), -32602, "cmd_type")


@drives("bdev_nvme_apply_firmware")
def _(it):
    it.is_refused("bdev_nvme_apply_firmware /image Nvme0n1", -32603, "bdev Nvme0n1 could not be opened")


@drives("bdev_nvme_set_options")
def _(it):
    assert it.types("bdev_nvme_set_options") is True
    assert it.types("bdev_nvme_set_options -a abort -t 1000000 --timeout-admin-us 2000000 -p 10000 -s 512 -r -1") is True
    assert it.types("bdev_nvme_set_options -l -1 -o 2 -u 4") is True
    [options] = [part for part in it.types("framework_get_config bdev") if part["method"] == "bdev_nvme_set_options"]
    same(options["params"], action_on_timeout="abort", timeout_us=1000000, bdev_retry_count=-1, reconnect_delay_sec=2)
    it.is_refused("bdev_nvme_set_options -r -2", -22, "bdev_retry_count")
    it.is_refused("bdev_nvme_set_options -o 0", -22, "reconnect_delay_sec")


def is_accepted(it, line):
    assert it.types(line) is True


for name, arguments in ACCEPTED.items():
    drives(name)(functools.partial(is_accepted, line=f"{name} {arguments}"))


# The log and what happened


@drives("log_set_level")
def _(it):
    assert it.types("log_set_level DEBUG") is True
    assert it.types("log_get_level") == "DEBUG"


@drives("log_get_level")
def _(it):
    assert it.types("log_get_level") == "INFO"


@drives("log_set_print_level")
def _(it):
    assert it.types("log_set_print_level ERROR") is True
    assert it.types("log_get_print_level") == "ERROR"


@drives("log_get_print_level")
def _(it):
    assert it.types("log_get_print_level") == "INFO"


@drives("log_get_flags")
def _(it):
    assert it.types("log_get_flags")["nvmf"] is False


@drives("log_set_flag")
def _(it):
    assert it.types("log_set_flag nvmf") is True
    assert it.types("log_get_flags")["nvmf"] is True
    it.is_refused("log_set_flag nonsense", -32602, "Invalid parameters", "nonsense")


@drives("log_clear_flag")
def _(it):
    assert it.types("log_set_flag all") is True
    assert it.types("log_clear_flag nvmf") is True
    flags = it.types("log_get_flags")
    assert flags["nvmf"] is False and flags["rpc"] is True, flags


@drives("notify_get_types")
def _(it):
    assert {"bdev_register", "bdev_unregister"} <= set(it.types("notify_get_types"))


@drives("notify_get_notifications")
def _(it):
    it.types("bdev_null_create nothing 1 512")
    it.types("bdev_null_delete nothing")
    happened = it.types("notify_get_notifications -i 0 -n 10")
    assert [(each["type"], each["ctx"]) for each in happened] == [
        ("bdev_register", "nothing"), ("bdev_unregister", "nothing")
    ], happened


@drives("spdk_kill_instance")
def _(it):
    it.is_refused("spdk_kill_instance SIGKILL", -32602, "Invalid parameters")
    assert it.types("spdk_kill_instance SIGTERM") is True
    assert it.daemon.process.wait(timeout=30) == 0


# Reactors, controllers and queues


@drives("framework_monitor_context_switch")
def _(it):
    assert it.types("framework_monitor_context_switch") == {"enabled": False}
    assert it.types("framework_monitor_context_switch --monitor") == {"enabled": True}
    assert it.types("framework_monitor_context_switch --no-monitor") == {"enabled": False}


@drives("framework_get_reactors")
def _(it):
    reactors = it.types("framework_get_reactors")["reactors"]
    assert reactors and all(each["busy"] >= 0 and each["lw_threads"] for each in reactors), reactors


@drives("thread_get_stats")
def _(it):
    stats = it.types("thread_get_stats")
    assert stats["tick_rate"] > 0 and all("poll" in each["name"] for each in stats["threads"]), stats


@drives("thread_get_pollers")
def _(it):
    assert all(each["active_pollers"] for each in it.types("thread_get_pollers")["threads"])


@drives("thread_get_io_channels")
def _(it):
    assert all("io_channels" in each for each in it.types("thread_get_io_channels")["threads"])


@drives("nvmf_get_stats")
def _(it):
    groups = it.types("nvmf_get_stats")["poll_groups"]
    assert groups and all(each["current_io_qpairs"] == 0 for each in groups), groups


@drives("nvmf_subsystem_get_controllers")
def _(it):
    it.with_subsystem()
    assert it.types(f"nvmf_subsystem_get_controllers {NQN}") == []
    it.is_refused("nvmf_subsystem_get_controllers nqn.2016-06.io.spdk:none", -32602, "Invalid parameters")


@drives("nvmf_subsystem_get_qpairs")
def _(it):
    it.with_subsystem()
    assert it.types(f"nvmf_subsystem_get_qpairs {NQN}") == []
    it.is_refused("nvmf_subsystem_get_qpairs nqn.2016-06.io.spdk:none", -32602, "Invalid parameters")


# What they did


@drives("bdev_get_iostat")
def _(it):
    it.types("bdev_malloc_create -b ram 1 512")
    it.types("bdev_null_create nothing 1 512")
    stat = it.types("bdev_get_iostat")
    assert stat["tick_rate"] > 0 and stat["ticks"] > 0, stat
    assert sorted(bdev["name"] for bdev in stat["bdevs"]) == ["nothing", "ram"], stat
    [ram] = it.types("bdev_get_iostat --names ram")["bdevs"]
    same(ram, name="ram", bytes_read=0, num_read_ops=0, bytes_written=0, num_write_ops=0, read_latency_ticks=0)
    assert it.types("bdev_get_iostat --names ram -c")["name"] == "ram"
    it.is_refused("bdev_get_iostat --names none", -19, "No such device", "none")


@drives("tidegate_get_statistics")
def _(it):
    it.types("bdev_malloc_create -b ram 1 512")
    first = it.client.call("tidegate_get_statistics", {})
    [ram] = first["devices"]
    same(ram, device="ram", size_bytes=MIB, operations_in_flight=0, operations={}, errors={})
    assert first["reactors"] and all(each["pool_bytes"] > 0 for each in first["reactors"]), first
    assert first["controllers"] == [] and first["tick_rate"] > 0, first
    assert it.client.call("tidegate_get_statistics", {})["ticks"] > first["ticks"]


@drives("bdev_reset_iostat")
def _(it):
    it.types("bdev_malloc_create -b ram 1 512")
    assert it.types("bdev_reset_iostat") is True
    assert it.types("bdev_reset_iostat -b ram -m maxmin") is True
    it.is_refused("bdev_reset_iostat -b none", -19, "No such device", "none")


@drives("bdev_enable_histogram")
def _(it):
    it.types("bdev_malloc_create -b ram 1 512")
    assert it.types("bdev_enable_histogram ram --histogram") is True
    assert it.types("bdev_enable_histogram ram --no-histogram") is True
    it.is_refused("bdev_enable_histogram none --histogram", -19, "No such device", "none")


@drives("bdev_get_histogram_borders")
def _(it):
    it.types("bdev_malloc_create -b ram 1 512")
    it.is_refused("bdev_get_histogram_borders ram --borders 1,2", -32603, "Bad address")
    it.types("bdev_enable_histogram ram --histogram")
    assert it.types("bdev_get_histogram_borders ram --borders 1,20,300") == {"borders_count": [0, 0, 0, 0]}
    it.is_refused("bdev_get_histogram_borders ram --borders 2,1", -32602, "borders")
    it.is_refused("bdev_get_histogram_borders none --borders 1", -19, "No such device", "none")


@drives("bdev_get_histogram")
def _(it):
    it.types("bdev_malloc_create -b ram 1 512")
    it.types("bdev_enable_histogram ram --histogram")
    histogram = it.types("bdev_get_histogram ram")
    assert set(histogram) >= {"histogram", "granularity", "min_range", "max_range", "tsc_rate"}, set(histogram)
    it.is_refused("bdev_get_histogram none", -19, "No such device", "none")


# Transports and subsystems


@drives("nvmf_create_transport")
def _(it):
    assert it.types("nvmf_create_transport -t tcp -q 64 -m 4 -c 4096 -i 131072 -u 131072 -a 64 -n 511 -o -y 1") is True
    [transport] = it.types("nvmf_get_transports")
    same(
        transport, trtype="TCP", max_queue_depth=64, max_io_qpairs_per_ctrlr=4, in_capsule_data_size=4096, max_io_size=131072
    )
    it.is_refused("nvmf_create_transport -t TCP", -32603, "Transport type 'TCP' already exists")
    it.is_refused("nvmf_create_transport -t FC", -32602, "Invalid parameters", "FC")
    # Whether RDMA can be had is the machine's matter; whoever cannot is told why.
    try:
        assert it.types("nvmf_create_transport -t RDMA -q 64 -s 512 -r --num-cqe 4096") is True
    except Refused as refusal:
        assert "Transport type 'RDMA' cannot be created" in refusal.message, refusal
    it.is_refused("nvmf_create_transport -t TCP -g other", -32602, "tgt_name")


@drives("nvmf_get_transports")
def _(it):
    assert it.types("nvmf_get_transports") == []
    it.is_refused("nvmf_get_transports --trtype TCP", -19, "No such device")
    it.types("nvmf_create_transport -t TCP")
    [transport] = it.types("nvmf_get_transports --trtype tcp -t nvmf_tgt")
    for key in ("max_queue_depth", "max_io_qpairs_per_ctrlr", "in_capsule_data_size", "max_io_size"):
        assert isinstance(transport[key], int) and transport[key] > 0, transport


@drives("nvmf_get_targets")
def _(it):
    assert it.client.call("nvmf_get_targets") == ["nvmf_tgt"]


@drives("nvmf_create_subsystem")
def _(it):
    line = f"nvmf_create_subsystem {NQN} -s SPDK00000000000001 -d 'SPDK Controller' -a -m 32 -r -i 5 -I 2040 -t nvmf_tgt"
    assert it.types(line) is True
    same(
        it.subsystem(), nqn=NQN, subtype="NVMe", allow_any_host=True, serial_number="SPDK00000000000001",
        model_number="SPDK Controller", max_namespaces=32, min_cntlid=5, max_cntlid=2040, hosts=[], namespaces=[],
        listen_addresses=[],
    )
    other = NQN + "-other"
    assert it.types(f"nvmf_create_subsystem {other} --max-discard-size 1024 --max-write-zeroes-size 1024 -n") is True
    same(it.subsystem(other), allow_any_host=False)
    it.is_refused(f"nvmf_create_subsystem {NQN}", -32603, "Unable to create subsystem", NQN)
    it.is_refused("nvmf_create_subsystem nonsense", -32602, "Invalid parameters", "nqn")
    it.is_refused("nvmf_create_subsystem nqn.2014-08.org.nvmexpress.discovery", -32602, "discovery")
    it.is_refused(f"nvmf_create_subsystem {NQN}3 -s {'x' * 21}", -32602, "serial number")
    it.is_refused(f"nvmf_create_subsystem {NQN}3 -i 9 -I 8", -32602, "9 to 8")
    it.is_refused(f"nvmf_create_subsystem {NQN}3 -p", -32602, "passthrough")


@drives("nvmf_delete_subsystem")
def _(it):
    it.with_subsystem()
    it.types("bdev_malloc_create -b ram 1 512")
    it.types(f"nvmf_subsystem_add_ns {NQN} ram")
    it.is_refused(f"nvmf_delete_subsystem {NQN} -t other", -32602, "tgt_name")
    assert it.types(f"nvmf_delete_subsystem {NQN}") is True
    it.is_refused(f"nvmf_get_subsystems {NQN}", -19, "No such device")
    it.is_refused(f"nvmf_delete_subsystem {NQN}", -32602, "Invalid parameters")
    assert it.bdev("ram")["claimed"] is False


@drives("nvmf_get_subsystems")
def _(it):
    [discovery] = it.types("nvmf_get_subsystems")
    same(discovery, nqn="nqn.2014-08.org.nvmexpress.discovery", subtype="Discovery", allow_any_host=True)
    it.with_subsystem()
    it.types(f"bdev_malloc_create -b ram -u {UUID} 1 512")
    it.types(f"nvmf_subsystem_add_ns {NQN} ram -n 7")
    it.types(f"nvmf_subsystem_add_host {NQN} {HOST}")
    assert [subsystem["nqn"] for subsystem in it.types("nvmf_get_subsystems")] == [discovery["nqn"], NQN]
    subsystem = it.subsystem()
    [namespace] = subsystem["namespaces"]
    same(namespace, nsid=7, bdev_name="ram", name="ram", uuid=UUID, nguid=UUID.replace("-", "").upper())
    assert subsystem["hosts"] == [{"nqn": HOST}]
    it.is_refused(f"nvmf_get_subsystems {NQN}-none", -19, "No such device")


# Namespaces


@drives("nvmf_subsystem_add_ns")
def _(it):
    it.with_subsystem()
    for number in range(4):
        it.types(f"bdev_malloc_create -b ram{number} 1 512")
    own, nguid = "11111111-2222-3333-4444-555555555555", "ABCDEF0123456789ABCDEF0123456789"
    assert it.types(f"nvmf_subsystem_add_ns {NQN} ram0") == 1
    assert it.types(f"nvmf_subsystem_add_ns {NQN} ram1 -n 9 -u {own} -g {nguid} -a 1 -N") == 9
    first, second = it.subsystem()["namespaces"]
    same(first, nsid=1, bdev_name="ram0", uuid=it.bdev("ram0")["uuid"])
    same(second, nsid=9, bdev_name="ram1", uuid=own, nguid=nguid)
    assert it.bdev("ram0")["claimed"] is True and it.bdev("ram2")["claimed"] is False
    assert it.types(f"nvmf_subsystem_add_ns {NQN} {it.bdev('ram2')['uuid']}") == 2
    it.is_refused(f"nvmf_subsystem_add_ns {NQN} ram3 -n 9", -32602, "Invalid parameters", "9")
    it.is_refused(f"nvmf_subsystem_add_ns {NQN} ram0", -32602, "Invalid parameters", "ram0")
    it.is_refused(f"nvmf_subsystem_add_ns {NQN} none", -32602, "Invalid parameters", "none")
    it.is_refused(f"nvmf_subsystem_add_ns {NQN}-none ram3", -32602, "Invalid parameters", NQN)
    it.is_refused(f"nvmf_subsystem_add_ns {NQN} ram3 -n 4000000000", -32602, "4000000000")
    it.is_refused(f"nvmf_subsystem_add_ns {NQN} ram3 -u nonsense", -32602, "uuid")


@drives("nvmf_subsystem_remove_ns")
def _(it):
    it.with_subsystem()
    it.types("bdev_malloc_create -b ram 1 512")
    it.types(f"nvmf_subsystem_add_ns {NQN} ram -n 3")
    it.is_refused(f"nvmf_subsystem_remove_ns {NQN} 1", -32602, "Invalid parameters", "nsid")
    assert it.types(f"nvmf_subsystem_remove_ns {NQN} 3") is True
    assert it.subsystem()["namespaces"] == []
    it.is_refused(f"nvmf_subsystem_remove_ns {NQN} 3", -32602, "Invalid parameters", "nsid")
    it.is_refused(f"nvmf_subsystem_remove_ns {NQN}-none 3", -32602, "Invalid parameters")
    assert it.types(f"nvmf_subsystem_add_ns {NQN} ram -n 3") == 3
    # A device that goes takes its namespace along.
    assert it.types("bdev_malloc_delete ram") is True
    assert it.subsystem()["namespaces"] == []


@drives("nvmf_subsystem_set_ns_ana_group")
def _(it):
    it.types(f"nvmf_create_subsystem {NQN} -r -m 4")
    it.types("bdev_malloc_create -b ram 1 512")
    it.types(f"nvmf_subsystem_add_ns {NQN} ram -n 2")
    same(it.subsystem()["namespaces"][0], nsid=2, anagrpid=2)
    assert it.types(f"nvmf_subsystem_set_ns_ana_group {NQN} 2 4") is True
    same(it.subsystem()["namespaces"][0], nsid=2, anagrpid=4)
    for group in (0, 5):
        it.is_refused(f"nvmf_subsystem_set_ns_ana_group {NQN} 2 {group}", -32602, "Invalid parameters")
    it.is_refused(f"nvmf_subsystem_set_ns_ana_group {NQN} 1 1", -32602, "Invalid parameters", "nsid")
    it.is_refused(f"nvmf_subsystem_set_ns_ana_group {NQN}-none 1 1", -32602, "Invalid parameters")


def masked(it):
    it.with_subsystem()
    it.types("bdev_malloc_create -b ram 1 512")
    it.types(f"nvmf_subsystem_add_ns {NQN} ram -i")
    it.types("bdev_malloc_create -b seen 1 512")
    it.types(f"nvmf_subsystem_add_ns {NQN} seen")


@drives("nvmf_ns_add_host")
def _(it):
    masked(it)
    for _ in range(2):
        assert it.types(f"nvmf_ns_add_host {NQN} 1 {HOST}") is True
    hidden, seen = it.subsystem()["namespaces"]
    same(hidden, no_auto_visible=True, hosts=[{"nqn": HOST}])
    assert "hosts" not in seen, seen
    it.is_refused(f"nvmf_ns_add_host {NQN} 2 {HOST}", -32602, "Invalid parameters", "no_auto_visible")
    it.is_refused(f"nvmf_ns_add_host {NQN} 3 {HOST}", -32602, "Invalid parameters", "nsid")
    it.is_refused(f"nvmf_ns_add_host {NQN} 1 nonsense", -32602, "Invalid parameters", "host")


@drives("nvmf_ns_remove_host")
def _(it):
    masked(it)
    it.types(f"nvmf_ns_add_host {NQN} 1 {HOST}")
    for _ in range(2):
        assert it.types(f"nvmf_ns_remove_host {NQN} 1 {HOST}") is True
    same(it.subsystem()["namespaces"][0], no_auto_visible=True, hosts=[])
    it.is_refused(f"nvmf_ns_remove_host {NQN} 2 {HOST}", -32602, "Invalid parameters", "no_auto_visible")


# Referrals


def referrals(it):
    return [(each["address"], each["secure_channel"], each["subnqn"]) for each in it.types("nvmf_discovery_get_referrals")]


REFERRAL = "-t tcp -a 192.0.2.7 -s 8009 -f ipv4"


@drives("nvmf_discovery_add_referral")
def _(it):
    assert it.types(f"nvmf_discovery_add_referral {REFERRAL}") is True
    assert it.types(f"nvmf_discovery_add_referral {REFERRAL} -n discovery") is True
    assert it.types(f"nvmf_discovery_add_referral {REFERRAL} -k -n {NQN}") is True
    address = {"trtype": "TCP", "adrfam": "IPv4", "traddr": "192.0.2.7", "trsvcid": "8009"}
    discovery = "nqn.2014-08.org.nvmexpress.discovery"
    assert referrals(it) == [(address, False, discovery), (address, True, NQN)]
    it.is_refused("nvmf_discovery_add_referral -t tcp -a 192.0.2.7", -32603, "Service ID is required")
    it.is_refused(f"nvmf_discovery_add_referral {REFERRAL} -n nonsense", -32602, "subnqn")


@drives("nvmf_discovery_remove_referral")
def _(it):
    it.types(f"nvmf_discovery_add_referral {REFERRAL}")
    it.is_refused(f"nvmf_discovery_remove_referral {REFERRAL} -n {NQN}", -32603, "Unable to remove a referral")
    assert it.types(f"nvmf_discovery_remove_referral {REFERRAL}") is True
    assert it.types("nvmf_discovery_get_referrals") == []


@drives("nvmf_discovery_get_referrals")
def _(it):
    assert it.types("nvmf_discovery_get_referrals") == []
    it.types(f"nvmf_discovery_add_referral {REFERRAL}")
    assert len(it.types("nvmf_discovery_get_referrals -t nvmf_tgt")) == 1


# Hosts


@drives("nvmf_subsystem_add_host")
def _(it):
    it.with_subsystem()
    assert it.types(f"nvmf_subsystem_add_host {NQN} {HOST}") is True
    assert it.subsystem()["hosts"] == [{"nqn": HOST}]
    it.is_refused(f"nvmf_subsystem_add_host {NQN} nonsense", -32602, "Invalid parameters", "host")
    it.is_refused(f"nvmf_subsystem_add_host {NQN}-none {HOST}", -32602, "Invalid parameters")
    assert len(it.subsystem()["hosts"]) == 1


@drives("nvmf_subsystem_remove_host")
def _(it):
    it.with_subsystem()
    it.types(f"nvmf_subsystem_add_host {NQN} {HOST}")
    assert it.types(f"nvmf_subsystem_remove_host {NQN} {HOST} -T 1000") is True
    assert it.subsystem()["hosts"] == []
    it.is_refused(f"nvmf_subsystem_remove_host {NQN} {HOST}", -32602, "Invalid parameters", "host")


@drives("nvmf_subsystem_allow_any_host")
def _(it):
    it.with_subsystem()
    assert it.types(f"nvmf_subsystem_allow_any_host {NQN} --allow-any-host") is True
    assert it.subsystem()["allow_any_host"] is True
    assert it.types(f"nvmf_subsystem_allow_any_host {NQN} --no-allow-any-host") is True
    assert it.subsystem()["allow_any_host"] is False
    # What the client sent before 25.01.
    assert it.client.nvmf_subsystem_allow_any_host(nqn=NQN, disable=False) is True
    assert it.subsystem()["allow_any_host"] is True
    it.is_refused(f"nvmf_subsystem_allow_any_host {NQN}-none --allow-any-host", -32602, "Invalid parameters")


# Listeners


@drives("nvmf_subsystem_add_listener")
def _(it):
    it.types(f"nvmf_create_subsystem {NQN}")
    port = free_port()
    it.is_refused(f"nvmf_subsystem_add_listener {NQN} -t tcp -a 127.0.0.1 -s {port}", -32602, "Unable to find TCP transport")
    it.types("nvmf_create_transport -t TCP")
    assert it.types(f"nvmf_subsystem_add_listener {NQN} -t tcp -a 127.0.0.1 -s {port} -f ipv4") is True
    address = {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": str(port)}
    assert it.subsystem()["listen_addresses"] == [address]
    it.is_refused(f"nvmf_subsystem_add_listener {NQN} -t TCP -a 127.0.0.1 -s {port}", -32602, "already exists")
    it.is_refused(f"nvmf_subsystem_add_listener {NQN} -t RDMA -a 127.0.0.1 -s {port}", -32602, "RDMA")
    it.is_refused(f"nvmf_subsystem_add_listener {NQN} -t TCP -a nowhere -s {port}", -32602, "nowhere")
    it.is_refused(f"nvmf_subsystem_add_listener {NQN} -t TCP -a 127.0.0.1 -f ipv6 -s {port}", -32602, "adrfam")
    it.is_refused(f"nvmf_subsystem_add_listener {NQN} -t TCP -a 192.0.2.1 -s {port}", -32602, "192.0.2.1")
    it.is_refused(f"nvmf_subsystem_add_listener {NQN} -t TCP -a 127.0.0.1 -s http", -32602, "trsvcid")
    it.is_refused(f"nvmf_subsystem_add_listener {NQN}-none -t TCP -a 127.0.0.1 -s {port}", -32602, "Invalid parameters")
    # Another subsystem may share it.
    it.types(f"nvmf_create_subsystem {NQN}-other -r -m 2")
    listener = f"{NQN}-other -t TCP -a 127.0.0.1 -s {port}"
    assert it.types(f"nvmf_subsystem_add_listener {listener} -n inaccessible") is True
    assert ana_states(it, f"{NQN}-other") == ["inaccessible"] * 2


@drives("nvmf_subsystem_listener_set_ana_state")
def _(it):
    it.types("nvmf_create_transport -t TCP")
    it.types(f"nvmf_create_subsystem {NQN} -r -m 4")
    address = f"-t tcp -a 127.0.0.1 -s {free_port()} -f ipv4"
    it.types(f"nvmf_subsystem_add_listener {NQN} {address}")
    assert ana_states(it) == ["optimized"] * 4
    assert it.types(f"nvmf_subsystem_listener_set_ana_state {NQN} {address} -n inaccessible -g 2") is True
    assert ana_states(it) == ["optimized", "inaccessible", "optimized", "optimized"]
    assert it.types(f"nvmf_subsystem_listener_set_ana_state {NQN} {address} -n non_optimized") is True
    assert ana_states(it) == ["non_optimized"] * 4
    refused = "error setting ANA state: -22"
    it.is_refused(f"nvmf_subsystem_listener_set_ana_state {NQN} {address} -n optimized -g 5", -32603, refused)
    other = f"-t tcp -a 127.0.0.1 -s {free_port()}"
    it.is_refused(f"nvmf_subsystem_listener_set_ana_state {NQN} {other} -n optimized", -32603, refused)
    it.is_refused(f"nvmf_subsystem_listener_set_ana_state {NQN}-none {address} -n optimized", -32602, "Unable to find")
    it.types(f"nvmf_create_subsystem {NQN}-silent")
    it.types(f"nvmf_subsystem_add_listener {NQN}-silent {address}")
    it.is_refused(f"nvmf_subsystem_listener_set_ana_state {NQN}-silent {address} -n optimized", -32603, refused)
    [listener] = it.types(f"nvmf_subsystem_get_listeners {NQN}-silent")
    assert "ana_states" not in listener, listener


def ana_states(it, nqn=NQN):
    [listener] = it.types(f"nvmf_subsystem_get_listeners {nqn}")
    states = listener["ana_states"]
    assert [each["ana_group"] for each in states] == list(range(1, len(states) + 1)), states
    return [each["ana_state"] for each in states]


@drives("nvmf_subsystem_remove_listener")
def _(it):
    it.with_subsystem()
    port = free_port()
    address = f"-t tcp -a 127.0.0.1 -s {port} -f ipv4"
    it.types(f"nvmf_subsystem_add_listener {NQN} {address}")
    assert it.types(f"nvmf_subsystem_remove_listener {NQN} {address}") is True
    assert it.subsystem()["listen_addresses"] == []
    it.is_refused(f"nvmf_subsystem_remove_listener {NQN} {address}", -32602, "Invalid parameters", "listen_address")
    assert it.types(f"nvmf_subsystem_add_listener {NQN} {address}") is True


@drives("nvmf_subsystem_get_listeners")
def _(it):
    it.with_subsystem()
    assert it.types(f"nvmf_subsystem_get_listeners {NQN}") == []
    port = free_port()
    it.types(f"nvmf_subsystem_add_listener {NQN} -t tcp -a ::1 -s {port} -f ipv6")
    [listener] = it.types(f"nvmf_subsystem_get_listeners {NQN} -t nvmf_tgt")
    assert listener["address"] == {"trtype": "TCP", "adrfam": "IPv6", "traddr": "::1", "trsvcid": str(port)}
    it.is_refused(f"nvmf_subsystem_get_listeners {NQN}-none", -32602, "Invalid parameters")


# What holds for the client itself


def batch_is_answered(binary):
    """The client's batch mode: one array out, one array back, in order."""
    with Daemon(binary) as daemon, JSONRPCClient(daemon.unix, batch_mode=True) as client:
        client.spdk_get_version()
        client.bdev_malloc_create(name="ram", num_blocks=8, block_size=512)
        client.bdev_get_bdevs(name="ram")
        client.send_batch()
        version, name, bdevs = JSONRPCClient.handle_batch_response(client.recv())
        assert "version" in version and name == "ram" and bdevs[0]["name"] == "ram"


def raw_tcp_is_answered(binary):
    """The client with an address and a port in the place of a path."""
    with Daemon(binary) as daemon, JSONRPCClient("127.0.0.1", daemon.tcp) as client:
        assert "version" in client.spdk_get_version()


def checks(binary):
    """Name and function of each check."""
    with Daemon(binary) as daemon:
        listed = Operator(daemon).client.call("rpc_get_methods")

    def drive(method):
        assert method in TABLE, f"no entry in the table of {__file__}"
        assert method in listed, "the daemon has no such method"
        with Daemon(binary) as daemon:
            TABLE[method](Operator(daemon))

    for method in sorted({*listed, *TABLE}):
        yield f"spdk {method}", functools.partial(drive, method)
    yield "spdk batch", functools.partial(batch_is_answered, binary)
    yield "spdk over tcp", functools.partial(raw_tcp_is_answered, binary)
