# shellcheck shell=bash disable=SC2154 # $repo and the like come from the script that sources this
# What the tests need of the machine: finds what is missing, says so, installs it. Sourced by tools/test.

# Debian package and the command, file, or module of Python, by which it is known; one pair a line.
packages_needed() {
  cat <<'END'
qemu-system-x86 qemu-system-x86_64
kmod depmod
iproute2 ip
busybox-static busybox
python3-venv python:ensurepip
nvme-cli nvme
fio fio
e2fsprogs mkfs.ext4
xfsprogs mkfs.xfs
dmsetup dmsetup
util-linux losetup
jq jq
shellcheck shellcheck
libibverbs-dev file:/usr/include/infiniband/verbs.h
ibverbs-providers file:/etc/libibverbs.d/rxe.driver
librdmacm-dev file:/usr/include/rdma/rdma_cma.h
END
}

has() {
  case $1 in
    file:*) [ -e "${1#file:}" ] ;;
    python:*) python3 -c "import ${1#python:}" 2>/dev/null ;;
    *) PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null ;;
  esac
}

missing_packages() {
  local package sign
  while read -r package sign; do
    has "$sign" || echo "$package"
  done < <(packages_needed)
}

# SPDK's own client of its JSON-RPC: that of v26.05.
spdk_client=spdk==26.5

has_spdk_client() {
  [ -x "$repo/.venv/bin/python" ] && "$repo/.venv/bin/python" -c "
import importlib.metadata, sys
sys.exit('spdk==' + importlib.metadata.version('spdk') != '$spdk_client')" 2>/dev/null
}

# Lines for a reader: everything that is missing, with what it is for.
list_missing() {
  local package kernel
  for package in $(missing_packages); do echo "Debian package $package"; done
  [ -x "$repo/.venv/bin/vng" ] || echo "virtme-ng (from PyPI, into .venv)"
  has_spdk_client || echo "client $spdk_client (from PyPI, into .venv)"
  for kernel in "${kernels[@]}"; do
    kernel_image "$kernel" >/dev/null || echo "kernel $kernel (a Debian package, unpacked into .cache/kernels)"
  done
}

as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  else
    sudo -n "$@"
  fi
}

# Mirrors fail now and then.
retry() {
  local try
  for try in 1 2 3; do
    ! "$@" || return 0
    echo "try $try failed: $*" >&2
    sleep $((try * 5))
  done
  return 1
}

install_packages() {
  local packages
  mapfile -t packages < <(missing_packages)
  [ ${#packages[@]} -gt 0 ] || return 0
  retry as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${packages[@]}"
}

install_virtme() {
  [ ! -x "$repo/.venv/bin/vng" ] || return 0
  python3 -m venv "$repo/.venv" && retry "$repo/.venv/bin/pip" install -q virtme-ng
}

install_spdk_client() {
  has_spdk_client && return
  [ -x "$repo/.venv/bin/python" ] || python3 -m venv "$repo/.venv" || return
  retry "$repo/.venv/bin/pip" install -q "$spdk_client"
}

install_kernels() {
  local kernel
  for kernel in "${kernels[@]}"; do
    kernel_image "$kernel" >/dev/null || retry kernel_fetch "$kernel"
  done
}

# Installs what it can. What stays missing shows itself as skipped tests.
install_missing() {
  if ! command -v apt-get >/dev/null; then
    echo "this machine has no apt-get: nothing is installed" >&2
    return 0
  fi
  retry as_root apt-get update -q || true
  install_packages || echo "some packages could not be installed" >&2
  install_virtme || echo "virtme-ng could not be installed" >&2
  install_spdk_client || echo "$spdk_client could not be installed" >&2
  install_kernels || true
}
