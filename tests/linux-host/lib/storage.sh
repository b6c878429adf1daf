# shellcheck shell=bash disable=SC2034,SC2154 # variables pass between the files that `guest` sources together
# What the target exports, made of null_blk devices that keep their data in the guest's memory.
#
#   /dev/nullb0   1 GiB, 512-byte blocks, with a volatile cache: ext4 on $backing, where the exported files lie
#   /dev/nullb1   128 MiB, 4096-byte blocks: exported itself
#   /dev/nullb2   64 MiB, 512-byte blocks: under dm-log-writes in the power loss check
#   /dev/nullb3   512 MiB: the log of dm-log-writes

backing=/run/backing

# null_blk_make INDEX MEGABYTES BLOCK-SIZE
null_blk_make() {
  local device=/sys/kernel/config/nullb/nullb$1
  mkdir "$device"
  echo "$2" >"$device/size"
  echo "$3" >"$device/blocksize"
  echo 1 >"$device/memory_backed"
  echo 1 >"$device/discard"
  echo 1 >"$device/power"
  expect "the name of null_blk device $1" "$(cat "$device/index")" "$1"
  wait_until 5 test -b "/dev/nullb$1"
}

storage_prepare() {
  modprobe configfs
  mountpoint -q /sys/kernel/config || mount -t configfs none /sys/kernel/config || return
  modprobe null_blk nr_devices=0 || return
  null_blk_make 0 1024 512
  null_blk_make 1 128 4096
  null_blk_make 2 64 512
  null_blk_make 3 512 512
  modprobe ext4
  mkfs.ext4 -q -E lazy_itable_init=0 /dev/nullb0 || return
  mkdir -p "$backing"
  mount -o discard /dev/nullb0 "$backing" || return
  truncate -s 512M "$backing/disk"
  truncate -s 64M "$backing/disk-4096"
  head -c 1M /dev/urandom >"$backing/read-only" && truncate -s 16M "$backing/read-only"
}

# Loads the driver of NVMe SSDs anew, with these options, and links the generic devices of the machine's two under
# /run/ssd by serial number and namespace: tg0001n1, tg0001n2, tg0002n1.
ssds_prepare() {
  # udev may be looking at a disk that was just closed.
  wait_until 20 modprobe -r nvme
  modprobe nvme "$@"
  mkdir -p /run/ssd
  wait_until 20 ssds_link || skip "this machine has no SSDs"
}

# The last number in a device's name is not the namespace's, but the same in the names of its generic and block device; the
# first may differ between these two.
ssds_link() {
  local controller disk name
  rm -f /run/ssd/*
  for controller in /sys/class/nvme/*; do
    [ "$(cat "$controller/transport")" = pcie ] || continue
    for disk in "$controller"/nvme*n*; do
      [ -e "$disk/nsid" ] || continue
      name=/run/ssd/$(tr -d ' ' <"$controller/serial")n$(cat "$disk/nsid")
      ln -s "/dev/$(basename "$controller"/ng*n"${disk##*n}")" "$name"
      ln -s "/dev/${disk##*/}" "$name.disk"
      ln -s "/dev/${controller##*/}" "$name.controller"
    done
  done
  [ -c /run/ssd/tg0001n1 ] && [ -c /run/ssd/tg0001n2 ] && [ -c /run/ssd/tg0002n1 ]
}

# The block device of one of them, or its controller: ssd tg0001n2 disk|controller
ssd() {
  readlink "/run/ssd/$1.$2"
}

# Bytes of a file that are allocated on the backing file system.
allocated() {
  sync "$1"
  echo $(($(stat -c '%b * %B' "$1")))
}

# Bytes of an SSD's file, which this machine keeps, that are allocated.
kept() {
  sync
  echo $(($(stat -c '%b * %B' "$results/$1")))
}
