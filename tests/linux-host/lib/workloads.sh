# shellcheck shell=bash disable=SC2034,SC2154 # variables pass between the files that `guest` sources together
# What several checks do to namespace 1 of $nqn_files, each with the target configured another way.

# Jobs of one fio run side by side, each on its own part of the disk, so that sizes mix on the queues.
verify_every_size() {
  connect "$nqn_files" -i 4 "$@"
  use_namespace 1
  verified_fio --iodepth=16 \
    --name=random-512 --rw=randwrite --bs=512 --offset=0 --size=512k \
    --name=random-4k --rw=randwrite --bs=4k --offset=16M --size=4M \
    --name=random-64k --rw=randwrite --bs=64k --offset=32M --size=8M \
    --name=sequential-16k --rw=write --bs=16k --offset=64M --size=4M \
    --name=sequential-1m --rw=write --bs=1M --offset=96M --size=24M \
    --name=mixed --rw=randwrite --bsrange=512-256k --offset=128M --size=8M
}

fill() {
  local number
  mkdir "$mountpoint/small"
  for number in $(seq 100); do
    head -c "$((number * 137))" /dev/urandom >"$mountpoint/small/$number"
  done
  head -c 16M /dev/urandom >"$mountpoint/large"
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
