# shellcheck shell=bash disable=SC2034,SC2154 # variables pass between the files that `guest` sources together
# SSDs that the target drives itself, by VFIO: the machine's own, see tools/vm.

# The name that the workloads know.
nqn_ssds=$nqn_files

prepare_check() {
  tidegate_only "has no driver of its own"
  serve_own_ssds
}

# The PCI address of an SSD, by its serial number; while the kernel has it.
address_of() {
  "$binary" devices --json | jq -r ".controllers[] | select(.serial == \"$1\") | .address"
}

# Finds the two, whoever has them now.
find_ssds() {
  if [ -s "$scratch/ssds" ]; then
    return 0
  fi
  ssds_prepare
  echo "$(address_of tg0001) $(address_of tg0002)" >"$scratch/ssds"
}

# An empty daemon that has both SSDs, each a controller of that name, and all three namespaces in one subsystem.
serve_own_ssds() {
  ! tidegate_runs || target_stop
  find_ssds
  read -r first second <"$scratch/ssds"
  "$binary" devices bind --i-know "$first" "$second"
  rm -rf "$scratch/state"
  echo clients >"$target_config_file"
  log_mark
  tidegate_start clients
  wait_until 60 answers || fail "the RPC socket does not answer"
  rpc bdev_nvme_attach_controller name=tg0001 trtype=PCIe traddr="$first"
  rpc bdev_nvme_attach_controller name=tg0002 trtype=PCIe traddr="$second"
  rpc nvmf_create_transport trtype=TCP
  rpc nvmf_create_subsystem nqn="$nqn_ssds" allow_any_host=true
  local nsid=0 device
  for device in tg0001n1 tg0001n2 tg0002n1; do
    nsid=$((nsid + 1))
    rpc nvmf_subsystem_add_ns nqn="$nqn_ssds" namespace.bdev_name="$device" namespace.nsid="$nsid"
  done
  rpc nvmf_subsystem_add_listener nqn="$nqn_ssds" \
    listen_address.trtype=TCP listen_address.adrfam=IPv4 listen_address.traddr=127.0.0.1 listen_address.trsvcid=4420
}

# Gives both back to the kernel; the target is stopped.
give_back() {
  "$binary" devices unbind "$first" "$second"
  wait_until 20 ssds_link || fail "the kernel does not have them again"
}

check_vfio_every_size() {
  verify_every_size
  disconnect
  connect "$nqn_ssds" -i 2
  use_namespace 2
  verified_fio --iodepth=16 \
    --name=random --rw=randwrite --bs=4k --size=2M \
    --name=large --rw=write --bs=1M --offset=32M --size=8M
  use_namespace 3
  verified_fio --iodepth=16 --name=random --rw=randwrite --bsrange=512-64k --size=2M
}

check_vfio_every_command() {
  connect "$nqn_ssds"
  use_namespace 1
  head -c 64k /dev/urandom >"$scratch/random"
  head -c 64k /dev/zero >"$scratch/zeroes"
  nvme write "$disk" -s 1000 -c 127 -z 65536 -d "$scratch/random" -f
  nvme compare "$disk" -s 1000 -c 127 -z 65536 -d "$scratch/random"
  refuse nvme compare "$disk" -s 1001 -c 127 -z 65536 -d "$scratch/random"
  grep -qi "compare failure" <<<"$refusal" || fail "a difference is called: $refusal"
  nvme verify "$disk" -s 900 -c 255
  nvme flush "$disk"
  cmp "$scratch/random" <(dd if="$results/tg0001n1" bs=512 skip=1000 count=128 status=none)
  nvme write-zeroes "$disk" -s 1000 -c 127
  nvme compare "$disk" -s 1000 -c 127 -z 65536 -d "$scratch/zeroes"
}

check_vfio_deallocates() {
  ssd_deallocates
}

check_vfio_kill_and_restart() {
  connect "$nqn_ssds" -i 2 --reconnect-delay=1 --ctrl-loss-tmo=60 -k 5
  use_namespace 1
  start_verified_write_here 6M
  target_kill
  target_start clients
  verified_write_ends_well
}

check_vfio_reset_under_load() {
  connect "$nqn_ssds" -i 2
  use_namespace 1
  start_verified_write_here 6M
  local round
  for round in 1 2 3; do
    rpc bdev_nvme_reset_controller name=tg0001
  done
  must_still_be_writing
  verified_write_ends_well
}

check_vfio_ext4_and_what_the_kernel_finds_of_it() {
  ext4_survives
  disconnect
  target_stop
  give_back
  mount -t ext4 "$(ssd tg0001n1 disk)" "$mountpoint"
  compare_large
}

check_vfio_a_killed_target_leaves_them_usable() {
  connect "$nqn_ssds" -i 2 --ctrl-loss-tmo=1
  use_namespace 3
  verified_fio --name=random --rw=randwrite --bs=4k --size=256k
  target_kill
  nvme disconnect-all
  give_back
  fio --name=kernel --filename="$(ssd tg0002n1 disk)" --direct=1 --rw=randwrite --bs=4k --size=256k --verify=crc32c --output="$scratch/fio.log"
}
