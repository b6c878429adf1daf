# shellcheck shell=bash disable=SC2034,SC2154 # variables pass between the files that `guest` sources together
# Resets, lost connections, killed and ended targets, in the middle of writes whose every block is read back afterwards.

# Whatever happens meanwhile, the host must give up nothing: it reconnects after a second, for a minute.
connect_to_recover() {
  connect "$1" -i 4 --reconnect-delay=1 --ctrl-loss-tmo=60 -k 5
  use_namespace 1
}

# A verified write in the background, so long that what is done to it falls into its middle. fio reads every block
# back once all are written: each one that was acknowledged before the fault must be there.
start_verified_write() {
  verified_fio --name=random --rw=randwrite --bs=4k --size="$1" --iodepth=16 \
    --name=large --rw=write --bs=128k --offset=256M --size="$1" --iodepth=4 &
  writer=$!
  wait_until 60 wrote_a_quarter "$1" || fail "the write does not get going"
}

# Field 7 of stat: sectors written. Of the disk below the target: kernel 6.1 counts nothing on a multipath disk.
wrote_a_quarter() {
  local written
  written=$(awk '{print $7}' /sys/block/nullb0/stat)
  [ "$((written - ${written_before:=$written}))" -ge $((${1%M} * 2048 / 4)) ]
}

must_still_be_writing() {
  kill -0 "$writer" 2>/dev/null || fail "the write was over before the fault"
}

verified_write_ends_well() {
  wait "$writer" || fail "$(cat "$verdict_file")"
  controller_is live || fail "$controller is $(cat "/sys/class/nvme/$controller/state")"
}

check_controller_reset_under_load() {
  connect_to_recover "$nqn_files"
  start_verified_write 16M
  local round
  for round in 1 2 3; do
    must_still_be_writing
    echo "reset $round"
    nvme reset "/dev/$controller"
    wait_until 20 controller_is live || fail "not live after reset $round"
  done
  verified_write_ends_well
}

check_target_killed_under_load() {
  connect_to_recover "$nqn_files"
  start_verified_write 16M
  must_still_be_writing
  target_kill
  must_still_be_writing
  target_start main
  verified_write_ends_well
}

check_target_killed_again_and_again() {
  connect_to_recover "$nqn_files"
  start_verified_write 24M
  local round
  for round in 1 2 3; do
    must_still_be_writing
    echo "kill $round"
    target_kill
    target_start main
    wait_until 30 controller_is live || fail "not live after kill $round"
  done
  verified_write_ends_well
}

check_sigterm_under_load_exits_in_time() {
  tidegate_only "is no process"
  connect_to_recover "$nqn_files"
  start_verified_write 16M
  must_still_be_writing
  local began=$SECONDS
  target_stop || fail "exit status $(cat "$scratch/target.status") on SIGTERM"
  [ $((SECONDS - began)) -le 11 ] || fail "SIGTERM took $((SECONDS - began)) s"
  target_start main
  verified_write_ends_well
}

check_sigterm_while_idle_hosts_are_connected() {
  tidegate_only "is no process"
  connect "$nqn_files" -i 4
  connect "$nqn_memory" -i 4
  local began=$SECONDS
  target_stop || fail "exit status $(cat "$scratch/target.status") on SIGTERM"
  [ $((SECONDS - began)) -le 11 ] || fail "SIGTERM took $((SECONDS - began)) s"
}

# Longer than the keep-alive timeout of both sides: the host reconnects, the target lets go of the old controller.
check_network_outage_under_load() {
  connect_to_recover "$nqn_files"
  start_verified_write 16M
  must_still_be_writing
  ip link set lo down
  sleep 12
  ip link set lo up
  wait_until 60 controller_is live || fail "the host did not come back"
  verified_write_ends_well
}

# Whether anything has been written on the paths of this controller.
writes_arrive() {
  [ "$(awk '{written += $7} END {print written}' "/sys/class/nvme/$controller"/nvme*n*/stat)" -gt 0 ]
}

# A disconnect that the host does not wait for, with commands in flight.
check_host_vanishes_under_load() {
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
