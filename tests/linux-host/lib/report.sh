# shellcheck shell=bash disable=SC2034,SC2154 # variables pass between the files that `guest` sources together
# How a check says what came of it. A check that reaches its end has passed.

# fail WHY...: ends the check.
verdict_file=${verdict_file:-/dev/stderr}
fail() {
  trap - ERR
  # A failure inside $(...) fails its caller too: the first reason is the true one.
  [ -s "$verdict_file" ] || echo "$*" >"$verdict_file"
  echo "FAILED: $*" >&2
  exit 1
}

# skip WHY...: ends the check, which could not run here.
skip() {
  trap - ERR
  echo "skip $*" >"$verdict_file"
  exit 3
}

# Any command that fails and is not expected to ends the check with its own text.
fail_command() {
  fail "line $2: \`$3\` ended with status $1"
}

# expect "what it is" ACTUAL EXPECTED
expect() {
  [ "$2" = "$3" ] || fail "$1 is \`$2\`, expected \`$3\`"
}

# refuse COMMAND...: the command must fail. What it printed is left in $refusal.
refuse() {
  refusal=$("$@" 2>&1) && fail "\`$*\` succeeded, it was to be refused: $refusal"
  return 0
}

# wait_until SECONDS COMMAND...: asks until the command succeeds.
wait_until() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@"; do
    [ "$SECONDS" -lt "$deadline" ] || return 1
    sleep 0.1
  done
}

# The kernel log is cut at marks of our own, written into it.
mark_kernel_log() {
  echo "tidegate-check $*" >/dev/kmsg
}

kernel_log_since_mark() {
  dmesg | tac | sed '/tidegate-check begin/q' | tac
}

# kernel_said TEXT: since the check began.
kernel_said() {
  [[ $(kernel_log_since_mark) == *"$1"* ]]
}
