# shellcheck shell=bash disable=SC2034,SC2154 # variables pass between the files that `guest` sources together
# Data written is data read, at every size and with every digest.

check_fio_every_size() {
  verify_every_size
}

check_fio_every_size_with_header_digest() {
  verify_every_size -g
}

check_fio_every_size_with_data_digest() {
  verify_every_size -G
}

check_fio_every_size_with_both_digests() {
  verify_every_size -g -G
}

check_fio_reads_and_writes_mixed() {
  connect "$nqn_files" -i 4
  use_namespace 1
  verified_fio --name=mix --rw=randrw --rwmixread=50 --bssplit=4k/60:512/20:64k/20 --size=4M --iodepth=32
}

check_fio_on_memory() {
  connect "$nqn_memory" -i 4
  use_namespace 1
  verified_fio --iodepth=16 \
    --name=random --rw=randwrite --bs=4k --size=2M \
    --name=sequential --rw=write --bs=1M --offset=32M --size=8M
}

check_fio_on_a_block_device() {
  connect "$nqn_memory" -i 4
  use_namespace 7
  verified_fio --iodepth=16 \
    --name=random --rw=randwrite --bs=4k --size=2M \
    --name=sequential --rw=write --bs=1M --offset=32M --size=8M
}

check_fio_on_a_file_with_4096_byte_blocks() {
  connect "$nqn_files" -i 4
  use_namespace 2
  verified_fio --iodepth=16 \
    --name=random --rw=randwrite --bs=4k --size=2M \
    --name=sequential --rw=write --bs=1M --offset=32M --size=8M
}

check_fio_through_the_page_cache_with_fsync() {
  connect "$nqn_files" -i 4
  use_namespace 1
  verified_fio --name=cached --direct=0 --ioengine=psync --rw=randwrite --bs=4k --size=1M --fsync=16
}

check_null_device_takes_and_gives() {
  tidegate_only "has no null device here"
  connect "$nqn_memory" -i 2
  use_namespace 2
  fio --name=null --filename="$disk" --direct=1 --ioengine=libaio --rw=randrw --bs=4k --size=4M --iodepth=16
}

check_read_only_namespace_refuses_writes() {
  tidegate_only "has no read-only namespaces"
  connect "$nqn_files"
  use_namespace 5
  expect "the disk's read-only mark" "$(blockdev --getro "$disk")" 1
  expect "what it reads" "$(sha256sum <"$disk")" "$(sha256sum <"$backing/read-only")"
  # Through the character device, past the host's own refusal.
  head -c 512 /dev/zero >"$scratch/zeroes"
  refuse nvme write "$disk" -s 0 -c 0 -z 512 -d "$scratch/zeroes"
  grep -qiE 'write protected|read.?only' <<<"$refusal" || fail "the status does not tell why: $refusal"
}
