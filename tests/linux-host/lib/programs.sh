# shellcheck shell=bash disable=SC2154 # variables pass between the files that `guest` sources together
# Programs in the guest's own memory.
#
# The guest reads this machine's files over 9p, without a cache: each start of a program reads it anew, which takes up to two
# seconds where the processor is emulated. So those that checks start again and again are copied first, with their libraries.

programs=(bash timeout nvme fio rdma ip grep sed awk jq cat head tail cut tr sort tee date sleep rm mkdir touch stat dd cmp
  sha256sum find truncate mount umount mountpoint modprobe kmod blockdev blkdiscard dmesg sync)

# From here on, PATH leads to the copies, and `binary` is one.
programs_bring() {
  local store=$scratch/programs found
  mkdir -p "$store/bin" "$store/lib"
  mapfile -t found < <(type -P "${programs[@]}")
  cp -L -t "$store/bin" "${found[@]}"
  cp "$binary" "$store/bin/tidegate"
  binary=$store/bin/tidegate
  # Tidegate is not linked with those of RDMA, but opens them.
  { ldd "$store"/bin/* && ldconfig -p | grep -E 'lib(ibverbs|rdmacm)\.so\.1 '; } |
    sed -nE 's/.* => (\/[^ ]+).*/\1/p' | sort -u | xargs cp -L -t "$store/lib"
  export PATH=$store/bin:$PATH LD_LIBRARY_PATH=$store/lib
}
