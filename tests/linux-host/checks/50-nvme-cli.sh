# shellcheck shell=bash disable=SC2034,SC2154 # variables pass between the files that `guest` sources together
# The commands of nvme-cli that read, and those that do one I/O; the answers must fit what the host knows otherwise.

# ask COMMAND...: leaves the answer for value.
ask() {
  answer=$("$@" -o json) || fail "\`$*\` failed: $answer"
}

# value FILTER: a part of the last answer.
value() {
  jq -r "$1" <<<"$answer"
}

# field FILTER COMMAND...: one part of an answer.
field() {
  local filter=$1 answer
  shift
  ask "$@"
  value "$filter"
}

at_least() {
  [ "$2" -ge "$3" ] || fail "$1 is $2, expected at least $3"
}

check_nvme_list_and_list_subsys() {
  connect "$nqn_files"
  use_namespace 1
  expect "bytes in nvme list" \
    "$(field ".Devices[] | select(.DevicePath == \"$disk\") | .PhysicalSize" nvme list)" $((512 << 20))
  expect "the serial number in nvme list" \
    "$(field ".Devices[] | select(.DevicePath == \"$disk\") | .SerialNumber" nvme list)" TGFILES
  nvme list -v | grep "$nqn_files"
  expect "the path in nvme list-subsys" \
    "$(field ".[].Subsystems[] | select(.NQN == \"$nqn_files\") | .Paths[].State" nvme list-subsys)" live
}

check_nvme_id_ctrl() {
  connect "$nqn_files"
  ask nvme id-ctrl "/dev/$controller"
  expect cntlid "$(value .cntlid)" "$(cat "/sys/class/nvme/$controller/cntlid")"
  expect subnqn "$(value .subnqn)" "$nqn_files"
  expect "the serial number" "$(value .sn | xargs)" TGFILES
  [ -n "$(value .mn | xargs)" ] || fail "no model number"
  [ -n "$(value .fr | xargs)" ] || fail "no firmware revision"
  expect cntrltype "$(value .cntrltype)" 1
  expect "sqes and cqes" "$(value .sqes) $(value .cqes)" "102 68"
  at_least kas "$(value .kas)" 1
  at_least ioccsz "$(value .ioccsz)" 4
  at_least iorcsz "$(value .iorcsz)" 1
  at_least maxcmd "$(value .maxcmd)" 1
  at_least nn "$(value .nn)" 7
  expect icdoff "$(value .icdoff)" 0
  expect "SGL support" "$(($(value .sgls) & 3 ? 1 : 0))" 1
  expect fuses "$(value .fuses)" 0
  expect "volatile write cache" "$(($(value .vwc) & 1))" 1
}

check_nvme_id_ctrl_of_version_2_with_its_commands() {
  tidegate_only "reports other optional commands"
  connect "$nqn_files"
  ask nvme id-ctrl "/dev/$controller"
  at_least ver "$(value .ver)" $((0x20000))
  # Compare, Dataset Management, Write Zeroes, Verify.
  expect "the bits of oncs for them" "$(($(value .oncs) & 0x8d))" $((0x8d))
  at_least "mdts" "$(value .mdts)" 1
}

check_nvme_id_ns_and_descriptors() {
  connect "$nqn_files"
  use_namespace 1
  local nguid
  ask nvme id-ns "$disk"
  expect nsze "$(value .nsze)" $((1 << 20))
  expect ncap "$(value .ncap)" $((1 << 20))
  expect "the block size's power" "$(value '.lbafs[.flbas % 16].ds')" 9
  expect "shared between controllers" "$(($(value .nmic) & 1))" 1
  nguid=$(value .nguid)
  [ "$nguid" != 00000000000000000000000000000000 ] || fail "the NGUID is zero"
  ask nvme ns-descs "$disk"
  expect "the UUID" "$(value '."ns-descs"[] | select(.nidt == 3) | .uuid')" "$(cat "/sys/block/${disk#/dev/}/uuid")"
  expect "the NGUID among the descriptors" "$(value '."ns-descs"[] | select(.nidt == 2) | .nguid')" "$nguid"
  expect "the command set" "$(value '."ns-descs"[] | select(.nidt == 4) | .csi')" 0
}

check_identity_outlives_a_restart() {
  tidegate_only "makes up random identities"
  connect "$nqn_files"
  use_namespace 1
  local before
  before=$(field '.' nvme ns-descs "$disk")
  disconnect
  target_stop
  target_start main
  connect "$nqn_files"
  use_namespace 1
  expect "the namespace's identity" "$(field '.' nvme ns-descs "$disk")" "$before"
}

check_nvme_list_ns() {
  connect "$nqn_memory"
  local expected="1 7"
  [ "$target" = nvmet ] || expected="1 2 7"
  expect "the namespaces" "$(field '[.nsid_list[].nsid] | join(" ")' nvme list-ns "/dev/$controller")" "$expected"
  expect "the namespaces after 1" \
    "$(field '[.nsid_list[].nsid] | join(" ")' nvme list-ns "/dev/$controller" -n 2)" "${expected#1 }"
}

check_nvme_list_ctrl() {
  tidegate_only "does not list controllers"
  connect "$nqn_files"
  local own
  own=$(cat "/sys/class/nvme/$controller/cntlid")
  expect "the controllers" \
    "$(field '[.ctrl_list[].ctrl_id] | join(" ")' nvme list-ctrl "/dev/$controller")" "$own"
}

check_nvme_identify_of_command_sets() {
  connect "$nqn_files"
  use_namespace 1
  nvme nvm-id-ctrl "/dev/$controller"
  tidegate_only "knows no more of these"
  # nvme-cli 2.3 does not find the NSID by itself here.
  nvme cmdset-ind-id-ns "$disk" -n 1
  nvme id-iocs "/dev/$controller"
}

check_nvme_identify_of_user_data_formats() {
  tidegate_only "knows none of these"
  connect "$nqn_files"
  use_namespace 1
  nvme id-ns-lba-format "$disk" -i 0
  nvme nvm-id-ns-lba-format "$disk" -i 0
  refuse nvme id-ns-lba-format "$disk" -i 1
  refuse nvme nvm-id-ns-lba-format "$disk" -i 1
}

check_nvme_smart_log_counts() {
  connect "$nqn_memory"
  use_namespace 1
  local writes reads
  ask nvme smart-log "/dev/$controller"
  writes=$(value .host_write_commands)
  reads=$(value .host_read_commands)
  dd if=/dev/zero of="$disk" bs=4k count=100 oflag=direct
  dd if="$disk" of=/dev/null bs=4k count=100 iflag=direct
  ask nvme smart-log "/dev/$controller"
  at_least "write commands counted" "$(value .host_write_commands)" $((writes + 100))
  at_least "read commands counted" "$(value .host_read_commands)" $((reads + 100))
  expect critical_warning "$(value .critical_warning)" 0
}

check_nvme_error_log_fills() {
  connect "$nqn_memory"
  use_namespace 1
  local before
  before=$(field '[.errors[].error_count] | max' nvme error-log "/dev/$controller" -e 8)
  # Past the end of the namespace.
  refuse nvme read "$disk" -s 0x7fffffff -c 0 -z 512
  ask nvme error-log "/dev/$controller" -e 8
  at_least "the newest error count" "$(value '[.errors[].error_count] | max')" $((before + 1))
  expect "the block in the newest entry" "$(value '.errors | max_by(.error_count) | .lba')" $((0x7fffffff))
  [ "$target" = nvmet ] || [[ $refusal == *"LBA Out of Range"* ]] || fail "the status is: $refusal"
}

check_nvme_firmware_effects_and_change_logs() {
  connect "$nqn_files"
  nvme fw-log "/dev/$controller"
  nvme effects-log "/dev/$controller" -c 0
  nvme changed-ns-list-log "/dev/$controller"
  tidegate_only "has no log of supported pages"
  nvme supported-log-pages "/dev/$controller"
}

check_nvme_effects_log_names_the_commands() {
  tidegate_only "names others"
  connect "$nqn_files"
  local answer command
  # Without the command set's number nvme-cli 2.3 looks for the registers of a PCIe device, and prints nothing.
  answer=$(nvme effects-log "/dev/$controller" -c 0 -H)
  for command in Flush Write Read Compare "Write Zeroes" "Dataset Management" Verify Identify "Get Log Page" "Keep Alive"; do
    grep -E "\[$command *\].*CSUPP\+" <<<"$answer" || fail "$command is missing in: $answer"
  done
}

check_nvme_get_features() {
  connect "$nqn_files"
  local feature answer features=(0x07 0x0b 0x0f)
  # Arbitration, power, temperature, error recovery, write atomicity, host behaviour as well.
  [ "$target" = nvmet ] || features=(0x01 0x02 0x04 0x05 0x06 0x07 0x0a 0x0b 0x0f)
  for feature in "${features[@]}"; do
    answer=$(nvme get-feature "/dev/$controller" -f "$feature" 2>&1) || fail "feature $feature: $answer"
    echo "$answer"
  done
  [ "$target" = nvmet ] || nvme get-feature "/dev/$controller" -f 0x16 -l 512
  nvme get-feature "/dev/$controller" -f 7 -H
  refuse nvme get-feature "/dev/$controller" -f 0x7f
}

check_nvme_features_can_be_set() {
  connect "$nqn_files" -k 5
  local value
  nvme set-feature "/dev/$controller" -f 0x0b -v 0x100
  value=$(nvme get-feature "/dev/$controller" -f 0x0b)
  [[ $value == *0x00000100* ]] || fail "asynchronous events after setting 0x100: $value"
  refuse nvme set-feature "/dev/$controller" -f 0x7f -v 1
}

check_nvme_registers() {
  connect "$nqn_files"
  local version
  version=$(nvme get-property "/dev/$controller" -o 0x8)
  echo "$version"
  nvme get-property "/dev/$controller" -o 0
  nvme get-property "/dev/$controller" -o 0x1c
  tidegate_only "does not have every register that show-regs asks for"
  ask nvme show-regs "/dev/$controller"
  expect "version" "$(value .vs)" $((0x20000))
  expect "controller enabled" "$(($(value .cc) & 1))" 1
  expect "controller ready" "$(($(value .csts) & 1))" 1
}

check_nvme_write_read_flush_write_zeroes_dsm() {
  connect "$nqn_files"
  use_namespace 1
  head -c 4096 /dev/urandom >"$scratch/data"
  nvme write "$disk" -s 16 -c 7 -z 4096 -d "$scratch/data"
  nvme read "$disk" -s 16 -c 7 -z 4096 -d "$scratch/back"
  cmp "$scratch/data" "$scratch/back"
  nvme write "$disk" -s 24 -c 7 -z 4096 -d "$scratch/data" --force-unit-access
  nvme read "$disk" -s 24 -c 7 -z 4096 -d "$scratch/back" --force-unit-access
  cmp "$scratch/data" "$scratch/back"
  nvme flush "$disk"
  nvme write-zeroes "$disk" -s 16 -c 7
  nvme read "$disk" -s 16 -c 7 -z 4096 -d "$scratch/back"
  cmp -n 4096 "$scratch/back" /dev/zero || fail "not zero after write-zeroes"
  nvme write-zeroes "$disk" -s 24 -c 3 --deac
  nvme read "$disk" -s 24 -c 7 -z 4096 -d "$scratch/back"
  cmp -n 2048 "$scratch/back" /dev/zero || fail "not zero after write-zeroes with deallocation"
  cmp -i 2048 "$scratch/back" "$scratch/data" || fail "write-zeroes touched blocks beyond its range"
  nvme dsm "$disk" --ad -s 28,30 -b 1,2
}

check_nvme_compare_and_verify() {
  tidegate_only "has neither"
  connect "$nqn_files"
  use_namespace 1
  head -c 4096 /dev/urandom >"$scratch/data"
  nvme write "$disk" -s 16 -c 7 -z 4096 -d "$scratch/data"
  nvme compare "$disk" -s 16 -c 7 -z 4096 -d "$scratch/data"
  refuse nvme compare "$disk" -s 17 -c 7 -z 4096 -d "$scratch/data"
  [[ $refusal == *"Compare Failure"* ]] || fail "the status is: $refusal"
  nvme verify "$disk" -s 16 -c 7
  refuse nvme verify "$disk" -s 0x7fffffff -c 7
  [[ $refusal == *"LBA Out of Range"* ]] || fail "the status is: $refusal"
}

check_unknown_opcodes_are_refused() {
  connect "$nqn_files"
  use_namespace 1
  refuse nvme admin-passthru "/dev/$controller" -o 0x99
  [[ $refusal == *"Invalid Command Opcode"* ]] || fail "the status is: $refusal"
  refuse nvme io-passthru "$disk" -o 0x99 -n 1
  [[ $refusal == *"Invalid Command Opcode"* ]] || fail "the status is: $refusal"
  controller_is live || fail "the controller is not live afterwards"
}

check_asynchronous_events_and_abort_leave_the_controller_alive() {
  connect "$nqn_files"
  # Command 0xfff0 of queue 1 does not exist: Abort must succeed and say that nothing was aborted.
  nvme admin-passthru "/dev/$controller" -o 0x08 -4 0xfff00001
  controller_is live || fail "the controller is not live afterwards"
}
