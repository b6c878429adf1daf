# shellcheck shell=bash disable=SC2034,SC2154 # variables pass between the files that `guest` sources together
# A daemon that programs tell what to serve, and what the host sees while they do.

# `provision` starts its own.
prepare_check() {
  :
}

check_namespaces_come_and_go_under_load() {
  provision
  connect_volume
  start_writing
  local round
  for round in 1 2 3; do
    must_be_writing "namespaces came"
    rpc bdev_malloc_create name="more$round" num_blocks=2048 block_size=4096
    rpc nvmf_subsystem_add_ns nqn="$nqn_volume" namespace.bdev_name="more$round" namespace.nsid=7
    wait_until 20 has_namespace 7 || fail "namespace 7 does not appear, round $round"
    if [ "$round" = 2 ]; then
      # A device that is deleted takes its namespace along.
      rpc bdev_malloc_delete name="more$round"
    else
      rpc nvmf_subsystem_remove_ns nqn="$nqn_volume" nsid=7
    fi
    wait_until 20 lacks_namespace 7 || fail "namespace 7 does not go, round $round"
  done
  must_be_writing "namespaces had come and gone"
  writing_ends_well
}

check_host_that_is_removed_is_disconnected() {
  provision
  connect_volume
  rpc nvmf_subsystem_remove_host nqn="$nqn_volume" host="$host_one"
  wait_until 30 no_longer_live || fail "the controller is still live"
  rpc nvmf_subsystem_add_host nqn="$nqn_volume" host="$host_one"
  nvme disconnect-all
  connect_volume
}

check_configured_state_survives_a_kill_under_load() {
  provision
  connect_volume
  start_writing
  must_be_writing "the kill"
  target_kill
  must_be_writing "the restart"
  target_start clients
  writing_ends_well
  controller_is live || fail "$controller is $(cat "/sys/class/nvme/$controller/state")"
  rpc nvmf_delete_subsystem nqn="$nqn_volume"
  wait_until 30 no_longer_live || fail "the controller of a subsystem that is gone is still live"
}

disk_has_bytes() {
  [ "$(blockdev --getsize64 "$disk")" = "$1" ]
}

# The host asks for the size again only because an event tells it to.
check_volume_grows_under_load() {
  provision
  connect_volume
  start_writing
  local mebibytes
  for mebibytes in 96 128 1024; do
    must_be_writing "the volume had $mebibytes MiB"
    truncate -s "${mebibytes}M" "$image"
    rpc bdev_uring_rescan name=volume
    wait_until 20 disk_has_bytes $((mebibytes << 20)) ||
      fail "$disk has $(blockdev --getsize64 "$disk") bytes, not $mebibytes MiB"
  done
  must_be_writing "the volume had grown"
  writing_ends_well
  verified_fio --name=end --rw=randwrite --bs=64k --offset=1000M --size=24M --iodepth=8
}
