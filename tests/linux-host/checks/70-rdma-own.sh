# shellcheck shell=bash disable=SC2034,SC2154 # variables pass between the files that `guest` sources together
# What is ours alone over RDMA: the layer over libibverbs and librdmacm, and our own host against the kernel's target.

prepare_check() {
  soft_roce
}

# Both ends in one process, which prints a line for each thing that works.
check_rdma_both_ends_of_the_verbs_layer() {
  tidegate_only "has no verbs layer in user space"
  local at
  for at in "$rdma_address:4430" '[fd99::1]:4430'; do
    timeout 60 "$repo/target/debug/examples/rdma-ends" "$at" 2>&1 | tee "$scratch/log" ||
      fail "at $at, after $(tail -n 1 <(grep '^ok' "$scratch/log")): $(head -n 3 <(grep -vE '^#|^ok' "$scratch/log"))"
  done
}

# The kernel's target in place of ours, until the check ends.
kernel_target() {
  modprobe nvmet-rdma || skip "this kernel has no nvmet-rdma"
  ! "${target}_runs" || target_stop
  target=nvmet
  trap target_stop EXIT
  target_start rdma
}

own_perf() {
  "$binary" perf -t rdma -a "$rdma_address" -n "$nqn_memory" --nsid 1 --timeout 60 "$@"
}

check_rdma_own_host_against_the_kernel_target() {
  kernel_target
  local where=(-t rdma -a "$rdma_address") bytes
  "$binary" discover "${where[@]}" | grep "trtype:  rdma" || fail "discover tells no transport"
  "$binary" discover -t rdma -a fd99::1 -s 4421 | grep "traddr:  fd99::1" || fail "discover over IPv6"
  "$binary" identify "${where[@]}" -n "$nqn_memory" | grep TGMEMORY || fail "identify does not tell the serial"
  for bytes in 512 4k 16k 128k 1m; do
    own_perf --rw randwrite --verify --bs "$bytes" --size 8m --iodepth 8 --numjobs 2 --connections 2 ||
      fail "verify of blocks of $bytes"
  done
  refuse "$binary" discover "${where[@]}" -s 4444
  grep "nothing listens on $rdma_address:4444" <<<"$refusal" || fail "where nobody listens: $refusal"
  refuse "$binary" identify "${where[@]}" -n nqn.2026-11.io.tidegate:none
  grep "check -n" <<<"$refusal" || fail "a subsystem that is not there: $refusal"
}

# What calls there are come of sleeping.
check_rdma_own_host_makes_no_calls_for_data() {
  kernel_target
  own_perf --rw randread --iodepth 16 --runtime 3 --json >"$scratch/log"
  jq -e '[.. | objects | select(has("receive") and has("send")) | .receive, .send] | length > 0 and all(. == 0)' \
    "$scratch/log" || fail "calls for data: $(cat "$scratch/log")"
}

# An error, not a hang.
check_rdma_own_host_loses_the_kernel_target() {
  kernel_target
  local reads run status=0
  reads=$(reads_of_nullb4)
  # Without the trap: that it fails is what is wanted.
  (trap - ERR && own_perf --rw randread --iodepth 8 --runtime 100) >"$scratch/log" 2>&1 &
  run=$!
  wait_until 60 reads_exceed $((reads + 100)) || fail "the run does not get going: $(cat "$scratch/log")"
  rm "$nvmet/ports/3/subsystems/$nqn_memory"
  wait "$run" || status=$?
  expect "perf's status" "$status" 1
  grep '^tidegate: ' "$scratch/log" || fail "it does not say why: $(cat "$scratch/log")"
}

reads_of_nullb4() {
  awk '{print $1}' /sys/block/nullb4/stat
}

reads_exceed() {
  [ "$(reads_of_nullb4)" -gt "$1" ]
}
