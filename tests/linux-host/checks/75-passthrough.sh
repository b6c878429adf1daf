# shellcheck shell=bash disable=SC2034,SC2154 # variables pass between the files that `guest` sources together
# SSDs by their generic character devices: the machine's own, see tools/vm.

prepare_check() {
  tidegate_only "knows no generic devices"
  serve_ssds passthrough
}

# serve_ssds CONFIGURATION [MODULE-OPTION...]: leaves in $said what the target logged.
serve_ssds() {
  local configuration=$1 before
  shift
  target_stop
  ssds_prepare "$@"
  before=$(wc -l <"$target_log")
  target_start "$configuration"
  said=$(tail -n +$((before + 1)) "$target_log")
}

# The way that commands take is said with the first queue, so after a host has connected.
expect_way() {
  local ways
  ways=$(tail -n +$((before_ways + 1)) "$target_log" | sed -n "s/.*device $1: commands go to [^ ]* //p")
  expect "the way of commands to device $1" "$ways" "$2"
}

check_passthrough_every_size() {
  before_ways=0
  verify_every_size
  cat "$target_log"
}
