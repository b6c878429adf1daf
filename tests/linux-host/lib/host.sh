# shellcheck shell=bash disable=SC2034,SC2154 # variables pass between the files that `guest` sources together
# The Linux host's side: connect, find the block device, verify, disconnect.

{
  nqn_files=nqn.2026-11.io.tidegate:files
  nqn_memory=nqn.2026-11.io.tidegate:memory
  nqn_private=nqn.2026-11.io.tidegate:private
  nqn_power=nqn.2026-11.io.tidegate:power
}
# The only host that may use $nqn_private, and one more.
host_one=nqn.2014-08.org.nvmexpress:uuid:11111111-1111-4111-8111-111111111111
id_one=11111111-1111-4111-8111-111111111111
host_two=nqn.2014-08.org.nvmexpress:uuid:22222222-2222-4222-8222-222222222222
id_two=22222222-2222-4222-8222-222222222222
export mountpoint=/run/mounted

host_prepare() {
  modprobe nvme-tcp || return
  modprobe xfs
  ip link set lo up
  mkdir -p "$mountpoint" /etc/nvme
  echo "$host_one" >/etc/nvme/hostnqn
  echo "$id_one" >/etc/nvme/hostid
}

host_clear_away() {
  while mountpoint -q "$mountpoint"; do umount -l "$mountpoint"; done
  # A controller whose target is gone is deleted without waiting for it.
  nvme disconnect-all
}

# How the host connects: tcp or rdma.
transport=tcp

# discovered ADDRESS PORT [HOST ID]: the discovery log as JSON.
discovered() {
  nvme discover -t "$transport" -a "$1" -s "$2" -q "${3:-$host_one}" -I "${4:-$id_one}" -o json
}

# entries JSON-FIELD...: one line per entry of the discovery log.
entries() {
  jq -r ".records[] | select(.subtype | test(\"discovery\") | not) | \"$*\"" | sort
}

# connect NQN [NVME-CONNECT-OPTION...]: by default as host one to port 4420, at 127.0.0.1 over TCP.
# The new controller's name (nvme3) is left in $controller.
connect() {
  local nqn=$1 before after address=127.0.0.1
  shift
  [ "$transport" = tcp ] || address=$rdma_address
  before=$(controllers)
  [[ " $* " == *" -a "* ]] || set -- -a "$address" "$@"
  [[ " $* " == *" -s "* ]] || set -- -s 4420 "$@"
  nvme connect -t "$transport" -n "$nqn" "$@"
  after=$(controllers)
  controller=$(comm -13 <(echo "$before") <(echo "$after"))
  [ -n "$controller" ] || fail "nvme connect succeeded without a new controller"
  wait_until 10 controller_is live || fail "$controller is $(cat "/sys/class/nvme/$controller/state"), not live"
}

controllers() {
  find /sys/class/nvme -mindepth 1 -printf '%f\n' | sort
}

controller_is() {
  [ "$(cat "/sys/class/nvme/$controller/state" 2>/dev/null)" = "$1" ]
}

disconnect() {
  nvme disconnect -d "$controller"
}

# use_namespace NSID: leaves the block device of that namespace of $controller's subsystem in $disk.
# Waits for it: the host scans after it has connected.
use_namespace() {
  wait_until 10 find_disk "$1" || fail "namespace $1 of $controller does not appear"
}

# A namespace's disk stands below the subsystem, where multipath joins its paths, or else below the controller.
find_disk() {
  local nsid path
  for path in /sys/class/nvme-subsystem/*; do
    [ -e "$path/$controller" ] || continue
    for nsid in "$path"/nvme*n*/nsid "$path/$controller"/nvme*n*/nsid; do
      [ -e "$nsid" ] || continue
      disk=/dev/$(basename "$(dirname "$nsid")")
      if [ "$(cat "$nsid")" = "$1" ] && [ -b "$disk" ]; then
        return 0
      fi
    done
  done
  return 1
}

# verified_fio OPTION...: one fio run on $disk that writes, reads back and compares; any difference fails the check.
verified_fio() {
  fio --filename="$disk" --allow_file_create=0 --direct=1 --ioengine=libaio --verify=crc32c --verify_state_save=0 --verify_fatal=1 --group_reporting \
    --randrepeat=0 --output="$scratch/fio.log" "$@" || {
    tail -n 30 "$scratch/fio.log"
    fail "fio: $(grep -m1 -E 'verify|error|err=' "$scratch/fio.log")"
  }
}
