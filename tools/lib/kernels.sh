# shellcheck shell=bash disable=SC2154 # $repo and the like come from the script that sources this
# Where the kernels under test come from and how one is found. Sourced by tools/test and tools/vm.
#
# Both kernels are unpacked from Debian's own packages, not installed: nothing is written to /boot, no boot loader or
# initramfs is touched, and neither the download nor the unpacking needs to be root.

kernels_dir=$repo/.cache/kernels
# shellcheck disable=SC2034 # read by tools/test
kernels=(6.1 6.12)

# kernel_image 6.12 -> the path of its boot image, or nothing (and failure) when it has not been unpacked whole.
kernel_image() {
  local image version
  for image in "$kernels_dir/$1"/boot/vmlinuz-*; do
    version=${image##*/vmlinuz-}
    # modules.dep is what kernel_fetch makes last.
    if [ -e "$kernels_dir/$1/lib/modules/$version/modules.dep" ]; then
      echo "$image"
      return 0
    fi
  done
  return 1
}

# kernel_package 6.12 -> the name of the newest package with that kernel that apt knows of.
kernel_package() {
  local pattern
  case $1 in
    6.1) pattern='^linux-image-6\.1\.0-[0-9]+-amd64$' ;;
    *) pattern="^linux-image-${1//./\\.}\.[0-9]+\+deb12-amd64-unsigned\$" ;;
  esac
  apt-cache search --names-only "$pattern" | cut -d' ' -f1 | sort -V | tail -1 | grep .
}

# kernel_fetch 6.12: download the newest package with that kernel and unpack it. Starts over when an earlier try broke off.
kernel_fetch() (
  set -e
  package=$(kernel_package "$1") || {
    echo "no package with kernel $1 in the apt sources of this machine" >&2
    exit 1
  }
  rm -rf "${kernels_dir:?}/$1"
  mkdir -p "$kernels_dir/$1/download"
  cd "$kernels_dir/$1"
  (cd download && apt-get download -q "$package")
  dpkg-deb -x download/*.deb .
  rm -r download
  for modules in lib/modules/*; do
    PATH=$PATH:/usr/sbin:/sbin depmod -b . "${modules##*/}"
  done
)
