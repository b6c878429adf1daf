# shellcheck shell=bash disable=SC2034,SC2154 # variables pass between the files that `guest` sources together
# RDMA where there is no RDMA hardware: soft-RoCE over an interface of its own. What the target exports by `rdma.toml` is
# what it exports by TCP.

rdma_address=10.99.0.1

# soft_roce: made by the first check that needs it.
soft_roce() {
  [ -e /etc/libibverbs.d/rxe.driver ] || skip "the Debian package ibverbs-providers is missing"
  ldconfig -p | grep librdmacm.so.1 >/dev/null || skip "the Debian package librdmacm1 is missing"
  if ! ip link show dummy0 >/dev/null 2>&1; then
    modprobe -a rdma_rxe rdma_ucm nvme-rdma || skip "this kernel has no soft-RoCE or no NVMe/RDMA host"
    soft_roce_interface 0
  fi
}

# soft_roce_interface NUMBER: 10.99.NUMBER.1 and fd99:NUMBER::1.
soft_roce_interface() {
  ip link add "dummy$1" type dummy
  ip address add "10.99.$1.1/24" dev "dummy$1"
  ip link set "dummy$1" mtu 4200 up
  soft_roce_device "$1"
}

# Its addresses of version 6 go with the link.
soft_roce_device() {
  ip -6 address add "fd99:$1::1/64" dev "dummy$1" nodad 2>/dev/null || true
  rdma link add "rxe$1" type rxe netdev "dummy$1"
}

# The kernel waits until no process has it open, and cannot be interrupted.
soft_roce_remove() {
  rdma link delete "rxe$1" &
  wait_until 30 has_ended $! || fail "the kernel waits for somebody to close rxe$1"
}

has_ended() {
  ! kill -0 "$1" 2>/dev/null
}
