# shellcheck shell=bash disable=SC2034,SC2154 # variables pass between the files that `guest` sources together
# The kernel's own target with the same exports, to prove the checks on. What it cannot do is left out by the checks.

nvmet=/sys/kernel/config/nvmet

nvmet_start() {
  modprobe loop
  modprobe nvmet-tcp
  [ "$1" != rdma ] || modprobe nvmet-rdma
  "nvmet_config_$1"
}

nvmet_runs() {
  [ -n "$(find "$nvmet/ports" -mindepth 1 -maxdepth 1 2>/dev/null)" ]
}

nvmet_stop() {
  local link directory
  for link in "$nvmet"/ports/*/subsystems/*; do [ ! -L "$link" ] || rm "$link"; done
  for directory in "$nvmet"/ports/*; do [ ! -d "$directory" ] || rmdir "$directory"; done
  for directory in "$nvmet"/subsystems/*/namespaces/*; do
    [ ! -d "$directory" ] || { echo 0 >"$directory/enable" && rmdir "$directory"; }
  done
  for link in "$nvmet"/subsystems/*/allowed_hosts/*; do [ ! -L "$link" ] || rm "$link"; done
  for directory in "$nvmet"/subsystems/* "$nvmet"/hosts/*; do [ ! -d "$directory" ] || rmdir "$directory"; done
}

# A kernel cannot be killed with -9: its connections are cut and its subsystems removed.
nvmet_kill() {
  nvmet_stop
}

# nvmet_subsystem NQN SERIAL [HOST-NQN...]: without a host, any may connect.
nvmet_subsystem() {
  local subsystem=$nvmet/subsystems/$1 host
  mkdir "$subsystem"
  echo "$2" >"$subsystem/attr_serial"
  shift 2
  [ $# -gt 0 ] || echo 1 >"$subsystem/attr_allow_any_host"
  for host in "$@"; do
    mkdir -p "$nvmet/hosts/$host"
    ln -s "$nvmet/hosts/$host" "$subsystem/allowed_hosts/$host"
  done
}

# nvmet_namespace NQN NSID PATH
nvmet_namespace() {
  local namespace=$nvmet/subsystems/$1/namespaces/$2
  mkdir "$namespace"
  echo "$3" >"$namespace/device_path"
  # The random identities that it makes up would not be known again after a restart.
  printf '%08x-0000-4000-8000-%012x\n' "$(cksum <<<"$1" | cut -d' ' -f1)" "$2" >"$namespace/device_uuid"
  printf '%08x-0000-4000-9000-%012x\n' "$(cksum <<<"$1" | cut -d' ' -f1)" "$2" >"$namespace/device_nguid"
  echo 1 >"$namespace/enable"
}

# nvmet_port INDEX TRANSPORT FAMILY ADDRESS PORT NQN...
nvmet_port() {
  local port=$nvmet/ports/$1 nqn
  mkdir "$port"
  echo "$2" >"$port/addr_trtype"
  echo "$3" >"$port/addr_adrfam"
  echo "$4" >"$port/addr_traddr"
  echo "$5" >"$port/addr_trsvcid"
  shift 5
  for nqn in "$@"; do
    ln -s "$nvmet/subsystems/$nqn" "$port/subsystems/$nqn"
  done
}

# The kernel's target gives a file the block size of its file system; a loop device over it has 512 bytes.
loop_over() {
  local loop
  loop=$(losetup --noheadings --output NAME --associated "$1" | head -n 1)
  [ -n "$loop" ] || loop=$(losetup --find --show --direct-io=on "$1")
  echo "$loop"
}

nvmet_memory_device() {
  [ -b "/dev/nullb$1" ] || null_blk_make "$@"
}

nvmet_config_main() {
  local all=("$nqn_files" "$nqn_memory" "$nqn_private")
  nvmet_memory_device 4 128 512
  nvmet_memory_device 5 16 512
  nvmet_subsystem "$nqn_files" TGFILES
  nvmet_namespace "$nqn_files" 1 "$(loop_over "$backing/disk")"
  nvmet_namespace "$nqn_files" 2 "$backing/disk-4096"
  nvmet_subsystem "$nqn_memory" TGMEMORY
  nvmet_namespace "$nqn_memory" 1 /dev/nullb4
  nvmet_namespace "$nqn_memory" 7 /dev/nullb1
  nvmet_subsystem "$nqn_private" TGPRIVATE "$host_one"
  nvmet_namespace "$nqn_private" 1 /dev/nullb5
  nvmet_port 1 tcp ipv4 127.0.0.1 4420 "${all[@]}"
  nvmet_port 2 tcp ipv6 ::1 4420 "${all[@]}"
  nvmet_port 3 tcp ipv4 0.0.0.0 4421 "${all[@]}"
}

nvmet_config_rdma() {
  nvmet_memory_device 4 128 512
  nvmet_subsystem "$nqn_files" TGFILES
  nvmet_namespace "$nqn_files" 1 "$(loop_over "$backing/disk")"
  nvmet_subsystem "$nqn_memory" TGMEMORY
  nvmet_namespace "$nqn_memory" 1 /dev/nullb4
  nvmet_port 1 tcp ipv4 127.0.0.1 4420 "$nqn_files" "$nqn_memory"
  nvmet_port 2 tcp ipv4 "$rdma_address" 4420 "$nqn_files"
  nvmet_port 3 rdma ipv4 "$rdma_address" 4420 "$nqn_files" "$nqn_memory"
  nvmet_port 4 rdma ipv6 :: 4421 "$nqn_memory"
}

nvmet_config_power() {
  nvmet_subsystem "$nqn_power" TGPOWER
  nvmet_namespace "$nqn_power" 1 /dev/mapper/logged
  nvmet_port 1 tcp ipv4 127.0.0.1 4420 "$nqn_power"
}
