# shellcheck shell=bash disable=SC2154 # $repo and $out come from the script that sources this
# tidegate's own host over RDMA against the kernel's target in the same guest.

nvmet=/sys/kernel/config/nvmet
nqn=nqn.2026-11.io.tidegate:kernel
disk=/sys/kernel/config/nullb/nullb7

# kernel_target: memory behind 10.99.0.1 and fd99::1, port 4420.
kernel_target() {
  modprobe configfs
  mountpoint -q /sys/kernel/config || mount -t configfs none /sys/kernel/config || return 1
  modprobe nvmet-rdma && modprobe null_blk nr_devices=0 && mkdir "$disk" || return 1
  echo 1 >"$disk/memory_backed"
  echo 64 >"$disk/size"
  echo 512 >"$disk/blocksize"
  echo 7 >"$disk/index"
  echo 1 >"$disk/power"
  mkdir "$nvmet/subsystems/$nqn" "$nvmet/subsystems/$nqn/namespaces/1"
  echo 1 >"$nvmet/subsystems/$nqn/attr_allow_any_host"
  echo /dev/nullb7 >"$nvmet/subsystems/$nqn/namespaces/1/device_path"
  echo 1 >"$nvmet/subsystems/$nqn/namespaces/1/enable"
  kernel_port 1 ipv4 10.99.0.1 && kernel_port 2 ipv6 fd99::1
}

# kernel_port INDEX FAMILY ADDRESS
kernel_port() {
  local port=$nvmet/ports/$1
  mkdir "$port"
  echo rdma >"$port/addr_trtype"
  echo "$2" >"$port/addr_adrfam"
  echo "$3" >"$port/addr_traddr"
  echo 4420 >"$port/addr_trsvcid"
  ln -s "$nvmet/subsystems/$nqn" "$port/subsystems/$nqn"
}

host() {
  timeout 120 "$repo/target/debug/tidegate" "$@"
}

perf() {
  host perf -t rdma -a 10.99.0.1 -n "$nqn" --timeout 60 "$@"
}

# says WORDS COMMAND...: the command's output has these words, whatever its status.
says() {
  local words=$1
  shift
  "$@" 2>&1 | tee "$out/said"
  grep -qF -- "$words" "$out/said"
}

# Data takes no system call; what there is comes of sleeping.
data_without_calls() {
  perf --rw randread --iodepth 16 --runtime 5 --json >"$out/perf.json" || return 1
  cat "$out/perf.json"
  grep -qE '"receive": 0(\.0)?,' "$out/perf.json" && grep -qE '"send": 0(\.0)?,' "$out/perf.json"
}

# The target goes away under a run: an error, not a hang.
target_leaves() {
  local reads run status=0
  reads=$(awk '{print $1}' /sys/block/nullb7/stat)
  perf --rw randread --iodepth 8 --runtime 100 >"$out/leaving" 2>&1 &
  run=$!
  until [ "$(awk '{print $1}' /sys/block/nullb7/stat)" -gt $((reads + 100)) ]; do
    kill -0 "$run" || break
  done
  rm "$nvmet/ports/1/subsystems/$nqn"
  wait "$run" || status=$?
  cat "$out/leaving"
  [ "$status" -eq 1 ] && grep -q '^tidegate: ' "$out/leaving"
}

# check NAME COMMAND...
check() {
  local name=$1
  shift
  if "$@" >"$out/check" 2>&1; then
    echo "ok rdma-host $name" >>"$out/results"
  else
    echo "not ok rdma-host $name: $(tail -n 3 "$out/check" | tr '\n' ' ')" >>"$out/results"
  fi
  sed "s|^|# $name: |" "$out/check"
}

host_checks() {
  check discover says "trtype:  rdma" host discover -t rdma -a 10.99.0.1
  check discover-ipv6 says "traddr:  fd99::1" host discover -t rdma -a fd99::1
  check identify says "subsystem   $nqn" host identify -t rdma -a 10.99.0.1 -n "$nqn"
  local bytes
  for bytes in 512 4k 16k 128k 1m; do
    check "verify-$bytes" perf --rw randwrite --verify --bs "$bytes" --size 8m --iodepth 8 --numjobs 2 --connections 2
  done
  check data-without-calls data_without_calls
  check nobody-listens says "nothing listens on 10.99.0.1:4444" host discover -t rdma -a 10.99.0.1 -s 4444
  check no-such-subsystem says "check -n" host identify -t rdma -a 10.99.0.1 -n nqn.2026-11.io.tidegate:none
  check target-leaves target_leaves
}
