# shellcheck shell=bash disable=SC2034,SC2154 # variables pass between the files that `guest` sources together
# What survives a loss of power: everything that was acknowledged by a flush or written with FUA.
#
# dm-log-writes stands between the target and its disk and records what a disk with a volatile cache would have had to
# keep. Marks say what had been acknowledged to the host. Afterwards the disk is rebuilt up to each flush, FUA write and
# mark: there the file system must be clean once its journal is replayed, and what was marked by then must be there.

# It starts one over the disk that it makes.
prepare_check() {
  ! "${target}_runs" || target_stop
}

log=/dev/nullb3
# There is no udev in the guest to make nodes below /dev/mapper.
export DM_DISABLE_UDEV=1
image=$scratch/power-image
replayed=$scratch/power-replayed
found=$scratch/power-found

replayer() {
  "$repo/target/debug/replay-log-writes" "$@"
}

logged_disk_make() {
  modprobe dm-log-writes || skip "this kernel has no dm-log-writes"
  blkdiscard /dev/nullb2
  blkdiscard "$log"
  dmsetup create logged --table "0 $(blockdev --getsz /dev/nullb2) log-writes /dev/nullb2 $log"
}

logged_disk_remove() {
  target_stop
  wait_until 10 dmsetup remove logged
}

mark() {
  dmsetup message logged 0 mark "$1"
}

# Sums of what has been acknowledged, by the name of its mark.
declare -A acknowledged

write_files() {
  local number
  for number in 1 2 3 4 5 6; do
    head -c $((number * 20000)) /dev/urandom >"$mountpoint/file-$number"
    sync "$mountpoint/file-$number"
    acknowledged[file-$number]=$(sha256sum <"$mountpoint/file-$number")
    mark "file-$number"
    # Never flushed, and so may be lost; it must not spoil anything either.
    head -c 5000 /dev/urandom >"$mountpoint/lost-$number"
  done
}

# Beyond the file system, at 62 MiB: one FUA write of 4 KiB each, and no flush.
write_blocks_with_fua() {
  local number block_size data=$scratch/power-block
  block_size=$(blockdev --getss "$disk")
  for number in 1 2 3 4; do
    head -c 4096 /dev/urandom >"$data"
    nvme write "$disk" --force --force-unit-access -z 4096 -d "$data" \
      -s $(((62 * 256 + number) * 4096 / block_size)) -c $((4096 / block_size - 1))
    acknowledged[block-$number]=$(sha256sum <"$data")
    mark "block-$number"
  done
}

# Puts into $found what $replayed has under these names. One debugfs for all: a process costs time in an emulated guest.
take_out() {
  local name
  rm -rf "$found"
  mkdir "$found"
  for name in "$@"; do
    case $name in
      file-*) echo "dump /$name $found/$name" ;;
      block-*) dd if="$replayed" of="$found/$name" bs=4096 skip=$((62 * 256 + ${name#block-})) count=1 status=none ;;
    esac
  done | debugfs -f - "$replayed" >/dev/null
}

# verify_cut WHERE NAME...: the disk as it is in $image, with what must be found on it.
verify_cut() {
  local where=$1 name status=0 sums
  shift
  cp --sparse=always "$image" "$replayed"
  # Mounting would replay the journal just so; then nothing may be left to repair. Status 1 says that it was replayed.
  e2fsck -E journal_only -y "$replayed" || status=$?
  [ "$status" -le 1 ] || fail "$where: the journal cannot be replayed (e2fsck status $status)"
  e2fsck -fn "$replayed" || fail "$where: the file system is not clean"
  [ $# -gt 0 ] || return 0
  take_out "$@"
  sums=$(for name in "$@"; do echo "${acknowledged[$name]%-}$found/$name"; done)
  sha256sum --quiet --check <<<"$sums" || fail "$where: what had been acknowledged is not there"
}

# Prints index and mark (or the flags) of each point at which power may have been lost.
cuts() {
  replayer list "$log" | awk '$2 ~ /flush|fua|mark/ { print $1, ($2 ~ /mark/ ? $5 : $2) }'
}

verify_every_cut() {
  local index what applied=0 made=no checked=0 due=()
  truncate -s 64M "$image"
  while read -r index what; do
    replayer apply "$log" "$image" "$applied" $((index + 1))
    applied=$((index + 1))
    case $what in
      made) made=yes ;;
      file-* | block-*) due+=("$what") ;;
    esac
    [ $made = yes ] || continue
    verify_cut "cut after entry $index ($what)" "${due[@]}"
    checked=$((checked + 1))
  done < <(cuts)
  echo "$checked cuts verified"
  [ "${#due[@]}" -eq "${#acknowledged[@]}" ] || fail "the log has ${#due[@]} of ${#acknowledged[@]} marks"
  # Each file asks for a flush at least, each block for its FUA write.
  [ "$checked" -ge 20 ] || fail "only $checked cuts: flushes do not reach the disk"
}

check_power_loss_keeps_what_was_acknowledged() {
  logged_disk_make
  target_start power
  connect "$nqn_power" -i 2
  use_namespace 1
  mkfs.ext4 -q -b 4096 -J size=4 -E lazy_itable_init=0,lazy_journal_init=0 "$disk" 60M
  sync "$disk"
  mark made
  mount "$disk" "$mountpoint"
  write_files
  write_blocks_with_fua
  umount "$mountpoint"
  disconnect
  logged_disk_remove
  verify_every_cut
}
