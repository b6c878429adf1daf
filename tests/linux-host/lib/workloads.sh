# shellcheck shell=bash disable=SC2034,SC2154 # variables pass between the files that `guest` sources together
# What several checks do to namespace 1 of $nqn_files, each with the target configured another way.

# Jobs of one fio run side by side, each on its own part of the disk, so that sizes mix on the queues.
verify_every_size() {
  connect "$nqn_files" -i 4 "$@"
  use_namespace 1
  verified_fio --iodepth=16 \
    --name=random-512 --rw=randwrite --bs=512 --offset=0 --size=512k \
    --name=random-4k --rw=randwrite --bs=4k --offset=16M --size=2M \
    --name=random-64k --rw=randwrite --bs=64k --offset=32M --size=2M \
    --name=sequential-16k --rw=write --bs=16k --offset=64M --size=2M \
    --name=sequential-1m --rw=write --bs=1M --offset=96M --size=8M \
    --name=mixed --rw=randwrite --bsrange=512-256k --offset=128M --size=4M
}

fill() {
  local number
  mkdir "$mountpoint/small"
  for number in $(seq 50); do
    head -c "$((number * 137))" /dev/urandom >"$mountpoint/small/$number"
  done
  head -c 8M /dev/urandom >"$mountpoint/large"
  (cd "$mountpoint" && sha256sum large small/*) >"$scratch/sums"
}

compare() {
  (cd "$mountpoint" && sha256sum --quiet --check "$scratch/sums") || fail "files differ after the remount"
}

survives_unmount() {
  local kind=$1 disk=$2 check=$3
  mount -t "$kind" "$disk" "$mountpoint"
  fill
  umount "$mountpoint"
  $check "$disk" || fail "$check finds errors"
  # Everything must come from the target again.
  disconnect
  connect "$nqn_files" -i 4
  use_namespace 1
  mount -t "$kind" "$disk" "$mountpoint"
  compare
  rm -r "$mountpoint/small"
  fstrim "$mountpoint"
  umount "$mountpoint"
  $check "$disk" || fail "$check finds errors after fstrim"
}

ext4_survives() {
  connect "$nqn_files" -i 4
  use_namespace 1
  wipefs -qa "$disk"
  mkfs.ext4 -q "$disk"
  survives_unmount ext4 "$disk" "e2fsck -fn"
}

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

# Whether anything has been written on the paths of this controller.
writes_arrive() {
  [ "$(awk '{written += $7} END {print written}' "/sys/class/nvme/$controller"/nvme*n*/stat)" -gt 0 ]
}

# The small files were removed by then.
compare_large() {
  (cd "$mountpoint" && grep ' large$' "$scratch/sums" | sha256sum --quiet --check) || fail "the kernel finds another file"
}

# As `start_verified_write`, whose disk is another.
start_verified_write_here() {
  verified_fio --name=random --rw=randwrite --bs=4k --size="$1" --iodepth=16 \
    --name=large --rw=write --bs=128k --offset=128M --size="$1" --iodepth=4 &
  writer=$!
  wait_until 60 writes_arrive || fail "the write does not get going"
}

# What the host discards leaves the files of an SSD, with either block size.
ssd_deallocates() {
  connect "$nqn_files" -i 2
  local nsid file full
  for nsid in 1 2; do
    use_namespace "$nsid"
    file=tg0001n$nsid
    fio --name=fill --filename="$disk" --direct=1 --rw=write --bs=1M --offset=128M --size=32M --output="$scratch/fio.log"
    full=$(kept "$file")
    blkdiscard -o 128M -l 32M "$disk"
    [ "$(kept "$file")" -le $((full - (30 << 20))) ] || fail "$file had $full bytes and has $(kept "$file")"
  done
}
