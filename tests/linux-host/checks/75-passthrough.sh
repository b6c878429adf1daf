# shellcheck shell=bash disable=SC2034,SC2154 # variables pass between the files that `guest` sources together
# SSDs by their generic character devices: the machine's own, see tools/vm.

prepare_check() {
  tidegate_only "knows no generic devices"
  serve_ssds passthrough
}

# serve_ssds CONFIGURATION [MODULE-OPTION...]
serve_ssds() {
  local configuration=$1
  shift
  target_stop
  ssds_prepare "$@"
  log_mark
  target_start "$configuration"
}

# Each device says so once, with its first queue.
expect_way() {
  expect "the way of commands" "$(logged | sed -n 's/.*commands go to [^ ]* //p' | sort -u)" "$1"
}

check_passthrough_every_size() {
  expect_way "by io_uring, pinned buffers, with interrupts"
  verify_every_size
}

check_passthrough_on_4096_byte_blocks() {
  connect "$nqn_files" -i 4
  use_namespace 2
  verified_fio --iodepth=16 \
    --name=random --rw=randwrite --bs=4k --size=2M \
    --name=large --rw=write --bs=1M --offset=32M --size=8M \
    --name=mixed --rw=randwrite --bsrange=4k-512k --offset=64M --size=4M
}

check_passthrough_polled() {
  serve_ssds passthrough-polled poll_queues=1
  expect_way "by io_uring, pinned buffers, polled"
  verify_every_size
}

check_passthrough_without_poll_queues_on_reactors_that_never_sleep() {
  serve_ssds passthrough-polled
  expect_way "by io_uring, pinned buffers, with interrupts"
  verify_every_size
}

check_passthrough_by_worker_threads() {
  forbid=/proc/sys/kernel/io_uring_disabled
  [ -e "$forbid" ] || skip "this kernel cannot forbid io_uring"
  echo 2 >"$forbid"
  trap 'echo 0 >"$forbid"; target_stop' EXIT
  serve_ssds passthrough
  expect_way "by worker threads, which is slower"
  verify_every_size
}

check_passthrough_every_command() {
  connect "$nqn_files"
  use_namespace 1
  head -c 64k /dev/urandom >"$scratch/random"
  head -c 64k /dev/zero >"$scratch/zeroes"
  nvme write "$disk" -s 1000 -c 127 -z 65536 -d "$scratch/random" -f
  nvme compare "$disk" -s 1000 -c 127 -z 65536 -d "$scratch/random"
  refuse nvme compare "$disk" -s 1001 -c 127 -z 65536 -d "$scratch/random"
  grep -qi "compare failure" <<<"$refusal" || fail "a difference is called: $refusal"
  nvme verify "$disk" -s 900 -c 255
  nvme flush "$disk"
  cmp "$scratch/random" <(dd if="$(ssd tg0001n1 disk)" bs=512 skip=1000 count=128 iflag=direct status=none)
  nvme write-zeroes "$disk" -s 1000 -c 127
  nvme compare "$disk" -s 1000 -c 127 -z 65536 -d "$scratch/zeroes"
  # More than any single command of the SSD may do.
  nvme write "$disk" -s 2800 -c 127 -z 65536 -d "$scratch/random"
  nvme write-zeroes "$disk" -s 1000 -c 2047 -d
  nvme compare "$disk" -s 2800 -c 127 -z 65536 -d "$scratch/zeroes"
}

check_passthrough_deallocates() {
  ssd_deallocates
}

check_passthrough_ext4_and_what_the_kernel_finds_of_it() {
  ext4_survives
  disconnect
  target_stop
  mount -t ext4 "$(ssd tg0001n1 disk)" "$mountpoint"
  compare_large
}

check_passthrough_locks() {
  refuse mount -t ext4 "$(ssd tg0001n1 disk)" "$mountpoint"
  grep -qiE 'busy|already mounted' <<<"$refusal" || fail "mount says: $refusal"
  target_stop
  mkfs.ext4 -q -F "$(ssd tg0002n1 disk)"
  mount -t ext4 "$(ssd tg0002n1 disk)" "$mountpoint"
  refuse "$binary" serve --config "$here/configs/passthrough.toml" --rpc-socket none --state none
  grep -q "$(ssd tg0002n1 disk) is in use" <<<"$refusal" || fail "the target says: $refusal"
  touch "$mountpoint/still-mine"
}

says() {
  logged | grep -q "$1"
}

check_passthrough_kill_and_restart() {
  connect_to_recover "$nqn_files"
  start_verified_write_here 6M
  target_kill
  target_start passthrough
  verified_write_ends_well
}

check_passthrough_across_resets_of_the_ssd() {
  connect_to_recover "$nqn_files"
  start_verified_write_here 6M
  local round
  for round in 1 2 3; do
    nvme reset "$(ssd tg0001n1 controller)"
  done
  must_still_be_writing
  verified_write_ends_well
  ! says "is gone" || fail "a reset was taken for a removal"
}

check_passthrough_removal_and_return() {
  connect "$nqn_files" -i 2 --reconnect-delay=1 --ctrl-loss-tmo=60
  use_namespace 1
  verified_fio --name=before --rw=randwrite --bs=4k --size=256k
  fio --name=load --filename="$disk" --direct=1 --ioengine=libaio --iodepth=8 --rw=randrw --bs=4k --size=64M --output="$scratch/fio.log" &
  local load=$! function
  wait_until 60 writes_arrive
  function=$(realpath "/sys/class/nvme/$(basename "$(ssd tg0001n1 controller)")/device")
  echo 1 >"$function/remove"
  wait_until 60 says "device ssd: .* is gone" || fail "the removal is not noticed"
  kill "$load" || true # it may have ended by itself
  # The other SSD is served as ever.
  use_namespace 3
  verified_fio --name=other --rw=randwrite --bs=4k --size=256k
  disconnect
  echo 1 >/sys/bus/pci/rescan
  # It has data that it could not flush, for all it knows.
  ! target_stop || fail "the target ends as if nothing were lost"
  wait_until 20 ssds_link || fail "it does not come back"
  target_start passthrough
  connect "$nqn_files" -i 2
  use_namespace 1
  verified_fio --name=after --rw=randwrite --bs=4k --size=256k
}
