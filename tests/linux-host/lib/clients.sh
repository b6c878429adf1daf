# shellcheck shell=bash disable=SC2034,SC2154 # variables pass between the files that `guest` sources together
# A daemon that programs tell what to serve, a volume on it, and writes that go on while it is told more.

nqn_volume=nqn.2026-11.io.tidegate:volume
image=$scratch/volume.img

rpc() {
  "$binary" rpc --rpc-socket "$scratch/rpc.sock" "$@"
}

answers() {
  rpc spdk_get_version >/dev/null 2>&1
}

# provision [PARAMETER...]: an empty daemon, and on it a volume of 64 MiB for host one alone, its subsystem with these
# parameters.
provision() {
  tidegate_only "has no such clients"
  ! tidegate_runs || target_stop
  rm -rf "$scratch/state"
  echo clients >"$target_config_file"
  tidegate_start clients
  wait_until 60 answers || fail "the RPC socket does not answer"
  rm -f "$image"
  truncate -s 64M "$image"
  rpc bdev_uring_create name=volume filename="$image" block_size=4096
  rpc nvmf_create_transport trtype=TCP
  rpc nvmf_create_subsystem nqn="$nqn_volume" "$@"
  rpc nvmf_subsystem_add_host nqn="$nqn_volume" host="$host_one"
  rpc nvmf_subsystem_add_ns nqn="$nqn_volume" namespace.bdev_name=volume
  rpc nvmf_subsystem_add_listener nqn="$nqn_volume" \
    listen_address.trtype=TCP listen_address.adrfam=IPv4 listen_address.traddr=127.0.0.1 listen_address.trsvcid=4420
}

connect_volume() {
  connect "$nqn_volume" -i 2 --reconnect-delay=1 --ctrl-loss-tmo=60 -k 5
  use_namespace 1
}

# Verified writes to the volume in the background, one after the other until it is enough; back when the first is under way.
start_writing() {
  rm -f "$scratch/enough"
  keep_writing &
  writer=$!
  wait_until 60 has_grown_by 1024 || fail "the write does not get going"
}

keep_writing() {
  until [ -e "$scratch/enough" ]; do
    verified_fio --name=volume --rw=randwrite --bs=4k --size=16M --iodepth=16
  done
}

# Blocks of 512 bytes that the image takes up: it was sparse.
has_grown_by() {
  [ "$(stat -c %b "$image")" -ge "$1" ]
}

must_be_writing() {
  kill -0 "$writer" 2>/dev/null || fail "the writes were over before $1: $(cat "$verdict_file")"
}

writing_ends_well() {
  touch "$scratch/enough"
  wait "$writer" || fail "$(cat "$verdict_file")"
}

# Looks without changing which disk is in use.
has_namespace() {
  (find_disk "$1")
}

lacks_namespace() {
  ! has_namespace "$1"
}

no_longer_live() {
  ! controller_is live
}
