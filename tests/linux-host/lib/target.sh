# shellcheck shell=bash disable=SC2034,SC2154 # variables pass between the files that `guest` sources together
# The target under test: started, stopped and killed here, whichever it is.

target_log=$scratch/target.log
target_pid_file=$scratch/target.pid
target_config_file=$scratch/target.config

# target_start CONFIGURATION: a name in configs/. Returns once it listens.
target_start() {
  echo "$1" >"$target_config_file"
  "${target}_start" "$1" && wait_until 60 target_listens 127.0.0.1 4420 && admits_by_rdma "$1" && return
  echo "the target does not listen; its log ends:"
  tail -n 20 "$target_log"
  return 1
}

# With the configuration `rdma` hosts may come that way, too: a little later than by TCP.
admits_by_rdma() {
  [ "$1" != rdma ] || wait_until 60 "$binary" discover -t rdma -a "$rdma_address" --timeout 5s
}

# SIGTERM, as a service manager would; its exit status is the result.
target_stop() {
  "${target}_stop"
}

# kill -9: nothing is finished, flushed or said.
target_kill() {
  "${target}_kill"
}

# target_ensure CONFIGURATION: it runs with that one, restarted if need be.
target_ensure() {
  if "${target}_runs" && [ "$(cat "$target_config_file")" = "$1" ]; then
    return 0
  fi
  ! "${target}_runs" || target_stop
  target_start "$1"
}

# What each check of a file finds; a file that wants another target, or none, says so by a function of its own.
prepare_check() {
  target_ensure main
}

target_listens() {
  (exec 3<>"/dev/tcp/$1/$2") 2>/dev/null
}

# Checks of what only our own target does.
tidegate_only() {
  [ "$target" = tidegate ] || skip "the kernel's own target $1"
}

# It outlives the shell that starts it: a check may start it and the next one use it. Its exit status goes to a file.
tidegate_start() {
  [ -x "$binary" ] || {
    echo "$binary is not built"
    return 1
  }
  cd "$scratch" || return
  rm -f "$scratch/target.status"
  local clients=(none none)
  [ "$1" != clients ] || clients=("$scratch/rpc.sock" "$scratch/state")
  # shellcheck disable=SC2016 # expanded by the inner shell
  setsid bash -c '
    "$1" serve --config "$2" --rpc-socket "$5" --state "$6" &
    echo $! >"$3"
    wait $!
    echo $? >"$4"' tidegate "$binary" "$here/configs/$1.toml" "$target_pid_file" "$scratch/target.status" "${clients[@]}" \
    </dev/null >>"$target_log" 2>&1 &
  wait_until 5 test -s "$target_pid_file"
}

tidegate_runs() {
  [ -s "$target_pid_file" ] && kill -0 "$(cat "$target_pid_file")" 2>/dev/null
}

tidegate_stop() {
  tidegate_runs || return 0
  kill -TERM "$(cat "$target_pid_file")"
  wait_until 20 test -s "$scratch/target.status" || {
    echo "the target does not end on SIGTERM"
    tidegate_kill
    return 1
  }
  rm -f "$target_pid_file"
  return "$(cat "$scratch/target.status")"
}

tidegate_kill() {
  kill -KILL "$(cat "$target_pid_file")"
  wait_until 10 test -s "$scratch/target.status"
  rm -f "$target_pid_file"
}

# From here on `logged`.
log_mark() {
  log_from=$(($(wc -l <"$target_log") + 1))
}

# What the target has logged since `log_mark`.
logged() {
  tail -n +"$log_from" "$target_log"
}
