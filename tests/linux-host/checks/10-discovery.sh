# shellcheck shell=bash disable=SC2034,SC2154 # variables pass between the files that `guest` sources together
# What a host finds before it knows any subsystem by name.

check_discover_lists_every_listener() {
  expect "what 127.0.0.1 lists" "$(discovered 127.0.0.1 4420 | entries '\(.subnqn)' | sort -u | xargs)" \
    "$nqn_files $nqn_memory $nqn_private"
  local each
  each=$(discovered 127.0.0.1 4420 | entries '\(.subnqn) \(.adrfam) \(.traddr) \(.trsvcid)')
  grep -qx "$nqn_files ipv4 127.0.0.1 4420" <<<"$each" || fail "no entry of the IPv4 listener in: $each"
}

check_discover_over_ipv6() {
  discovered ::1 4420 | entries '\(.subnqn) \(.adrfam) \(.traddr) \(.trsvcid)' |
    grep -x "$nqn_files ipv6 ::1 4420" || fail "no entry of the IPv6 listener"
}

check_discover_hides_what_the_host_may_not_use() {
  expect "what another host sees" \
    "$(discovered 127.0.0.1 4420 "$host_two" "$id_two" | entries '\(.subnqn)' | sort -u | xargs)" \
    "$nqn_files $nqn_memory"
}

check_wildcard_listener_names_the_address_in_use() {
  ip address add 127.0.0.9/8 dev lo 2>/dev/null || true
  discovered 127.0.0.9 4421 | entries '\(.subnqn) \(.traddr) \(.trsvcid)' |
    grep -x "$nqn_files 127.0.0.9 4421" || fail "no entry with the address that the host connected to"
}

check_discovery_generation_stands_still() {
  local first second
  first=$(discovered 127.0.0.1 4420 | jq .genctr)
  second=$(discovered 127.0.0.1 4420 | jq .genctr)
  [ "$first" -gt 0 ] || fail "the generation counter is $first"
  expect "the generation counter of an unchanged configuration" "$second" "$first"
}

check_discovery_offers_sq_flow_control_disable() {
  discovered 127.0.0.1 4420 | entries '\(.treq)' | grep 'sq flow control disable supported' ||
    fail "treq is $(discovered 127.0.0.1 4420 | entries '\(.treq)' | head -n 1)"
}

check_connect_all_connects_what_was_discovered() {
  nvme connect-all -t tcp -a 127.0.0.1 -s 4420 -q "$host_one" -I "$id_one"
  local nqn
  for nqn in "$nqn_files" "$nqn_memory" "$nqn_private"; do
    wait_until 10 grep -qx "$nqn" /sys/class/nvme/nvme*/subsysnqn || fail "$nqn is not connected"
  done
}
