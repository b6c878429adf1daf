# shellcheck shell=bash disable=SC2034,SC2154 # variables pass between the files that `guest` sources together
# Resets, lost connections, killed and ended targets, in the middle of writes whose every block is read back afterwards.

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

check_target_killed_again_and_again() {
  connect_to_recover "$nqn_files"
  start_verified_write 24M
  local round
  for round in 1 2 3; do
    must_still_be_writing
    echo "kill $round"
    target_kill
    must_still_be_writing
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
