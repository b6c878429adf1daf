# shellcheck shell=bash disable=SC2034,SC2154 # variables pass between the files that `guest` sources together
# What the host may see and reach, and how it goes where it is sent: states of paths, masked namespaces, referrals.

# `provision` starts its own.
prepare_check() {
  :
}

# set_ana_state PORT STATE [PARAMETER...]
set_ana_state() {
  local port=$1 state=$2
  shift 2
  rpc nvmf_subsystem_listener_set_ana_state nqn="$nqn_volume" ana_state="$state" \
    listen_address.trtype=TCP listen_address.adrfam=IPv4 listen_address.traddr=127.0.0.1 listen_address.trsvcid="$port" "$@"
}

# The volume by two paths: $first and $second are their controllers.
connect_two_paths() {
  provision ana_reporting=true
  rpc nvmf_subsystem_add_listener nqn="$nqn_volume" \
    listen_address.trtype=TCP listen_address.adrfam=IPv4 listen_address.traddr=127.0.0.1 listen_address.trsvcid=4421
  connect_volume
  first=$controller
  connect "$nqn_volume" -s 4421 -i 2 --reconnect-delay=1 --ctrl-loss-tmo=60 -k 5
  second=$controller
  wait_until 10 path_of "$first" >/dev/null || skip "this kernel joins no paths"
  wait_until 10 path_of "$second" >/dev/null || fail "the second path is not joined to the first"
}

# The volume's disk as one controller has it.
path_of() {
  local path
  for path in "/sys/class/nvme/$1"/nvme*c*n1; do
    [ -e "$path/ana_state" ] && echo "$path" && return
  done
  return 1
}

path_is() {
  [ "$(cat "$(path_of "$1")/ana_state")" = "$2" ]
}

must_become() {
  wait_until 10 path_is "$1" "$2" || fail "the path by $1 is $(cat "$(path_of "$1")/ana_state"), not $2"
}

# Sectors written by one path.
written_by() {
  awk '{print $7}' "$(path_of "$1")/stat"
}

writes_by() {
  [ "$(written_by "$1")" -ge "$2" ]
}

# Writes go on by the path of $1, and nothing any more by that of $2.
must_go_by() {
  local before
  before=$(written_by "$2")
  wait_until 60 writes_by "$1" "$(($(written_by "$1") + 512))" || fail "nothing is written by $1"
  expect "what is written by $2" "$(written_by "$2")" "$before"
}

check_writes_go_where_the_path_is_open() {
  connect_two_paths
  set_ana_state 4421 inaccessible
  must_become "$second" inaccessible
  start_writing
  must_go_by "$first" "$second"
  local round
  for round in 1 2; do
    must_be_writing "round $round"
    set_ana_state 4421 optimized
    must_become "$second" optimized
    set_ana_state 4420 inaccessible
    must_become "$first" inaccessible
    must_go_by "$second" "$first"
    # And back, this time by a moment without any path.
    set_ana_state 4421 inaccessible
    must_become "$second" inaccessible
    set_ana_state 4420 non_optimized
    must_become "$first" non-optimized
    must_go_by "$first" "$second"
  done
  must_be_writing "the paths had been closed and opened"
  set_ana_state 4421 optimized
  writing_ends_well
  for controller in "$first" "$second"; do
    controller_is live || fail "$controller is $(cat "/sys/class/nvme/$controller/state")"
  done
}

check_a_namespace_changes_its_group() {
  connect_two_paths
  set_ana_state 4420 inaccessible anagrpid=7
  path_is "$first" optimized || fail "another group is inaccessible, and so is the path"
  rpc nvmf_subsystem_set_ns_ana_group nqn="$nqn_volume" nsid=1 anagrpid=7
  must_become "$first" inaccessible
  path_is "$second" optimized || fail "the other path is not optimized any more"
  expect "the group" "$(cat "$(path_of "$first")/ana_grpid")" 7
  verified_fio --name=group --rw=randwrite --bs=4k --size=4M --iodepth=16
  rpc nvmf_subsystem_set_ns_ana_group nqn="$nqn_volume" nsid=1 anagrpid=1
  must_become "$first" optimized
}

check_a_path_that_is_closed_is_joined_closed() {
  provision ana_reporting=true
  set_ana_state 4420 inaccessible
  connect "$nqn_volume" -i 2 --reconnect-delay=1 --ctrl-loss-tmo=60 -k 5
  wait_until 10 path_of "$controller" >/dev/null || skip "this kernel joins no paths"
  path_is "$controller" inaccessible || fail "the path is $(cat "$(path_of "$controller")/ana_state")"
  set_ana_state 4420 optimized
  must_become "$controller" optimized
  use_namespace 1
  verified_fio --name=opened --rw=randwrite --bs=4k --size=4M --iodepth=16
}

check_a_masked_namespace_appears_and_vanishes() {
  provision
  rpc bdev_malloc_create name=masked num_blocks=2048 block_size=4096
  rpc nvmf_subsystem_add_ns nqn="$nqn_volume" namespace.bdev_name=masked namespace.nsid=7 namespace.no_auto_visible=true
  connect_volume
  start_writing
  lacks_namespace 7 || fail "the host sees a namespace that it is not to see"
  local round
  for round in 1 2; do
    must_be_writing "the namespace came, round $round"
    # What another host may see is none of this one's business.
    rpc nvmf_ns_add_host nqn="$nqn_volume" nsid=7 host="$host_two"
    lacks_namespace 7 || fail "the host sees what another one may see"
    rpc nvmf_ns_add_host nqn="$nqn_volume" nsid=7 host="$host_one"
    wait_until 20 has_namespace 7 || fail "namespace 7 does not appear, round $round"
    rpc nvmf_ns_remove_host nqn="$nqn_volume" nsid=7 host="$host_one"
    wait_until 20 lacks_namespace 7 || fail "namespace 7 does not vanish, round $round"
  done
  must_be_writing "the namespace had come and gone"
  writing_ends_well
}

check_a_referral_is_discovered() {
  provision
  referral() {
    discovered 127.0.0.1 4420 |
      jq -r '.records[] | select(.subtype == "discovery subsystem referral") | "\(.traddr) \(.trsvcid) \(.subnqn)"'
  }
  expect "referrals at first" "$(referral)" ""
  local before after
  before=$(discovered 127.0.0.1 4420 | jq .genctr)
  rpc nvmf_discovery_add_referral \
    address.trtype=TCP address.adrfam=IPv4 address.traddr=192.0.2.7 address.trsvcid=8009
  expect "the referral" "$(referral)" "192.0.2.7 8009 nqn.2014-08.org.nvmexpress.discovery"
  after=$(discovered 127.0.0.1 4420 | jq .genctr)
  [ "$after" -gt "$before" ] || fail "the generation counter stands at $after"
  rpc nvmf_discovery_remove_referral \
    address.trtype=TCP address.adrfam=IPv4 address.traddr=192.0.2.7 address.trsvcid=8009
  expect "referrals in the end" "$(referral)" ""
}

check_a_referral_is_followed() {
  provision
  ip address add 127.0.0.9/8 dev lo 2>/dev/null || true
  rpc nvmf_subsystem_add_listener nqn="$nqn_volume" \
    listen_address.trtype=TCP listen_address.adrfam=IPv4 listen_address.traddr=127.0.0.9 listen_address.trsvcid=8009
  # What this address offers has to be found by the other one.
  rpc nvmf_subsystem_remove_listener nqn="$nqn_volume" \
    listen_address.trtype=TCP listen_address.adrfam=IPv4 listen_address.traddr=127.0.0.1 listen_address.trsvcid=4420
  rpc nvmf_create_subsystem nqn="$nqn_memory" allow_any_host=true
  rpc nvmf_subsystem_add_listener nqn="$nqn_memory" \
    listen_address.trtype=TCP listen_address.adrfam=IPv4 listen_address.traddr=127.0.0.1 listen_address.trsvcid=4420
  rpc nvmf_discovery_add_referral \
    address.trtype=TCP address.adrfam=IPv4 address.traddr=127.0.0.9 address.trsvcid=8009
  nvme connect-all -t tcp -a 127.0.0.1 -s 4420
  nvme list-subsys -o json | jq -e --arg nqn "$nqn_volume" '.. | objects | select(.NQN? == $nqn)' ||
    fail "the subsystem behind the referral is not connected"
}
