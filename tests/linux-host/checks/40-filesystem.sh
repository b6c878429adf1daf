# shellcheck shell=bash disable=SC2034,SC2154 # variables pass between the files that `guest` sources together
# File systems made, filled, checked, mounted again; space given back.

check_ext4_survives() {
  ext4_survives
}

check_xfs_survives() {
  grep -qw xfs /proc/filesystems || skip "this kernel has no xfs"
  connect "$nqn_files" -i 4 -g -G
  use_namespace 1
  mkfs.xfs -q -f "$disk"
  survives_unmount xfs "$disk" "xfs_repair -n"
}

check_blkdiscard_frees_the_backing_file() {
  connect "$nqn_files"
  local before after
  use_namespace 1
  dd if=/dev/urandom of="$disk" bs=1M count=16 oflag=direct
  before=$(allocated "$backing/disk")
  blkdiscard -o 0 -l 16M "$disk"
  after=$(allocated "$backing/disk")
  [ $((before - after)) -ge $((15 << 20)) ] || fail "$before bytes allocated before, $after after"
  cmp -n $((16 << 20)) "$disk" /dev/zero || fail "what was discarded does not read as zeroes"
}

check_fstrim_frees_the_backing_file() {
  connect "$nqn_files" -i 2
  local before after
  use_namespace 1
  mkfs.ext4 -q -F "$disk"
  mount "$disk" "$mountpoint"
  head -c 16M /dev/urandom >"$mountpoint/large"
  sync "$mountpoint/large"
  before=$(allocated "$backing/disk")
  rm "$mountpoint/large"
  sync "$mountpoint"
  fstrim "$mountpoint"
  after=$(allocated "$backing/disk")
  # Less than was deleted: ext4 goes on initialising its inode tables meanwhile.
  [ $((before - after)) -ge $((12 << 20)) ] || fail "$before bytes allocated before, $after after"
}

check_blkdiscard_zeroout() {
  connect "$nqn_files" -i 2
  use_namespace 1
  dd if=/dev/urandom of="$disk" bs=1M count=4 oflag=direct
  # The middle only: its neighbours stay as they are.
  dd if="$disk" of="$scratch/edge-before" bs=512 count=3 iflag=direct
  blkdiscard --zeroout -o 1536 -l $((2 << 20)) "$disk"
  dd if="$disk" of="$scratch/edge-after" bs=512 count=3 iflag=direct
  cmp "$scratch/edge-before" "$scratch/edge-after"
  cmp -i 1536:0 -n $((2 << 20)) "$disk" /dev/zero || fail "not zero"
}
