# shellcheck shell=bash disable=SC2034,SC2154 # variables pass between the files that `guest` sources together
# An NVMe controller of the guest's own goes to vfio-pci and back to the kernel; one that is used stays.
# All that is on it is lost.

# No target is needed.
prepare_check() {
  grep -qx 0x010802 /sys/bus/pci/devices/*/class || skip "the guest has no NVMe controller"
  modprobe nvme
  modprobe ext4
  # With an IOMMU, and as the kernel has it: its address, its group, its first namespace.
  wait_until 10 find_controller || skip "no NVMe controller behind an IOMMU"
  disk=/dev/$namespace
  wait_until 10 test -b "$disk"
  blank
}

find_controller() {
  local found
  found=$("$binary" devices --json |
    jq -r '[.controllers[] | select(.iommu_group != null)][0] | "\(.address) \(.iommu_group) \(.namespaces[0].name)"')
  read -r address group namespace <<<"$found"
  [ "$address" != null ] || return 1
  [ "$namespace" != null ] || {
    "$binary" devices unbind "$address"
    return 1
  }
}

# Zeroes at both ends, where marks are.
blank() {
  local sectors
  wipefs -q -a "$disk"
  sectors=$(blockdev --getsz "$disk")
  dd if=/dev/zero of="$disk" bs=1M count=8 conv=fsync status=none
  dd if=/dev/zero of="$disk" bs=512 count=2048 seek=$((sectors - 2048)) conv=fsync status=none
}

driver_is() {
  expect "the driver of $address" "$(basename "$(readlink "/sys/bus/pci/devices/$address/driver")")" "$1"
}

# refused_as TEXT [OPTION...]: bind says so, and the kernel keeps the controller.
refused_as() {
  local text=$1
  shift
  refuse "$binary" devices bind "$address" "$@"
  [[ $refusal == *"$text"* ]] || fail "refused otherwise: $refusal"
  driver_is nvme
}

listed() {
  "$binary" devices --json | jq -r ".controllers[] | select(.address == \"$address\") | $1"
}

check_a_controller_goes_to_vfio_and_back() {
  "$binary" devices
  expect "what is on it" "$(listed '.namespaces[0].content | length')" 0
  "$binary" devices bind "$address"
  driver_is vfio-pci
  [ ! -e "$disk" ] || fail "$disk is still there"
  expect "the listed driver" "$(listed .driver)" vfio-pci
  [[ $("$binary" devices bind "$address") == *"already"* ]] || fail "bound twice"
  # One who has the group keeps it.
  exec 9<>"/dev/vfio/$group"
  refuse "$binary" devices unbind "$address"
  [[ $refusal == *"vfio/$group is open in bash ($$)"* ]] || fail "refused otherwise: $refusal"
  driver_is vfio-pci
  exec 9>&-
  "$binary" devices unbind "$address"
  driver_is nvme
  wait_until 10 test -b "$disk" || fail "$disk has not come back"
  [[ $("$binary" devices unbind "$address") == *"already"* ]] || fail "given back twice"
}

check_a_controller_in_use_stays_with_the_kernel() {
  mkfs.ext4 -q -F "$disk"
  refused_as "holds ext2/3/4"
  mkdir -p /run/devices-mount
  mount "$disk" /run/devices-mount
  refused_as "$namespace is mounted on /run/devices-mount"
  refused_as "$namespace is mounted on /run/devices-mount" --i-know
  # Where this process sees nothing of the mount, the disk is still taken.
  local hidden
  hidden=$(unshare --mount bash -c "umount /run/devices-mount && ! '$binary' devices bind $address --i-know 2>&1")
  [[ $hidden == *"in use"* ]] || fail "not refused: $hidden"
  driver_is nvme
  umount /run/devices-mount
  wipefs -q -a "$disk"
  mkswap "$disk" >/dev/null
  refused_as "holds swap"
  swapon "$disk"
  refused_as "$namespace is swap" --i-know
  swapoff "$disk"
  wipefs -q -a "$disk"
  exec 9<"$disk"
  refused_as "$namespace is open in bash ($$)" --i-know
  exec 9<&-
  exec 9<"/dev/${namespace/nvme/ng}"
  refused_as "${namespace/nvme/ng} is open in bash ($$)" --i-know
  exec 9<&-
  # A partition of 64 MiB at 1 MiB.
  printf '\0\0\0\0\x83\0\0\0\0\x08\0\0\0\0\x02\0' | dd of="$disk" bs=1 seek=446 conv=notrunc status=none
  printf '\x55\xaa' | dd of="$disk" bs=1 seek=510 conv=notrunc,fsync status=none
  blockdev --rereadpt "$disk"
  refused_as "holds MBR"
  wait_until 10 test -b "${disk}p1"
  mkfs.ext4 -q -F "${disk}p1"
  mount "${disk}p1" /run/devices-mount
  refused_as "${namespace}p1 is mounted" --i-know
  umount /run/devices-mount
  modprobe dm-mod
  dmsetup create upon --table "0 2048 linear ${disk}p1 0"
  refused_as "${namespace}p1 is held by dm-0 (upon)" --i-know
  mkswap /dev/mapper/upon >/dev/null
  swapon /dev/mapper/upon
  refused_as "dm-0 (upon) is swap" --i-know
  swapoff /dev/mapper/upon
  dmsetup remove upon
}

check_what_was_on_a_disk_is_there_when_the_kernel_has_it_again() {
  mkfs.ext4 -q -F "$disk"
  mkdir -p /run/devices-mount
  mount "$disk" /run/devices-mount
  head -c 1M /dev/urandom >/run/devices-mount/file
  sha256sum /run/devices-mount/file >/run/devices-sum
  umount /run/devices-mount
  "$binary" devices bind "$address" --i-know
  driver_is vfio-pci
  "$binary" devices unbind "$address"
  wait_until 10 test -b "$disk" || fail "$disk has not come back"
  mount "$disk" /run/devices-mount
  sha256sum -c /run/devices-sum
  umount /run/devices-mount
}
