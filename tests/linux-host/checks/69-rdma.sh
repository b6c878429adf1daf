# shellcheck shell=bash disable=SC2034,SC2154 # variables pass between the files that `guest` sources together
# The same host over RDMA: discovery, data, file systems, and what a host has to live through.

prepare_check() {
  soft_roce
  transport=rdma
  # It listens with TCP first: hosts may come by RDMA once it says so.
  target_ensure rdma
}

check_rdma_discover_lists_both_transports() {
  discovered "$rdma_address" 4420 >"$scratch/log"
  entries '\(.subnqn) \(.trtype) \(.traddr) \(.trsvcid)' <"$scratch/log" |
    grep -x "$nqn_files rdma $rdma_address 4420" || fail "no entry of the RDMA listener in $(cat "$scratch/log")"
  tidegate_only "lists one port alone"
  entries '\(.subnqn) \(.trtype) \(.traddr) \(.trsvcid)' <"$scratch/log" |
    grep -x "$nqn_files tcp $rdma_address 4420" || fail "no entry of the TCP listener in $(cat "$scratch/log")"
}

check_rdma_connect_with_four_io_queues() {
  # Those of reading and those of writing: no more of either than processors.
  connect "$nqn_files" -i 2 -W 2
  expect "the queues" "$(cat "/sys/class/nvme/$controller/queue_count")" 5
  expect "the queue size" "$(cat "/sys/class/nvme/$controller/sqsize")" 127
}

check_rdma_connect_over_ipv6() {
  connect "$nqn_memory" -a fd99::1 -s 4421 -i 2
  use_namespace 1
  verified_fio --name=ipv6 --rw=randwrite --bs=4k --size=1M
}

check_rdma_connect_and_disconnect_again_and_again() {
  local round
  for round in 1 2 3 4 5; do
    echo "round $round"
    connect "$nqn_memory" -i 2
    use_namespace 1
    disconnect
  done
}

check_rdma_fio_every_size() {
  verify_every_size
}

check_rdma_fio_on_memory() {
  connect "$nqn_memory" -i 4
  use_namespace 1
  verified_fio --iodepth=16 \
    --name=random --rw=randwrite --bs=4k --size=2M \
    --name=sequential --rw=write --bs=1M --offset=32M --size=8M
}

# Vectors of buffers that begin and end anywhere, so that the host's memory regions do, too.
check_rdma_unaligned_vectors() {
  connect "$nqn_memory" -i 2
  use_namespace 1
  python3 "$here/unaligned.py" "$disk" || fail "data differs"
}

check_rdma_ext4_survives() {
  ext4_survives
}

check_rdma_xfs_survives() {
  grep -qw xfs /proc/filesystems || skip "this kernel has no xfs"
  connect "$nqn_files" -i 2 -W 2
  use_namespace 1
  wipefs -qa "$disk"
  mkfs.xfs -q -f "$disk"
  survives_unmount xfs "$disk" "xfs_repair -n"
}

# The two are paths to the same namespaces, one over each transport: round-robin sends I/O over both.
check_rdma_and_tcp_side_by_side() {
  local subsystem
  connect "$nqn_memory" -i 2
  transport=tcp
  connect "$nqn_memory" -i 2
  subsystem=$(echo /sys/class/nvme-subsystem/*/"$controller")
  echo round-robin >"${subsystem%/*}/iopolicy"
  use_namespace 1
  verified_fio --name=both --rw=randrw --bs=4k --size=2M --iodepth=8
}

check_rdma_two_hosts_at_once() {
  local first
  connect "$nqn_memory" -q "$host_one" -I "$id_one" -i 2
  first=$controller
  # By another address: the tool takes it for the same connection otherwise.
  connect "$nqn_memory" -a fd99::1 -s 4421 -q "$host_two" -I "$id_two" -i 2
  [ "$(cat "/sys/class/nvme/$first/cntlid")" != "$(cat "/sys/class/nvme/$controller/cntlid")" ] ||
    fail "two controllers have the same CNTLID"
  use_namespace 1
  verified_fio --name=both --rw=randrw --bs=4k --size=2M --iodepth=8
}

check_rdma_controller_reset_under_load() {
  connect_to_recover "$nqn_files"
  start_verified_write 8M
  local round
  for round in 1 2; do
    must_still_be_writing
    echo "reset $round"
    nvme reset "/dev/$controller"
    wait_until 30 controller_is live || fail "not live after reset $round"
  done
  verified_write_ends_well
}

check_rdma_host_vanishes_under_load() {
  connect "$nqn_memory" -i 4
  use_namespace 1
  fio --name=vanish --filename="$disk" --direct=1 --ioengine=libaio --rw=randwrite --bs=64k --size=64M --iodepth=32 \
    --allow_file_create=0 --time_based --runtime=60 >/dev/null 2>&1 &
  wait_until 60 writes_arrive || fail "the write does not get going"
  disconnect
  wait $! || true
  connect "$nqn_memory" -i 4
  use_namespace 1
  verified_fio --name=after --rw=randwrite --bs=4k --size=1M --iodepth=16
}

check_rdma_target_killed_under_load() {
  connect_to_recover "$nqn_files"
  start_verified_write 8M
  must_still_be_writing
  target_kill
  must_still_be_writing
  target_start rdma
  verified_write_ends_well
}

# Two devices, a path to the same namespace over each: verified writes go on by the other one, and hosts there and by TCP feel
# nothing. The target goes on running while the device is made anew, and takes connections over it as before.
#
# It has to be: soft-RoCE's own connection manager does not live through a message that it is given while the link is down,
# whoever the target is, and nobody connects over that device any more. So the host does not try meanwhile, which may hang.
check_rdma_link_down_and_up_under_load() {
  tidegate_only "is no process that has a device open"
  local lost other over_tcp subsystem
  soft_roce_interface 1
  connect "$nqn_memory" -a fd99:1::1 -s 4421 -i 2 --reconnect-delay=600 --ctrl-loss-tmo=1200
  lost=$controller
  transport=tcp connect "$nqn_files" -i 1
  over_tcp=$controller
  connect "$nqn_memory" -i 2
  other=$controller
  subsystem=$(echo /sys/class/nvme-subsystem/*/"$controller")
  echo round-robin >"${subsystem%/*}/iopolicy"
  use_namespace 1
  controller=$lost
  verified_fio --name=load --rw=randwrite --bs=4k --size=16M --iodepth=16 &
  writer=$!
  wait_until 60 writes_arrive || fail "the write does not get going"
  ip link set dummy1 down
  kill -0 "$writer" || fail "the write was over before the link was down"
  wait_until 60 no_longer_live || fail "the host has not noticed"
  wait "$writer" || fail "$(cat "$verdict_file")"
  ip link set dummy1 up
  soft_roce_remove 1
  soft_roce_device 1
  disconnect
  connect "$nqn_memory" -a fd99:1::1 -s 4421 -i 2
  verified_fio --name=after --rw=randwrite --bs=4k --size=1M --iodepth=16
  writes_arrive || fail "nothing was written over the device that is back"
  disconnect
  # Nobody is on it now.
  soft_roce_remove 1
  ip link delete dummy1
  for controller in "$other" "$over_tcp"; do
    controller_is live || fail "$controller is $(cat "/sys/class/nvme/$controller/state")"
    ! kernel_said "$controller: starting error recovery" || fail "$controller was not left alone"
  done
}

# The only device, and hosts on it. TCP serves on; who listened on the device's address does so again.
check_rdma_device_removed_and_back() {
  tidegate_only "is no process that has a device open"
  connect "$nqn_files" -i 2
  transport=tcp connect "$nqn_memory" -i 1
  soft_roce_remove 0
  controller_is live || fail "$controller is $(cat "/sys/class/nvme/$controller/state")"
  soft_roce_device 0
  admits_by_rdma rdma || fail "nobody listens on the device's address"
  connect "$nqn_files" -i 2
  use_namespace 1
  verified_fio --name=after --rw=randwrite --bs=4k --size=1M --iodepth=16
}

check_rdma_sigterm_while_idle_hosts_are_connected() {
  tidegate_only "is no process"
  connect "$nqn_files" -i 2 -W 2
  connect "$nqn_memory" -i 4
  local began=$SECONDS
  target_stop || fail "exit status $(cat "$scratch/target.status") on SIGTERM"
  [ $((SECONDS - began)) -le 11 ] || fail "SIGTERM took $((SECONDS - began)) s"
}

# Our own host against the target.
check_rdma_commands_of_our_own() {
  local where=(-t rdma -a "$rdma_address")
  "$binary" discover "${where[@]}" | grep "$nqn_memory" || fail "discover does not find $nqn_memory"
  "$binary" identify "${where[@]}" -n "$nqn_memory" | grep TGMEMORY || fail "identify does not tell the serial"
  "$binary" perf "${where[@]}" -n "$nqn_memory" --nsid 1 --rw randread --bs 4k --iodepth 16 --runtime 2s ||
    fail "perf over RDMA"
}
