# shellcheck shell=bash disable=SC2034,SC2154 # variables pass between the files that `guest` sources together
# Connecting, being refused, several hosts.

check_connect_with_four_io_queues() {
  # Those of reading and those of writing: no more of either than processors.
  connect "$nqn_files" -i 2 -W 2
  # The count includes the admin queue.
  expect "the queues" "$(cat "/sys/class/nvme/$controller/queue_count")" 5
  expect "the queue size" "$(cat "/sys/class/nvme/$controller/sqsize")" 127
}

check_connect_over_ipv6() {
  connect "$nqn_memory" -a ::1 -i 2
  use_namespace 1
  verified_fio --name=ipv6 --rw=randwrite --bs=4k --size=1M
}

check_connect_to_the_wildcard_listener() {
  connect "$nqn_memory" -s 4421 -i 1
  use_namespace 1
  dd if="$disk" of=/dev/null bs=4k count=16 iflag=direct
}

check_each_namespace_has_its_size() {
  connect "$nqn_files"
  use_namespace 1
  expect "bytes of namespace 1" "$(blockdev --getsize64 "$disk")" $((512 << 20))
  use_namespace 1
  expect "block size of namespace 1" "$(blockdev --getss "$disk")" 512
  disconnect
  connect "$nqn_memory"
  use_namespace 1
  expect "bytes of namespace 1" "$(blockdev --getsize64 "$disk")" $((128 << 20))
  use_namespace 7
  expect "bytes of namespace 7" "$(blockdev --getsize64 "$disk")" $((128 << 20))
  use_namespace 7
  expect "block size of namespace 7" "$(blockdev --getss "$disk")" 4096
}

check_block_size_of_a_file_as_configured() {
  tidegate_only "takes the block size from the file system"
  connect "$nqn_files"
  use_namespace 2
  expect "block size of namespace 2" "$(blockdev --getss "$disk")" 4096
}

check_host_outside_the_allow_list_is_refused() {
  refuse nvme connect -t tcp -a 127.0.0.1 -s 4420 -n "$nqn_private" -q "$host_two" -I "$id_two"
  kernel_said "is not allowed, hostnqn: $host_two" || fail "the kernel log does not tell why: $refusal"
  connect "$nqn_private" -q "$host_one" -I "$id_one"
  use_namespace 1
}

check_unknown_subsystem_is_refused() {
  refuse nvme connect -t tcp -a 127.0.0.1 -s 4420 -n nqn.2026-11.io.tidegate:no-such
  kernel_said "Connect Invalid Data Parameter, subsysnqn \"nqn.2026-11.io.tidegate:no-such\"" ||
    fail "the kernel log does not tell why: $refusal"
}

check_connect_and_disconnect_again_and_again() {
  local round
  for round in 1 2 3 4 5; do
    echo "round $round"
    connect "$nqn_memory" -i 2
    use_namespace 1
    disconnect
  done
}

# The two are paths to the same namespaces: round-robin sends I/O over both.
check_two_hosts_at_once() {
  local first second subsystem
  connect "$nqn_memory" -q "$host_one" -I "$id_one" -i 2
  first=$controller
  connect "$nqn_memory" -s 4421 -q "$host_two" -I "$id_two" -i 2
  second=$controller
  [ "$(cat "/sys/class/nvme/$first/cntlid")" != "$(cat "/sys/class/nvme/$second/cntlid")" ] ||
    fail "two controllers have the same CNTLID"
  subsystem=$(echo /sys/class/nvme-subsystem/*/"$second")
  echo round-robin >"${subsystem%/*}/iopolicy"
  use_namespace 1
  verified_fio --name=both --rw=randrw --bs=4k --size=2M --iodepth=8
}

check_idle_host_stays_connected() {
  connect "$nqn_memory" -k 5 -i 2
  sleep 16
  controller_is live || fail "$controller is $(cat "/sys/class/nvme/$controller/state")"
  ! kernel_said "$controller: failed nvme_keep_alive_end_io" || fail "a keep-alive failed"
  ! kernel_said "reconnect" || fail "the host lost the connection"
}

check_queues_take_the_depth_asked_for() {
  connect "$nqn_memory" -i 1 -Q 32
  expect "the queue size" "$(cat "/sys/class/nvme/$controller/sqsize")" 31
  use_namespace 1
  verified_fio --name=deep --rw=randwrite --bs=512 --size=256k --iodepth=64
}
