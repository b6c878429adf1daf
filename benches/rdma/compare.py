#!/usr/bin/env python3
"""Measures three targets by turns, in slices: Tidegate, the kernel's, and Tidegate once more. `guest` has set them up.

Each slice is a run of a host of its own: `tidegate perf`, or fio on the disk of the Linux host. Processor time is what all
processors of the guest were busy, host and target and soft-RoCE together, less what a run of hardly any I/O takes."""

import argparse
import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import time
import urllib.request

HOSTS = ("perf", "linux")
DEVICES = {"ram": ("1", "64m"), "null": ("2", "1g")}
# "again" is the other half of the A/A pair.
TARGETS = ("ours", "kernel", "again")
METRICS = "http://127.0.0.1:9420/metrics"


def busy():
    """Seconds that all processors together have been busy."""
    with open("/proc/stat", encoding="ascii") as stat:
        user, nice, system, _idle, _wait, irq, softirq, *_ = map(int, stat.readline().split()[1:])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


# What Tidegate counts, per I/O: its posts are system calls on soft-RoCE.
COUNTED = {
    "posts": "tidegate_rdma_posts_total", "receive_posts": "tidegate_rdma_receive_posts_total",
    "turns": "tidegate_reactor_busy_turns_total", "sleeps": "tidegate_reactor_sleeps_total",
}


def counted():
    """Counters of the daemon, all reactors and devices together."""
    password = urllib.request.HTTPPasswordMgrWithDefaultRealm()
    password.add_password(None, METRICS, "compare", "compare")
    opener = urllib.request.build_opener(urllib.request.HTTPBasicAuthHandler(password))
    with opener.open(METRICS, timeout=20) as answer:
        text = answer.read().decode()
    return {
        name: sum(float(value) for value in re.findall(rf"^{metric}(?:{{.*?}})? (\S+)$", text, re.MULTILINE))
        for name, metric in COUNTED.items()}


def run(command):
    before = busy()
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    used = busy() - before
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: {done.stderr or done.stdout}")
    return json.loads(done.stdout[done.stdout.index("{"):]), used


class Bench:
    def __init__(self, options):
        self.options = options
        with open(options.targets, encoding="utf-8") as file:
            self.targets = json.load(file)
        # The reactor has processor 1.
        with open(f"/proc/{options.daemon}/stat", encoding="ascii"):
            self.stat = f"/proc/{options.daemon}/stat"
        self.pin = ["taskset", "-c", "0" if os.cpu_count() < 3 else "2"]
        # A host that spins on the only processor takes it from the target that it waits for.
        self.spin = ["--spin", "0us"] if os.cpu_count() == 1 else []

    def perf(self, target, device, rw, depth, seconds):
        where = self.targets[target]
        report, used = run(self.pin + [
            self.options.binary, "perf", "-t", "rdma", "-a", self.options.address, "-s", str(where["port"]),
            "-n", where["nqn"], "--nsid", DEVICES[device][0], "--rw", rw, "--bs", "4k", "--iodepth", str(depth),
            "--runtime", f"{int(seconds * 1000)}ms", "--json"] + self.spin)
        part = report["read" if rw == "randread" else "write"]
        return part["iops"], part["ios"], part["latency_ns"]["mean"] / 1000, used

    def linux(self, target, device, rw, depth, seconds):
        report, used = run(self.pin + [
            "fio", "--name=slice", f"--filename={self.targets[target][device]}", "--allow_file_create=0", "--direct=1",
            "--ioengine=libaio", f"--rw={rw}", "--bs=4k", f"--iodepth={depth}", f"--size={DEVICES[device][1]}",
            "--time_based", f"--runtime={int(seconds * 1000)}ms", "--norandommap", "--output-format=json"])
        part = report["jobs"][0]["read" if rw == "randread" else "write"]
        return part["iops"], part["total_ios"], part["clat_ns"]["mean"] / 1000, used

    def own_time(self):
        """Seconds of processor time that the daemon was charged."""
        with open(self.stat, encoding="ascii") as stat:
            fields = stat.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def slice(self, host, target, *what):
        # A reactor that polls would take the processor from the kernel's target.
        still = target == "kernel" and self.options.idle == "poll"
        if still:
            os.kill(self.options.daemon, signal.SIGSTOP)
        try:
            return getattr(self, host)(target, *what)
        finally:
            if still:
                os.kill(self.options.daemon, signal.SIGCONT)

    def start_up(self, host):
        """What a run takes besides its I/Os: the median of five that have a few only."""
        return statistics.median(self.slice(host, "kernel", "null", "randread", 1, 0.02)[3] for _ in range(5))

    def cell(self, host, device, rw, depth, start_up):
        slices = {target: [] for target in TARGETS}
        for number in range(self.options.rounds):
            turn = number % len(TARGETS)
            for target in TARGETS[turn:] + TARGETS[:turn]:
                before, own = counted(), self.own_time()
                iops, ios, latency, used = self.slice(host, target, device, rw, depth, self.options.seconds)
                one = {"iops": iops, "latency_us": latency, "cpu_us": (used - start_up) * 1e6 / max(ios, 1)}
                if target != "kernel":
                    one["own_us"] = (self.own_time() - own) * 1e6 / max(ios, 1)
                    one.update({name: (after - before[name]) / max(ios, 1) for name, after in counted().items()})
                slices[target].append(one)
        return slices


def summary(slices):
    """Everything is that of a target's fastest slice, but for the ratio of medians."""
    ours, kernel, again = (max(slices[target], key=lambda one: one["iops"]) for target in TARGETS)
    middle = {target: statistics.median(one["iops"] for one in slices[target]) for target in TARGETS}
    return {
        "ours": ours["iops"], "kernel": kernel["iops"],
        "best": ours["iops"] / kernel["iops"], "median": middle["ours"] / middle["kernel"],
        "aa": again["iops"] / ours["iops"],
        "cpu_ours": ours["cpu_us"], "cpu_kernel": kernel["cpu_us"],
        "cpu": ours["cpu_us"] / kernel["cpu_us"], "cpu_aa": again["cpu_us"] / ours["cpu_us"],
        "own": ours["own_us"], **{name: ours[name] for name in COUNTED},
    }


HEAD = """| host | device | | depth | IOPS, best: Tidegate | kernel | ratio of bests | of medians | A/A, bests | processor µs per I/O: Tidegate | kernel | ratio | A/A | posts per I/O | sleeps |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def main():
    parser = argparse.ArgumentParser()
    for name in ("binary", "address", "idle", "targets", "results"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--daemon", type=int, required=True)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=1)
    parser.add_argument("--only", default=".", help="cells to measure, such as 'linux ram randread 16'")
    options = parser.parse_args()
    bench, everything, began = Bench(options), {}, time.monotonic()
    start_up = {host: bench.start_up(host) for host in HOSTS}
    everything["start_up"] = start_up
    with open(f"{options.results}/report.md", "w", encoding="utf-8") as table:
        table.write(HEAD)
        for host, device, rw, depth in itertools.product(HOSTS, DEVICES, ("randread", "randwrite"), (1, 16)):
            name = f"{host} {device} {rw} {depth}"
            if not re.search(options.only, name):
                continue
            slices = bench.cell(host, device, rw, depth, start_up[host])
            it = summary(slices)
            everything[name] = slices
            table.write(
                f"| {host} | {device} | {rw[4:]} | {depth} | {it['ours']:,.0f} | {it['kernel']:,.0f} | {it['best']:.2f} | "
                f"{it['median']:.2f} | {it['aa']:.2f} | {it['cpu_ours']:.0f} | {it['cpu_kernel']:.0f} | {it['cpu']:.2f} | "
                f"{it['cpu_aa']:.2f} | {it['posts']:.2f} | {it['sleeps']:.2f} |\n")
            table.flush()
            with open(f"{options.results}/results", "a", encoding="utf-8") as results:
                results.write(
                    f"ok {name}: {it['best']:.2f} of the kernel's IOPS ({it['ours']:.0f}, {it['kernel']:.0f}), median "
                    f"{it['median']:.2f}, A/A {it['aa']:.2f}, processor {it['cpu']:.2f} ({it['cpu_ours']:.0f}, "
                    f"{it['cpu_kernel']:.0f} us), A/A {it['cpu_aa']:.2f}; the daemon's own {it['own']:.0f} us, per I/O "
                    f"posts {it['posts']:.2f} and {it['receive_posts']:.2f} of receives, turns {it['turns']:.2f}, sleeps "
                    f"{it['sleeps']:.2f}; at {time.monotonic() - began:.0f} s\n")
            with open(f"{options.results}/slices.json", "w", encoding="utf-8") as file:
                json.dump(everything, file)


main()
