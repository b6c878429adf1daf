# shellcheck shell=bash disable=SC2034,SC2154 # variables pass between the files that `guest` sources together
# The same data through the other ways in which reactors sleep and reach sockets and files.

# target_restart CONFIGURATION: leaves in $said what the target logged as it started.
target_restart() {
  target_stop
  local before
  before=$(wc -l <"$target_log")
  target_start "$1"
  said=$(tail -n +$((before + 1)) "$target_log")
}

target_has_io_uring() {
  find "/proc/$(cat "$target_pid_file")/fd" -lname '*io_uring*' | grep .
}

check_io_uring_switched_off() {
  tidegate_only "has no reactors"
  target_restart no-io-uring
  ! target_has_io_uring || fail "the target has an io_uring"
  verify_every_size -g -G
  disconnect
  ext4_survives
}

check_io_uring_forbidden_by_the_kernel() {
  tidegate_only "has no reactors"
  forbid=/proc/sys/kernel/io_uring_disabled
  [ -e "$forbid" ] || skip "this kernel cannot forbid io_uring"
  echo 2 >"$forbid"
  trap 'echo 0 >"$forbid"; target_stop' EXIT
  target_restart main
  ! target_has_io_uring || fail "the target has an io_uring"
  expect "the number of lines that say so" "$(grep -c "io_uring cannot be used" <<<"$said")" 1
  verify_every_size
}

check_two_reactors_that_sleep() {
  tidegate_only "has no reactors"
  target_restart interrupt
  target_has_io_uring || fail "the target has no io_uring"
  verify_every_size
}
